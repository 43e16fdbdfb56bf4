"""Masks (h, w) bool: their largest piece, feathering and random deformation."""

import cv2
import numpy as np

from datasets.geometry import bbox_of_mask, clip_box
from ldm.decode import row_blocks
from ldm.images import resize

PERTURB_SIDE = 128  # pixels; deformation happens at this size or below; chosen for speed
PERTURB_IOU = 0.3, 0.99  # overlap with the mask (published)
PERTURB_ROUNDS = 250  # of four operations (published)


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece (4-neighbours diagonal included), (h, w) bool."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return mask.astype(bool) if count <= 2 else labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))


def feather_inside(mask: np.ndarray, width: float, *, open_to: np.ndarray | None = None) -> np.ndarray:
    """Blend weight (h, w) float32: 0 outside the mask, rising smoothly to 1 within `width` pixels inside it.

    open_to: (h, w) bool, places towards which the weight does not fall (an occluder: its edge stays sharp).
    The border of the image is open too.
    """
    solid = mask if open_to is None else mask | open_to
    if width < 1 or solid.all():
        return mask.astype(np.float32)
    distance = cv2.distanceTransform(solid.astype(np.uint8), cv2.DIST_L2, 3)
    for rows in row_blocks(len(distance)):
        ramp = np.clip(distance[rows] / (width + 1), 0, 1)
        distance[rows] = np.where(mask[rows], ramp * ramp * (3 - 2 * ramp), 0)
    return distance


def perturb_mask(mask: np.ndarray, rng: np.random.Generator, *, whole: bool = False) -> np.ndarray:
    """A rough version of a mask (h, w) bool that contains it, after random growing and shrinking.

    Rounds of four local dilations or erosions (kernels of 3 to 9 pixels) until the overlap with the mask
    falls below a target drawn from U(0.3, 0.99), at most 250; the largest piece is kept.
    whole: on the whole image at full size (published); otherwise on the object's surroundings, at most
    128 pixels, which is far faster
    """
    target = rng.uniform(*PERTURB_IOU)
    h, w = mask.shape
    if min(h, w) <= 2 or not mask.any():
        return mask.astype(bool)
    if whole:
        return largest_piece(_deform(mask.astype(np.uint8), target, rng))
    x0, y0, x1, y1 = bbox_of_mask(mask)
    margin = max(x1 - x0, y1 - y0, 8)
    left, top, right, bottom = clip_box((x0 - margin, y0 - margin, x1 + margin, y1 + margin), (h, w))
    window = mask[top:bottom, left:right].astype(np.uint8)
    scale = min(1.0, PERTURB_SIDE / max(window.shape))
    small_size = max(3, round(window.shape[0] * scale)), max(3, round(window.shape[1] * scale))
    small = resize(window * 255, small_size) > 127
    rough = largest_piece(_deform(small.astype(np.uint8), target, rng)).astype(np.uint8)
    result = mask.astype(bool)
    result[top:bottom, left:right] |= resize(rough * 255, window.shape, how="linear") > 127
    return result


def _deform(exact: np.ndarray, target_iou: float, rng: np.random.Generator) -> np.ndarray:
    """Random local morphology on exact (h, w) uint8 0/1 until the overlap with it is below the target."""
    h, w = exact.shape
    result, area = exact.copy(), int(np.count_nonzero(exact))
    for _ in range(PERTURB_ROUNDS):
        for _ in range(4):
            left, top = int(rng.integers(w)), int(rng.integers(h))
            right, bottom = int(rng.integers(left + 1, w + 1)), int(rng.integers(top + 1, h + 1))
            if rng.random() < 0.1:
                result[(top + bottom) // 2, (left + right) // 2] = rng.integers(2)
            operation = cv2.dilate if rng.random() < 0.5 else cv2.erode
            part = result[top:bottom, left:right]
            size, form = int(rng.integers(3, 10)), int(rng.integers(4))
            # A square, a disc, or a flat ellipse.
            width, height = [(size, size), (size, size), (size, size // 2), (size // 2, size)][form]
            shape = cv2.MORPH_RECT if form == 0 else cv2.MORPH_ELLIPSE
            part[:] = operation(part, cv2.getStructuringElement(shape, (width, height)))
            np.bitwise_or(result, exact, out=result)
        # The result contains the exact mask, so the overlap is a ratio of areas.
        if area < target_iou * np.count_nonzero(result):
            break
    return result
