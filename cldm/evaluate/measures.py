"""What is measured on a composite: identity among candidates, depth order; arrays in, numbers out.

Legend: h w pixels.  depth_01 is relative inverse depth, 1 = nearest.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

REACH = 12  # pixels from the common border within which depth is compared
MIN_ZONE = 8  # pixels that each side needs there
SURE = 0.05  # difference of true depth from which an order is asked for


def nearest_candidate(result_u8: np.ndarray, candidates_u8: Sequence[np.ndarray], mask: np.ndarray) -> int:
    """Index of the candidate image with the smallest mean absolute RGB difference over mask (h, w) bool."""
    shown = result_u8[mask].astype(np.int16)
    distances = [np.abs(shown - image[mask]).mean() for image in candidates_u8]
    return int(np.argmin(distances))


def border_zones(placed: np.ndarray, other: np.ndarray, reach: int = REACH) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each mask (h, w) bool that lie within `reach` of the other mask."""

    def near(mask: np.ndarray) -> np.ndarray:
        if not mask.any():
            return np.zeros_like(mask)
        return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3) <= reach

    return placed & near(other), other & near(placed)


def shown_order(depth_01: np.ndarray, placed: np.ndarray, other: np.ndarray) -> float | None:
    """Median depth of the placed object minus the other's beside their common border; > 0: placed is nearer.

    None where either side shows fewer than MIN_ZONE pixels.
    """
    first, second = border_zones(placed, other)
    if min(first.sum(), second.sum()) < MIN_ZONE:
        return None
    return float(np.median(depth_01[first]) - np.median(depth_01[second]))


def order_is_right(
    depth_01: np.ndarray, placed: np.ndarray, other: np.ndarray, placed_is_nearer: bool
) -> bool | None:
    """Whether the depth (h, w) shows the order that was asked for; None where it cannot be seen."""
    shown = shown_order(depth_01, placed, other)
    return None if shown is None else (shown > 0) == placed_is_nearer and shown != 0


def occlusion_is_right(
    result_u8: np.ndarray, right_u8: np.ndarray, wrong_u8: np.ndarray, overlap: np.ndarray
) -> bool:
    """Whether the image shows the right one of two solids where their outlines overlap, (h, w) bool.

    right_u8, wrong_u8: (h, w, 3) renders with the right and with the wrong one in front
    """
    return nearest_candidate(result_u8, [right_u8, wrong_u8], overlap) == 0


def pixel_order(
    estimated_01: np.ndarray, truth_01: np.ndarray, rng: np.random.Generator, pairs: int = 2000
) -> float:
    """Share of random pixel pairs, truly at least SURE apart, that the estimate puts in the right order."""
    one, other = rng.integers(truth_01.size, size=(2, pairs))
    true = truth_01.ravel()[one] - truth_01.ravel()[other]
    found = estimated_01.ravel()[one] - estimated_01.ravel()[other]
    sure = np.abs(true) >= SURE
    return float((np.sign(found) == np.sign(true))[sure].mean()) if sure.any() else 1.0
