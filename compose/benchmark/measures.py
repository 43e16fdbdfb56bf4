"""What is measured on one composite of any system: drift, seam, depth order; arrays in, numbers out.

Legend: h w pixels of the image.
"""

import cv2
import numpy as np

from cldm.evaluate.measures import order_is_right
from datasets.geometry import Box01, bbox_of_mask, box_to_pixels, expand_box
from ldm.metrics.similarity import decibels, squared_error

MARGIN = 1.2  # the region outside which nothing should change, over the box of the object
VISIBLE = 8  # gray levels from which a change is seen; smaller ones are compression or an autoencoder
SMALLEST = 64  # pixels of a placed object that is seen at all


def drift(before_u8: np.ndarray, after_u8: np.ndarray, box01: Box01) -> dict[str, float]:
    """What changed outside 1.2 times the box: fraction of pixels, bytes, PSNR in dB (100: nothing)."""
    size = (before_u8.shape[0], before_u8.shape[1])
    x0, y0, x1, y1 = expand_box(box_to_pixels(box01, size), MARGIN, size)
    mask = np.ones(size, bool)
    mask[y0:y1, x0:x1] = False
    if not mask.any():
        return {}
    changed = before_u8[mask] != after_u8[mask]
    error = squared_error(after_u8, before_u8, mask)
    return {
        "drift_pixels": float(changed.any(axis=1).mean()),
        "drift_bytes": float(changed.sum()),
        "drift_psnr_db": decibels(error) if error else 100.0,
    }


def seam(before_u8: np.ndarray, after_u8: np.ndarray) -> float:
    """Mean change in gray levels along the inner edge of the smallest rectangle that holds every change.

    A pasted rectangle with shifted colours shows there; an object with a free outline hardly touches it.
    """
    change = np.abs(after_u8.astype(np.float32) - before_u8).mean(axis=2)
    if not change.any():
        return 0.0
    x0, y0, x1, y1 = bbox_of_mask(change > 0)
    inside = change[y0:y1, x0:x1]
    edge = [inside[0], inside[-1], inside[1:-1, 0], inside[1:-1, -1]]
    return float(np.concatenate(edge).mean())


def placed_mask(before_u8: np.ndarray, after_u8: np.ndarray, box01: Box01) -> np.ndarray:
    """(h, w) bool: where something new is seen inside the box, single pixels left out."""
    seen = (np.abs(after_u8.astype(np.int16) - before_u8).max(axis=2) > VISIBLE).astype(np.uint8)
    seen = cv2.morphologyEx(seen, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
    inside = np.zeros(seen.shape, bool)
    x0, y0, x1, y1 = box_to_pixels(box01, (seen.shape[0], seen.shape[1]))
    inside[y0:y1, x0:x1] = True
    return seen & inside


def order(depth_01: np.ndarray, placed: np.ndarray, anchor: np.ndarray, relation: str) -> float | None:
    """1 where the re-estimated depth (h, w) shows the instructed order of object and anchor, else 0.

    None for other relations, and where either hides the other completely. An object that is not seen at all
    has no order to show: 0 when it was to stand in front, None when behind, where it may be hidden.
    """
    if relation not in ("in front of", "behind"):
        return None
    front = relation == "in front of"
    if placed.sum() < SMALLEST:
        return 0.0 if front else None
    right = order_is_right(depth_01, placed, anchor & ~placed, front)
    return None if right is None else float(right)
