"""What is measured on a composite: identity among candidates, depth order; arrays in, numbers out.

Legend: h w pixels.  depth_01 is relative inverse depth, 1 = nearest.
"""

from collections.abc import Sequence

import cv2
import numpy as np

REACH = 12  # pixels from the common border within which depth is compared; chosen
MIN_ZONE = 8  # pixels that each side needs there; chosen
SURE = 0.05  # difference of true depth from which two pixels have an order; chosen


def nearest_candidate(result_u8: np.ndarray, candidates_u8: Sequence[np.ndarray], mask: np.ndarray) -> int:
    """Index of the candidate image with the smallest mean absolute RGB difference over mask (h, w) bool."""
    shown = result_u8[mask].astype(np.int16)
    distances = [np.abs(shown - image[mask]).mean() for image in candidates_u8]
    return int(np.argmin(distances))


def order_is_right(
    depth_01: np.ndarray, placed: np.ndarray, other: np.ndarray, placed_is_nearer: bool
) -> bool | None:
    """Whether the median depths beside the common border show this order.

    None where either side shows fewer than MIN_ZONE pixels.
    """
    if not placed.any() or not other.any():
        return None
    first, second = (  # pixels of each mask near the other one
        mask & (cv2.distanceTransform((~beside).astype(np.uint8), cv2.DIST_L2, 3) <= REACH)
        for mask, beside in ((placed, other), (other, placed))
    )
    if min(first.sum(), second.sum()) < MIN_ZONE:
        return None
    difference = float(np.median(depth_01[first]) - np.median(depth_01[second]))
    return (difference > 0) == placed_is_nearer and difference != 0


def pixel_order(
    estimated_01: np.ndarray, truth_01: np.ndarray, rng: np.random.Generator, pairs: int = 2000
) -> float:
    """Fraction of random pixel pairs, at least SURE apart, that the estimate puts in the right order."""
    first, second = rng.integers(truth_01.size, size=(2, pairs))
    true = truth_01.ravel()[first] - truth_01.ravel()[second]
    estimated = estimated_01.ravel()[first] - estimated_01.ravel()[second]
    sure = np.abs(true) >= SURE
    return float((np.sign(estimated) == np.sign(true))[sure].mean()) if sure.any() else 1.0
