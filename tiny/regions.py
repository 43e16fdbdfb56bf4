"""Rendered scenes as inpainting examples: boxes over solids, each with the words for what stands there.

Masks are boxes, as in the paper's data. Furniture is never masked: it fills too much of the image.

Legend: n scenes, b batch, r regions, h w pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from tqdm.auto import tqdm

from datasets.scenes import EVAL_BIT
from datasets.scenes.store import HEADER
from datasets.sources.rendered import shard_files
from tiny.words import Name, read_name

Box = tuple[int, int, int, int]
LEAST_VISIBLE, LEAST_SIDE, MOST_AREA = 0.6, 9, 0.4
MOST_OVERLAP = 0.3  # of the smaller box, between two masks of one example


@dataclass(frozen=True)
class Region:
    """One solid that can be masked: the box around what is visible of it, and its name."""

    box_xyxy: Box
    name: Name


@dataclass(frozen=True, eq=False)
class Views:
    """Images of whole scenes with the solids that can be masked in each; scenes with none are left out."""

    images_u8: np.ndarray  # (n, h, w, 3)
    regions: tuple[tuple[Region, ...], ...]

    def __len__(self) -> int:
        return len(self.regions)


def read_views(folder: Path, first: int = 0, count: int | None = None) -> Views:
    """Scenes first ... first + count - 1 of a folder of shards, as far as they have a solid to mask."""
    images: list[np.ndarray] = []
    regions: list[tuple[Region, ...]] = []
    for path in tqdm(shard_files(folder), desc=f"reading {folder.name}", leave=False):
        if count is not None and len(regions) >= first + count:
            break
        with safe_open(path, "numpy") as shard:
            facts = json.loads(shard.metadata()[HEADER])["facts"]
            instances = shard.get_tensor("instances_u8")
            images.append(shard.get_tensor("image_u8"))
        regions += [regions_of(*pair) for pair in zip(instances, facts, strict=True)]
    stop = len(regions) if count is None else first + count
    kept = [index for index in range(first, min(stop, len(regions))) if regions[index]]
    if not kept:
        raise ValueError(f"{folder}: no scene from number {first} on has a solid to mask")
    return Views(np.concatenate(images)[kept], tuple(regions[index] for index in kept))


def regions_of(instances_u8: np.ndarray, facts: dict[str, Any]) -> tuple[Region, ...]:
    """Solids of one scene that are mostly visible, neither tiny nor huge. instances: (h, w)."""
    found = []
    for index, text in enumerate(facts["names"]):
        name = read_name(text)
        if name is None or facts["visible"][index] < LEAST_VISIBLE:
            continue
        rows, columns = np.nonzero(instances_u8 == index + 1)
        if not len(rows):
            continue
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        sides = (box[2] - box[0], box[3] - box[1])
        if min(sides) >= LEAST_SIDE and sides[0] * sides[1] <= MOST_AREA * instances_u8.size:
            found.append(Region(box, name))
    return tuple(found)


def grown(box: Box, margins: Sequence[int], size: tuple[int, int]) -> Box:
    """The box with (left, top, right, bottom) more pixels, inside an image of size (h, w)."""
    left, top, right, bottom = margins
    return (
        max(0, box[0] - left),
        max(0, box[1] - top),
        min(size[1], box[2] + right),
        min(size[0], box[3] + bottom),
    )


def overlap(first: Box, second: Box) -> float:
    """Fraction of the smaller box that the other covers."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0, width) * max(0, height) / min(box_area(first), box_area(second))


def box_area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def spread_out(regions: Sequence[Region], order: Sequence[int], most: int, margin: int = 2) -> list[Region]:
    """The first regions in `order` whose masks hardly overlap, at most `most`."""
    chosen: list[Region] = []
    size = (1 << 16, 1 << 16)
    for index in order:
        box = grown(regions[index].box_xyxy, (margin,) * 4, size)
        others = (grown(one.box_xyxy, (margin,) * 4, size) for one in chosen)
        if len(chosen) < most and all(overlap(box, other) <= MOST_OVERLAP for other in others):
            chosen.append(regions[index])
    return chosen


def box_masks(boxes: Sequence[Box], size: tuple[int, ...]) -> np.ndarray:
    """(r, h, w) bool, one mask per box in an image of size (h, w)."""
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def refuse_training_scenes(folder: Path) -> None:
    """ValueError when a folder that should be held out has scenes with training seeds."""
    for path in shard_files(folder):
        with safe_open(path, "numpy") as shard:
            facts = json.loads(shard.metadata()[HEADER])["facts"]
        if not all(fact["seed"] & EVAL_BIT for fact in facts):
            raise ValueError(f"{path} holds training scenes; render with `--split eval`")
