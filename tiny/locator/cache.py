"""Shards of rendered scenes -> memory-mapped arrays that a trainer can index.

Each scene gives two images: 0 as rendered, 1 without its removed solid.

Legend: n scenes, v the two images, h w pixels, p patches (row-major), s solids (padded).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.scenes.store import Shard, depth_01, read_shard
from datasets.sources.rendered import shard_files
from ldm.files import write_atomic
from tiny.llava import pooled
from tiny.locator.tokenizer import name_labels

SOLIDS = 8  # rows per scene; the options of the renderer give at most seven
FORMAT = 1
NO_SOLID = -1


@dataclass(frozen=True, eq=False)
class Scenes:
    """Arrays of n scenes. Labels are NO_SOLID where there is no solid or no word of that kind."""

    images_u8: np.ndarray  # (n, v, h, w, 3)
    cover_u8: np.ndarray  # (n, v, p, s) share of a patch that shows a solid, 255 = all of it
    unknown_u8: np.ndarray  # (n, p) share of a patch of image 1 whose owner is not stored
    patch_depth: np.ndarray  # (n, v, p) float16 depth_01, mean of the patch
    labels: np.ndarray  # (n, s, 3) int8 shape, colour, pattern
    boxes: np.ndarray  # (n, s, 4) float32 amodal boxes, fractions
    depths: np.ndarray  # (n, s, 3) float32 d, far, near
    visible: np.ndarray  # (n, s) float32 visible share in image 0
    removed: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        return len(self.images_u8)


def open_scenes(data: Path, cache: Path, patch: int) -> Scenes:
    """The arrays of all shards of `data`, made once in the folder `cache` and memory-mapped from there.

    patch: side of a patch in pixels. ValueError when the cache was made from other shards.
    """
    files = shard_files(data)
    recipe = {"format": FORMAT, "patch": patch, "shards": [[f.name, f.stat().st_size] for f in files]}
    done = cache / "recipe.json"
    if not done.exists():
        _fill(files, cache, patch)
        write_atomic(done, (json.dumps(recipe) + "\n").encode())
    elif json.loads(done.read_text(encoding="utf-8")) != recipe:
        raise ValueError(f"{cache} was made from other shards than those of {data}; remove it")
    names = Scenes.__dataclass_fields__
    return Scenes(**{name: np.load(cache / f"{name}.npy", mmap_mode="r") for name in names})


def _fill(files: list[Path], cache: Path, patch: int) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.memmap] = {}
    total, start = 0, 0
    counts = [len(read_shard(file).facts) for file in (files[0], files[-1])]
    total = counts[0] * (len(files) - 1) + counts[1] if len(files) > 1 else counts[0]
    for file in tqdm(files, desc="scene arrays", unit="shard"):
        for name, rows in _rows(read_shard(file), patch).items():
            if name not in arrays:
                arrays[name] = np.lib.format.open_memmap(
                    cache / f"{name}.npy", mode="w+", dtype=rows.dtype, shape=(total, *rows.shape[1:])
                )
            arrays[name][start : start + len(rows)] = rows
        start += len(rows)
    for array in arrays.values():
        array.flush()


def _rows(shard: Shard, patch: int) -> dict[str, np.ndarray]:
    """The arrays of one shard."""
    k = len(shard.facts)
    removed = np.array([fact.removed for fact in shard.facts])
    without = np.where(shard.instances_u8 == removed[:, None, None] + 1, 255, shard.instances_u8)
    views = np.stack([shard.instances_u8, without], 1)
    cover = np.stack([pooled(views == i + 1, patch) for i in range(SOLIDS)], -1)
    depth = depth_01(np.stack([shard.depth_u16, shard.without_depth_u16], 1))
    labels = np.full((k, SOLIDS, 3), NO_SOLID, np.int8)
    boxes, depths = np.zeros((k, SOLIDS, 4), np.float32), np.zeros((k, SOLIDS, 3), np.float32)
    visible = np.zeros((k, SOLIDS), np.float32)
    for i, fact in enumerate(shard.facts):
        count = len(fact.names)
        labels[i, :count] = [name_labels(name) for name in fact.names]
        boxes[i, :count], depths[i, :count] = fact.boxes01, fact.depths
        visible[i, :count] = fact.visible
    return {
        "images_u8": np.stack([shard.image_u8, shard.without_u8], 1),
        "cover_u8": np.round(cover * 255).astype(np.uint8),
        "unknown_u8": np.round(pooled(without[:, None] == 255, patch)[:, 0] * 255).astype(np.uint8),
        "patch_depth": pooled(depth, patch).astype(np.float16),
        "labels": labels,
        "boxes": boxes,
        "depths": depths,
        "visible": visible,
        "removed": removed,
    }
