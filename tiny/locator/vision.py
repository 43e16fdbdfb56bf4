"""Stage A: the vision transformer and the projector learn to see, before any language.

A single linear map of every projected patch must tell what it shows: shape, colour and pattern of the solid
that owns the patch, its whole box and depth, and the depth of the patch itself. Projected patches are kept at
unit scale, which is that of word embeddings.

Legend: b images, p patches, s solids, c channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from tiny.llava import mirrored, normalised, project, recoloured
from tiny.locator.cache import Scenes
from tiny.locator.tokenizer import COLOUR_WORDS, PATTERN_NAMES, SHAPE_WORDS
from tiny.loop import Stage, StageSettings

OWNED = 0.25  # a patch belongs to the solid that covers most of it, if that is more than this share
UNSURE = 0.1  # patches with a larger share of unknown owners do not count
SECTIONS = (len(SHAPE_WORDS), len(COLOUR_WORDS), len(PATTERN_NAMES), 5, 1, 1)  # 5: cx, cy, w, h, d
BOX_WEIGHT, DEPTH_WEIGHT, SCALE_WEIGHT = 20.0, 10.0, 0.02


@dataclass(frozen=True, eq=False)
class Images:
    """A batch of images with what their patches show."""

    pixels: Tensor  # (b, 3, h, w) normalised
    cover: Tensor  # (b, p, s) share of each patch that each solid covers
    known: Tensor  # (b, p) bool
    patch_depth: Tensor  # (b, p)
    labels: Tensor  # (b, s, 3) shape, colour, pattern; -1: none
    place: Tensor  # (b, s, 5) cx, cy, w, h, d


def read_head(width: int) -> nn.Linear:
    """What reads projected patches in this stage; it is thrown away afterwards."""
    return nn.Linear(width, sum(SECTIONS))


def images(scenes: Scenes, index: np.ndarray, view: np.ndarray, flip: np.ndarray,
             rng: np.random.Generator | None = None) -> Images:  # fmt: skip
    """Scenes `index` (b,), image `view` (b,) 0 or 1, mirrored where `flip` (b,); recoloured with an rng."""
    pixels_u8 = np.stack([scenes.images_u8[i, v] for i, v in zip(index, view, strict=True)])
    cover = np.stack([scenes.cover_u8[i, v] for i, v in zip(index, view, strict=True)])
    depth = np.stack([scenes.patch_depth[i, v] for i, v in zip(index, view, strict=True)])
    unknown = scenes.unknown_u8[index] * (view == 1)[:, None]
    side = int(cover.shape[1] ** 0.5)
    boxes = np.array(scenes.boxes[index])
    if flip.any():
        pixels_u8[flip] = pixels_u8[flip][:, :, ::-1]
        cover, depth, unknown = (
            mirrored(grid, flip, side) for grid in (cover, depth[..., None], unknown[..., None])
        )
        depth, unknown = depth[..., 0], unknown[..., 0]
        boxes[flip] = boxes[flip][..., [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
    place = np.concatenate(
        [
            (boxes[..., :2] + boxes[..., 2:]) / 2,
            boxes[..., 2:] - boxes[..., :2],
            scenes.depths[index][..., :1],
        ],
        -1,
    )
    return Images(
        normalised(recoloured(pixels_u8, rng)),
        torch.from_numpy(cover).float() / 255,
        torch.from_numpy(unknown < UNSURE * 255),
        torch.from_numpy(depth.astype(np.float32)),
        torch.from_numpy(scenes.labels[index].astype(np.int64)),
        torch.from_numpy(place.astype(np.float32)),
    )


def vision_loss(patches: Tensor, read: Tensor, batch: Images) -> tuple[Tensor, dict[str, float]]:
    """Loss of projected patches (b, p, c) with readings (b, p, sum of SECTIONS), and its measures."""
    share, owner = batch.cover.max(-1)  # (b, p)
    owned = (share > OWNED) & batch.known
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
        words[4][..., 0][batch.known], (share > OWNED)[batch.known].float()
    )
    scale = (patches.float().square().mean(-1) - 1).abs().mean()
    total = sum(losses) + BOX_WEIGHT * off + DEPTH_WEIGHT * depth_off + solid + SCALE_WEIGHT * scale
    measures |= {"box_l1": off.item(), "depth_l1": depth_off.item(), "solid": solid.item()}
    return total, measures


class VisionPretrainer(nn.Module):
    """The parts that stage A trains; they are the model's own, plus the readings."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.read = read_head(model.config.text_config.hidden_size)


def train_vision(
    model: LlavaForConditionalGeneration, scenes: Scenes, train: np.ndarray, settings: StageSettings,
    out: Path, seed: int,
) -> tuple[VisionPretrainer, Stage]:  # fmt: skip
    """Train on the scenes with the indices `train`; returns the finished stage with its module."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        seeing = VisionPretrainer(model)
    stage = Stage("vision", seeing, [(list(seeing.parameters()), settings.lr)], settings, out)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((seed, 1, step))
        size = settings.batch
        index, view = train[rng.integers(len(train), size=size)], rng.integers(2, size=size)
        batch = images(scenes, index, view, rng.random(size) < 0.5, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            patches = project(model, batch.pixels)
        return vision_loss(patches, seeing.read(patches.float()), batch)

    if not stage.load():
        stage.run(loss)
    return seeing, stage


@torch.inference_mode()
def measure_vision(
    model: LlavaForConditionalGeneration, read: nn.Linear, scenes: Scenes, held_out: np.ndarray
) -> dict[str, float]:
    """Means over the held-out scenes, both images: accuracies of the words, L1 of box and depth."""
    model.eval()
    rows = []
    for view in (0, 1):
        for part in np.array_split(held_out, max(1, len(held_out) // 64)):
            batch = images(scenes, part, np.full(len(part), view), np.zeros(len(part), bool))
            patches = project(model, batch.pixels)
            rows.append(vision_loss(patches, read(patches), batch)[1])
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
