"""The published inference step by step, in its own order and with its own rounding: what a preset must equal.

Boxes here are (y1, y2, x1, x2) as in that code, H W the size of the background.
"""

from dataclasses import dataclass

import cv2
import numpy as np

Rows = tuple[int, int, int, int]


@dataclass(frozen=True)
class Published:
    """What one place leaves behind."""

    visible: np.ndarray  # (H, W) bool
    fused_u8: np.ndarray  # (H, W), the file of the fused depth
    depth_u8: np.ndarray  # (H, W), what the pre-processing makes of that file
    region: Rows
    crop: Rows


def minmax(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return cv2.normalize(values.astype(np.float32), None, low, high, cv2.NORM_MINMAX)


def box_of(mask: np.ndarray) -> Rows:
    """First and last set row and column; the last ones are then sliced away."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def expanded(box: Rows, ratio: float, size: tuple[int, int]) -> Rows:
    (y1, y2, x1, x2), (h, w) = box, size
    yc, xc, tall, wide = (y1 + y2) / 2, (x1 + x2) / 2, ratio * (y2 - y1 + 1), ratio * (x2 - x1 + 1)
    edges = int(yc - tall / 2), int(yc + tall / 2), int(xc - wide / 2), int(xc + wide / 2)
    return max(0, edges[0]), min(h, edges[1]), max(0, edges[2]), min(w, edges[3])


def squared(box: Rows, size: tuple[int, int]) -> Rows:
    (y1, y2, x1, x2), (h, w) = box, size
    yc, xc = (y1 + y2) // 2, (x1 + x2) // 2
    if y2 - y1 >= x2 - x1:
        x1, x2 = xc - (y2 - y1) // 2, xc + (y2 - y1) // 2
    else:
        y1, y2 = yc - (x2 - x1) // 2, yc + (x2 - x1) // 2
    return max(0, y1), min(h, y2), max(0, x1), min(w, x2)


def crop_of(mask: np.ndarray, ratio: float) -> tuple[Rows, Rows]:
    """Region and crop of a target mask (H, W) bool."""
    region = expanded(box_of(mask), 1.1, mask.shape)
    return region, squared(expanded(region, ratio, mask.shape), mask.shape)


def place(
    background_depth: np.ndarray,
    object_depth: np.ndarray,
    object_mask: np.ndarray,
    box_xywh: tuple[float, float, float, float],
    extent: tuple[float, float],
    ratio: float,
) -> Published:
    """Depths (H, W) and (h, w) in any range, mask (h, w) bool; box in fractions, extent (far, near)."""
    (h, w), (x, y, wide, tall) = background_depth.shape, box_xywh
    fused, (y1, y2, x1, x2) = minmax(background_depth, 0, 255), box_of(object_mask)
    relief = minmax((object_depth * object_mask)[y1:y2, x1:x2], 255 * extent[0], 255 * extent[1])
    size = int(w * wide), int(h * tall)
    relief, mask = cv2.resize(relief, size), cv2.resize(object_mask[y1:y2, x1:x2].astype(np.uint8), size)
    left, top = int(w * x), int(h * y)
    part = np.s_[top : top + size[1], left : left + size[0]]
    visible = np.zeros((h, w), bool)
    visible[part] = (mask == 1) & (relief > fused[part])
    fused[part] = np.where(visible[part], relief, fused[part])
    fused_u8 = np.rint(fused).astype(np.uint8)
    region, crop = crop_of(visible, ratio)
    return Published(visible, fused_u8, minmax(fused_u8, 0, 255).astype(np.uint8), region, crop)


def grown(mask: np.ndarray, crop: Rows, amount: float = 0.02) -> np.ndarray:
    """The mask inside the crop after the published growth by offsets -k .. k - 1."""
    y1, y2, x1, x2 = crop
    part = mask[y1:y2, x1:x2]
    (h, w), result = part.shape, np.zeros_like(part)
    down, right = int(amount * h), int(amount * w)
    for row, column in np.argwhere(part):
        rows = slice(max(0, row - down), max(0, row + down))
        result[rows, max(0, column - right) : max(0, column + right)] = True
    return result


def pasted(background_u8: np.ndarray, generated: np.ndarray, crop: Rows) -> np.ndarray:
    """The crop's rectangle less 5 pixels from a painted crop (512, 512, 3) float in [0, 255]."""
    (y1, y2, x1, x2), result = crop, background_u8.copy()
    side = max(y2 - y1, x2 - x1)
    image = cv2.resize(generated[1:], (side, side))
    top, left = (side - (y2 - y1)) // 2, (side - (x2 - x1)) // 2
    image = image[top : top + y2 - y1, left : left + x2 - x1]
    result[y1 + 5 : y2 - 5, x1 + 5 : x2 - 5] = image[5:-5, 5:-5]
    return result
