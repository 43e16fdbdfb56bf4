"""Annotations of public datasets as masks: run lengths, polygons, id images, JSON files.

Legend: h w pixels. Masks are bool (h, w); sizes are (h, w). Run lengths and polygons are those of COCO, which
LVIS, SA-1B, UVO and YouTube-VIS use too; they are decoded by pycocotools.
"""

from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths

from datasets.base import Rejected
from datasets.geometry import Size
from ldm.decode import opened

COARSE = 4  # ids are looked for on every fourth pixel; usable objects are far larger


def json_entry(document: Any, key: str, path: Path) -> Any:
    """One entry of a JSON object; ValueError names the file and the entry."""
    if not isinstance(document, dict) or key not in document:
        raise ValueError(f"{path} has no entry {key!r}, so it is not the expected annotation file")
    return document[key]


def segment_mask(segmentation: Any, size_hw: Size, where: str) -> np.ndarray:
    """Bool (h, w) of a COCO segmentation: polygons, or run lengths, compressed or not.

    segmentation: as in the JSON file, or polygons as a tuple of arrays; where: what an error names
    """
    h, w = size_hw
    if isinstance(segmentation, tuple):
        segmentation = [polygon.tolist() for polygon in segmentation]
    try:
        if isinstance(segmentation, list):
            if not segmentation or not all(
                isinstance(polygon, list) and len(polygon) >= 6 for polygon in segmentation
            ):
                raise ValueError("a polygon is a list of at least 6 numbers")
            coded = run_lengths.merge(run_lengths.frPyObjects(segmentation, h, w))
        elif isinstance(segmentation["counts"], list):
            coded = run_lengths.frPyObjects(segmentation, *segmentation["size"])
        else:
            coded = segmentation
        mask = run_lengths.decode(coded).astype(bool)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"{where}: the segmentation cannot be decoded: {error}") from None
    if mask.shape != (h, w):
        shown = f"{mask.shape[1]} x {mask.shape[0]}"
        raise ValueError(f"{where}: the segmentation is {shown} pixels, its image is {w} x {h}")
    return mask


def read_ids(path: Path) -> np.ndarray:
    """The ids (h, w) of an image: palette index, gray value, or R + 256 G + 65536 B."""
    with opened(path) as image:
        pixels = np.asarray(image)
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] < 3:
        return pixels[..., 0]
    return pixels[..., :3].astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def objects_in(ids: np.ndarray) -> set[int]:
    """The ids of (h, w) without the background 0."""
    return {int(label) for label in np.unique(ids[::COARSE, ::COARSE])} - {0}


def id_mask(path: Path, label: int) -> np.ndarray:
    """Bool (h, w) of one id of an id image; Rejected when it does not occur."""
    return mask_of_id(read_ids(path), label, path)


def mask_of_id(ids: np.ndarray, label: int, where: Path) -> np.ndarray:
    """Bool (h, w) where the ids equal `label`; Rejected when it does not occur."""
    if not (ids == label).any():
        raise Rejected(f"object absent: id {label} in {where}")
    return ids == label
