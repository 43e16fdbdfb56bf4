"""What a metric looks at: one region of an image in its dimmed surroundings, or cut out.

Legend: h w pixels; images are RGB (h, w, 3) uint8, masks bool (h, w).
"""

from __future__ import annotations

import cv2
import numpy as np

DIM, KERNEL, SIGMA = 0.1, 15, 20.0  # published: a tenth of the brightness, blurred
PADDED = "A padded image of {}"  # published text for a highlighted region


def highlight(image_u8: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The region as it is, everything else dark and blurred (published for CLIPSim)."""
    dark = cv2.GaussianBlur(DIM * image_u8.astype(np.float32), (KERNEL, KERNEL), SIGMA)
    shown = np.where(mask[..., None], image_u8, dark)
    return np.clip(np.round(shown), 0, 255).astype(np.uint8)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest box (x0, y0, x1, y1) around a region; ValueError for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise ValueError("a mask without any pixel has no box")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def cut_out(image_u8: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image inside the region's box."""
    x0, y0, x1, y1 = box_of(mask)
    return image_u8[y0:y1, x0:x1]
