"""Boxes -> regions of the image: masks, crops, collages (published rules).

Legend: h w pixels. box01_xyxy are fractions of the image, box_xyxy pixels. A box counts when it covers
1 % to 65 % of the image; an entity without such a box is dropped, the others are numbered in order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Box = tuple[int, int, int, int]

MIN_AREA, MAX_AREA = 1 / 100, 65 / 100  # fractions of the image (published)
PADDING = 127  # gray level between the parts of a collage (published)


@dataclass(frozen=True)
class ObjectRegion:
    """One object that is large enough, mask_j of its image."""

    name: str
    concept: str
    boxes_xyxy: tuple[Box, ...]
    caption: str | None = None


def read_grounded(entry: Any) -> dict[str, list[list[float]]]:
    """{phrase: box01_xyxy of each of its objects} of one image's annotation; ValueError if malformed."""
    entities = entry.get("entities") if isinstance(entry, Mapping) else None
    if not isinstance(entities, Mapping):
        raise ValueError("its annotation has no object `entities`")
    result = {}
    for phrase, value in entities.items():
        boxes = value.get("bboxes") if isinstance(value, Mapping) else None
        if not isinstance(boxes, list):
            raise ValueError(f"entity {phrase!r} has no list `bboxes`")
        for box in boxes:
            numbers = isinstance(box, list) and all(type(value) in (int, float) for value in box)
            if not numbers or len(box) != 4 or not all(0 <= value <= 1 for value in box):
                raise ValueError(
                    f"entity {phrase!r} has a box that is not 4 numbers in [0, 1]: {str(box)[:60]}"
                )
        result[phrase] = boxes
    return result


def grounded_regions(
    entities: Mapping[str, Sequence[Sequence[float]]], size_hw: tuple[int, int]
) -> list[ObjectRegion]:
    """The phrases with at least one box of the right size, numbered; the concept is in lower case."""
    h, w = size_hw
    result: list[ObjectRegion] = []
    for phrase, boxes in entities.items():
        pixels = [pixel_box((x0 * w, y0 * h, x1 * w, y1 * h), size_hw) for x0, y0, x1, y1 in boxes]
        usable = tuple(box for box in pixels if box is not None)
        if usable:
            result.append(ObjectRegion(f"mask_{len(result)}", phrase.lower(), usable))
    return result


def pixel_box(box_xyxy: tuple[float, float, float, float], size_hw: tuple[int, int]) -> Box | None:
    """Whole pixels of a box, cut to the image; None for a box of the wrong size or without pixels.

    The limits apply to the area before it is rounded to pixels, as published.
    """
    h, w = size_hw
    x0, y0, x1, y1 = box_xyxy
    box = max(0, int(x0)), max(0, int(y0)), min(w, int(x1)), min(h, int(y1))
    right_size = MIN_AREA * (h * w) <= (x1 - x0) * (y1 - y0) <= MAX_AREA * (h * w)
    return box if right_size and box[2] > box[0] and box[3] > box[1] else None


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
    cell_h, cell_w = max(crop.shape[0] for crop in crops), max(crop.shape[1] for crop in crops)
    collage = np.full((rows * cell_h, columns * cell_w, 3), PADDING, np.uint8)
    for number, crop in enumerate(crops):
        top, left = number // columns * cell_h, number % columns * cell_w
        collage[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return collage
