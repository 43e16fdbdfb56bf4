"""Shards of rendered scenes -> memory-mapped arrays that a trainer can index.

Each scene gives two images: 0 as rendered, 1 without its removed solid.

Legend: n scenes, v the two images, h w pixels, p patches (row-major), s solids (padded).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.scenes.store import depth_01, read_shard
from datasets.sources.rendered import shard_files
from tiny.llava import PATCH, pooled
from tiny.locator.tokenizer import PATTERN_NAMES
from tiny.scene_arrays import memory_mapped
from tiny.words import COLOUR_WORDS, KINDS, read_name

SOLIDS = 8  # rows per scene; the options of the renderer give at most seven
FORMAT = 1
NO_SOLID = -1


@dataclass(frozen=True, eq=False)
class SceneArrays:
    """Arrays of n scenes. Labels are NO_SOLID where there is no solid or no word of that kind."""

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


def open_scenes(data: Path, cache: Path) -> SceneArrays:
    """The arrays of all shards of `data`, made once in the folder `cache` and memory-mapped from there."""
    files = shard_files(data)
    recipe = {"format": FORMAT, "patch": PATCH, "shards": [[f.name, f.stat().st_size] for f in files]}
    first, last = (len(read_shard(file).facts) for file in (files[0], files[-1]))
    count = first * (len(files) - 1) + last
    return memory_mapped(SceneArrays, cache, recipe, files, count, shard_arrays)


def shard_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of one shard."""
    shard = read_shard(file)
    k = len(shard.facts)
    removed = np.array([fact.removed for fact in shard.facts])
    without = np.where(shard.instances_u8 == removed[:, None, None] + 1, 255, shard.instances_u8)
    views = np.stack([shard.instances_u8, without], 1)
    cover = np.stack([pooled(views == i + 1, PATCH) for i in range(SOLIDS)], -1)
    depth = depth_01(np.stack([shard.depth_u16, shard.without_depth_u16], 1))
    labels = np.full((k, SOLIDS, 3), NO_SOLID, np.int8)
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
    return {
        "images_u8": np.stack([shard.image_u8, shard.without_u8], 1),
        "cover_u8": np.round(cover * 255).astype(np.uint8),
        "unknown_u8": np.round(pooled(without[:, None] == 255, PATCH)[:, 0] * 255).astype(np.uint8),
        "patch_depth": pooled(depth, PATCH).astype(np.float16),
        "labels": labels,
        "boxes": boxes,
        "depths": depths,
        "visible": visible,
        "removed": removed,
    }
