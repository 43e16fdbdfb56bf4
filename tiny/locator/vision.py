"""What the small locator sees: scenes as arrays, batches of images, the loss of the vision stage.

Each scene gives two images: 0 as rendered, 1 without its removed solid.
Legend: n scenes, v the two images, b images of a batch, h w pixels, p patches (row-major), s solids (padded),
c channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from datasets.scenes.store import depth_01, read_facts, read_shard
from datasets.sources.rendered import shard_files
from tiny.llava import pixel_values
from tiny.settings import PATCH
from tiny.world import COLOUR_WORDS, KINDS, PATTERN_NAMES, ArrayCache, pooled, read_name

SOLIDS = 8  # rows per scene; the options of the renderer give at most seven
FORMAT = 1
OWNED = 0.25  # a patch belongs to the solid that covers most of it, if that is more than this fraction
UNSURE = 0.1  # patches with a larger fraction of unknown owners do not count
SECTIONS = (len(KINDS), len(COLOUR_WORDS), len(PATTERN_NAMES), 5, 1, 1)  # 5: cx, cy, w, h, d
BOX_WEIGHT, DEPTH_WEIGHT, SCALE_WEIGHT = 20.0, 10.0, 0.02


@dataclass(frozen=True, eq=False)
class SceneArrays:
    """Arrays of n scenes. Labels are -1 where there is no solid or no word of that kind."""

    images_u8: np.ndarray  # (n, v, h, w, 3)
    cover_u8: np.ndarray  # (n, v, p, s) fraction of a patch that shows a solid, 255 = all of it
    unknown_u8: np.ndarray  # (n, p) fraction of a patch of image 1 whose owner is not stored
    patch_depth: np.ndarray  # (n, v, p) float16 depth_01, mean of the patch
    labels: np.ndarray  # (n, s, 3) int8 shape, colour, pattern
    boxes: np.ndarray  # (n, s, 4) float32 amodal boxes, fractions
    depths: np.ndarray  # (n, s, 3) float32 d, far, near
    visible: np.ndarray  # (n, s) float32 visible fraction in image 0
    removed: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        return len(self.images_u8)


def open_scenes(data: Path, folder: Path) -> SceneArrays:
    """The arrays of all shards of `data`, made once in `folder` and memory-mapped from there."""
    files = shard_files(data)
    recipe = {"format": FORMAT, "patch": PATCH, "shards": [[f.name, f.stat().st_size] for f in files]}
    first, last = (len(read_facts(file)) for file in (files[0], files[-1]))
    cache = ArrayCache(folder, recipe, first * (len(files) - 1) + last)
    for file in cache.missing(files):
        shard = read_shard(file)
        k = len(shard.facts)
        removed = np.array([fact.removed for fact in shard.facts])
        without = np.where(shard.instances_u8 == removed[:, None, None] + 1, 255, shard.instances_u8)
        views = np.stack([shard.instances_u8, without], 1)
        cover = np.stack([pooled(views == i + 1, PATCH) for i in range(SOLIDS)], -1)
        depth = depth_01(np.stack([shard.depth_u16, shard.without_depth_u16], 1))
        labels = np.full((k, SOLIDS, 3), -1, np.int8)
        boxes, depths = np.zeros((k, SOLIDS, 4), np.float32), np.zeros((k, SOLIDS, 3), np.float32)
        visible = np.zeros((k, SOLIDS), np.float32)
        for i, fact in enumerate(shard.facts):
            count = len(fact.names)
            for row, name in enumerate(fact.names):
                labels[i, row, 0], solid = KINDS.index(name.split()[-1]), read_name(name)
                if solid is not None:
                    labels[i, row, 1:] = COLOUR_WORDS.index(solid.colour), PATTERN_NAMES.index(solid.pattern)
            boxes[i, :count], depths[i, :count] = fact.boxes01, fact.depths
            visible[i, :count] = fact.visible
        cache.append({
            "images_u8": np.stack([shard.image_u8, shard.without_u8], 1),
            "cover_u8": np.round(cover * 255).astype(np.uint8),
            "unknown_u8": np.round(pooled(without[:, None] == 255, PATCH)[:, 0] * 255).astype(np.uint8),
            "patch_depth": pooled(depth, PATCH).astype(np.float16),
            "labels": labels, "boxes": boxes, "depths": depths, "visible": visible, "removed": removed,
        })  # fmt: skip
    return cache.load(SceneArrays)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """A batch of images with what their patches show."""

    pixels: Tensor  # (b, 3, h, w) normalised
    cover: Tensor  # (b, p, s) fraction of each patch that each solid covers
    known: Tensor  # (b, p) bool
    patch_depth: Tensor  # (b, p)
    labels: Tensor  # (b, s, 3) shape, colour, pattern; -1: none
    place: Tensor  # (b, s, 5) cx, cy, w, h, d


@dataclass(frozen=True, eq=False)
class ImageDraw:
    """Which images a batch has: scenes (b,), image 0 or 1 of each (b,), and which are mirrored (b,)."""

    index: np.ndarray
    view: np.ndarray
    flip: np.ndarray

    @classmethod
    def random(cls, scenes: np.ndarray, count: int, rng: np.random.Generator) -> ImageDraw:
        """Any images of the scenes with these numbers."""
        index = scenes[rng.integers(len(scenes), size=count)]
        return cls(index, rng.integers(2, size=count), rng.random(count) < 0.5)

    def first(self, count: int) -> ImageDraw:
        return ImageDraw(self.index[:count], self.view[:count], self.flip[:count])


def labelled_images(
    scenes: SceneArrays, draw: ImageDraw, rng: np.random.Generator | None = None
) -> LabelledImages:
    """The images of a draw; recoloured with an rng."""
    index, view, flip = draw.index, draw.view, draw.flip
    pixels_u8, cover, depth = (
        np.stack([array[i, v] for i, v in zip(index, view, strict=True)])
        for array in (scenes.images_u8, scenes.cover_u8, scenes.patch_depth)
    )
    unknown = scenes.unknown_u8[index] * (view == 1)[:, None]
    side = int(cover.shape[1] ** 0.5)
    boxes = np.array(scenes.boxes[index])
    if flip.any():
        pixels_u8[flip] = pixels_u8[flip][:, :, ::-1]
        for patches in (cover, depth, unknown):  # columns in reverse
            turned = patches[flip].reshape(int(flip.sum()), side, side, -1)[:, :, ::-1]
            patches[flip] = turned.reshape(patches[flip].shape)
        boxes[flip] = boxes[flip][..., [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
    low, high = boxes[..., :2], boxes[..., 2:]
    place = np.concatenate([(low + high) / 2, high - low, scenes.depths[index][..., :1]], -1)
    return LabelledImages(
        pixel_values(pixels_u8, rng), torch.from_numpy(cover).float() / 255,
        torch.from_numpy(unknown < UNSURE * 255), torch.from_numpy(depth.astype(np.float32)),
        torch.from_numpy(scenes.labels[index].astype(np.int64)), torch.from_numpy(place.astype(np.float32)),
    )  # fmt: skip


def patch_loss(patches: Tensor, read: Tensor, batch: LabelledImages) -> tuple[Tensor, dict[str, float]]:
    """Loss of projected patches (b, p, c) with readings (b, p, sum of SECTIONS), and its measures.

    A linear map of every patch must tell shape, colour and pattern of the solid that owns it, its whole box
    and depth, and the depth of the patch. Patches are kept at unit scale, which is that of word embeddings.
    """
    fraction, owner = batch.cover.max(-1)  # (b, p)
    owned = (fraction > OWNED) & batch.known
    rows = torch.arange(len(owner))[:, None].expand_as(owner)
    what = batch.labels[rows, owner][owned]  # (k, 3)
    words = read.float().split(SECTIONS, -1)
    losses, measures = [], {}
    for i, name in enumerate(("shape", "colour", "pattern")):
        guess = words[i][owned]
        losses.append(functional.cross_entropy(guess, what[:, i], ignore_index=-1))
        valid = what[:, i] >= 0
        measures[name] = (guess.argmax(-1) == what[:, i])[valid].float().mean().item()
    off = (words[3][owned] - batch.place[rows, owner][owned]).abs().mean()
    depth_off = (words[5][..., 0] - batch.patch_depth).abs().mean()
    solid = functional.binary_cross_entropy_with_logits(
        words[4][..., 0][batch.known], (fraction > OWNED)[batch.known].float()
    )
    scale = (patches.float().square().mean(-1) - 1).abs().mean()
    total = sum(losses) + BOX_WEIGHT * off + DEPTH_WEIGHT * depth_off + solid + SCALE_WEIGHT * scale
    return total, measures | {"box_l1": off.item(), "depth_l1": depth_off.item(), "solid": solid.item()}
