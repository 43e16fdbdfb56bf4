"""How visible the edges of a pasted rectangle are, whatever stores or decodes the image afterwards."""

import cv2
import numpy as np

from datasets.geometry import bbox_of_mask
from datasets.masks import largest_piece

SMOOTH = 9  # pixels; over so many the errors of JPEG (blocks of 8) and of noise cancel; chosen
CHANGED = 3.0  # gray levels of a smoothed change that is none of these errors; chosen
NOISE = 3.5  # lower quartiles of the smoothed change: about three standard deviations of noise; chosen
STRIP, GAP = 3, 2  # pixels beside an edge that are compared, and left out at it (a decoder blurs it); chosen
REACH = SMOOTH // 2 + 1  # pixels between an edge and where the smoothed change ends, at most
LEAST = 4  # times SMOOTH: the side of a piece whose edges can be told from an outline; chosen
PARTS = 8  # of an edge; chosen
UNEVEN = 1.5  # mean step over its lower quartile, at most: an outline touches an edge at few points; chosen


def seam_contrast(before_u8: np.ndarray, after_u8: np.ndarray) -> float:
    """Step of the change (h, w, 3) across the edges of the largest changed piece, in gray levels.

    Changes are signed and averaged along parts of an edge, so noise and compression cancel and a shift of
    colours does not. 0 where nothing changed, or all of the image. An object with a free outline touches the
    edges of its box at few points and hardly counts.
    """
    change = after_u8.astype(np.float32) - before_u8
    smooth = np.abs(cv2.blur(change, (SMOOTH, SMOOTH))).max(axis=2)
    changed = (smooth > max(CHANGED, NOISE * float(np.quantile(smooth, 0.25)))).astype(np.uint8)
    wide = np.ones((2 * SMOOTH, 2 * SMOOTH), np.uint8)
    changed = cv2.morphologyEx(changed, cv2.MORPH_OPEN, wide)  # without spots of noise at its edges
    if not changed.any():
        return 0.0
    x0, y0, x1, y1 = bbox_of_mask(largest_piece(changed))
    if min(x1 - x0, y1 - y0) < LEAST * SMOOTH:
        return 0.0
    steps, lengths = [], []
    turned = ((change, y0, y1, x0, x1), (change.transpose(1, 0, 2), x0, x1, y0, y1))
    for image, start, end, low, high in turned:
        parts = np.array_split(image[start + REACH : end - REACH], PARTS)  # without the corners
        profile = np.stack([part.mean(axis=0) for part in parts])  # (parts, columns, 3)
        for edge in (low, high):
            if 0 < edge < profile.shape[1]:  # the border of the image is no edge
                columns = range(edge - REACH + 1, edge + REACH)
                steps.append(max(step_at(profile, column) for column in columns))
                lengths.append(end - start)
    return float(np.average(steps, weights=lengths)) if steps else 0.0


def step_at(profile: np.ndarray, column: int) -> float:
    """Mean step of the parts of profile (parts, columns, 3) at a column, if it is there in most of them."""
    inner, outer = profile[:, column + GAP :][:, :STRIP], profile[:, : max(column - GAP, 0)][:, -STRIP:]
    if not inner.size or not outer.size:
        return 0.0
    steps = np.abs(inner.mean(axis=1) - outer.mean(axis=1)).mean(axis=1)
    return float(min(steps.mean(), UNEVEN * np.quantile(steps, 0.25)))
