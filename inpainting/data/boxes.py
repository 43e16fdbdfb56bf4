"""Boxes of a grounded caption -> regions of the image: masks, crops, collages (published rules).

Legend: h w pixels. box01_xyxy are fractions of the image, box_xyxy whole pixels. A box counts when it
covers 1 % to 65 % of the image; an entity without such a box is dropped, the others are numbered in order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Box = tuple[int, int, int, int]
Box01 = tuple[float, float, float, float]

LEAST, MOST = 1 / 100, 65 / 100  # share of the image
PADDING = 127  # gray level between the parts of a collage


@dataclass(frozen=True)
class Grounded:
    """One phrase of a caption and its boxes."""

    phrase: str
    boxes01_xyxy: tuple[Box01, ...]


@dataclass(frozen=True)
class Region:
    """One entity that is large enough, mask_j of its image."""

    name: str
    concept: str  # the phrase in lower case
    boxes_xyxy: tuple[Box, ...]


def read_grounded(entry: Any) -> list[Grounded]:
    """The entities of one image's annotation; ValueError says what is malformed."""
    entities = entry.get("entities") if isinstance(entry, Mapping) else None
    if not isinstance(entities, Mapping):
        raise ValueError("its annotation has no object `entities`")
    return [Grounded(phrase, _boxes(phrase, value)) for phrase, value in entities.items()]


def _boxes(phrase: str, value: Any) -> tuple[Box01, ...]:
    boxes = value.get("bboxes") if isinstance(value, Mapping) else None
    if not isinstance(boxes, list):
        raise ValueError(f"entity {phrase!r} has no list `bboxes`")
    return tuple(_box(phrase, box) for box in boxes)


def _box(phrase: str, box: Any) -> Box01:
    numbers = isinstance(box, list) and all(type(value) in (int, float) for value in box)
    if not numbers or len(box) != 4 or not all(0 <= value <= 1 for value in box):
        raise ValueError(f"entity {phrase!r} has a box that is not 4 numbers in [0, 1]: {str(box)[:60]}")
    return (float(box[0]), float(box[1]), float(box[2]), float(box[3]))


def regions_of(entities: Sequence[Grounded], size_hw: tuple[int, int]) -> list[Region]:
    """The entities with at least one box of the right size, numbered."""
    found: list[Region] = []
    for entity in entities:
        pixels = [pixel_box(box, size_hw) for box in entity.boxes01_xyxy if large_enough(box, size_hw)]
        boxes = tuple(box for box in pixels if box[2] > box[0] and box[3] > box[1])
        if boxes:
            found.append(Region(f"mask_{len(found)}", entity.phrase.lower(), boxes))
    return found


def large_enough(box01_xyxy: Box01, size_hw: tuple[int, int]) -> bool:
    """Whether a box covers 1 % to 65 % of an image; its area is not rounded to pixels."""
    h, w = size_hw
    x0, y0, x1, y1 = box01_xyxy
    return share_allowed((x1 * w - x0 * w) * (y1 * h - y0 * h), size_hw)


def share_allowed(area: float, size_hw: tuple[int, int]) -> bool:
    """Whether an area in pixels is 1 % to 65 % of an image, both included."""
    pixels = size_hw[0] * size_hw[1]
    return LEAST * pixels <= area <= MOST * pixels


def pixel_box(box01_xyxy: Box01, size_hw: tuple[int, int]) -> Box:
    """Fractions -> whole pixels, cut off as published."""
    h, w = size_hw
    x0, y0, x1, y1 = box01_xyxy
    return int(x0 * w), int(y0 * h), int(x1 * w), int(y1 * h)


def region_mask(boxes_xyxy: Sequence[Box], size_hw: tuple[int, int]) -> np.ndarray:
    """Bool (h, w), the union of the boxes."""
    mask = np.zeros(size_hw, bool)
    for x0, y0, x1, y1 in boxes_xyxy:
        mask[y0:y1, x0:x1] = True
    return mask


def region_crop(rgb_u8: np.ndarray, boxes_xyxy: Sequence[Box]) -> np.ndarray:
    """The object alone, (h, w, 3) uint8: its crop, or a collage of its crops in a square grid."""
    crops = [rgb_u8[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes_xyxy]
    if len(crops) == 1:
        return crops[0]
    columns = math.ceil(math.sqrt(len(crops)))
    rows = math.ceil(len(crops) / columns)
    cell_h, cell_w = max(one.shape[0] for one in crops), max(one.shape[1] for one in crops)
    collage = np.full((rows * cell_h, columns * cell_w, 3), PADDING, np.uint8)
    for number, crop in enumerate(crops):
        top, left = number // columns * cell_h, number % columns * cell_w
        collage[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return collage
