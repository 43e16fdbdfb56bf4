"""Soft edges of a cut-out: how much of each pixel along its outline it covers, and its own colour there.

Alpha by the closed form of Levin et al. (2008), colours by blurred fusion (Forte 2021).
Legend: h w pixels of the image, n windows, u unknown pixels.
"""

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import spsolve

from ldm.images import fitted, resize

BAND = 4 / 256  # half the width of the band round the outline, over the object's longer side (chosen)
LEAST_BAND, MATTING_SIDE = 2, 512  # pixels; larger objects are solved at this size, in about a second
EPSILON = 1e-6  # variance of the colours in a window, [0, 1]^2, below which it is plain
TRUST = 0.01  # weight of the mask per pixel of distance from its outline; both best on rendered hair
BLURS = 12, 3  # radii of the two passes of the fusion, in half widths of the band (chosen)


def soft_alpha(rgb_u8: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Coverage (h, w) float32 in [0, 1] of an image (h, w, 3) by the object of a mask (h, w) bool.

    1 and 0 as the mask says, but in a band round its outline. A mask without outline is given back.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    alpha = mask.astype(np.float32)
    if mask.all() or not mask.any():
        return alpha
    longest = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    reach = band_of(longest) + 2
    part = tuple(slice(max(0, line[0] - reach), line[-1] + 1 + reach) for line in (rows, columns))
    size = fitted(mask[part].shape, MATTING_SIDE)
    small = resize(mask[part], size, how="linear") if size != mask[part].shape else mask[part]
    unknown = outline_band(small, band_of(round(longest * size[0] / mask[part].shape[0])))
    if not unknown.any() or unknown.all():
        return alpha
    solved = _closed_form(resize(rgb_u8[part], size).astype(np.float64) / 255, small, unknown)
    alpha[part] = resize(solved, mask[part].shape, how="linear")
    near = outline_band(mask, reach - 2)
    return np.where(near, np.clip(alpha, 0, 1), mask).astype(np.float32)


def own_colours(rgb_u8: np.ndarray, alpha_01: np.ndarray) -> np.ndarray:
    """The object's colours (h, w, 3) uint8 of an image, where alpha_01 (h, w) says that both are seen.

    Pixels that the object covers wholly keep their bytes.
    """
    mixed = (alpha_01 > 0) & (alpha_01 < 1)
    if not mixed.any():
        return rgb_u8
    rows, columns = np.flatnonzero((alpha_01 > 0).any(1)), np.flatnonzero((alpha_01 > 0).any(0))
    width = band_of(max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1)
    reach = BLURS[0] * width
    part = tuple(slice(max(0, line[0] - reach), line[-1] + 1 + reach) for line in (rows, columns))
    image, alpha = rgb_u8[part].astype(np.float32), alpha_01[part][..., None].astype(np.float32)
    front = back = image
    for radius in BLURS:
        size = (2 * radius * width + 1,) * 2
        weight = cv2.blur(alpha[..., 0], size)[..., None]
        near = cv2.blur(front * alpha, size) / (weight + 1e-5)
        far = cv2.blur(back * (1 - alpha), size) / (1 - weight + 1e-5)
        front = np.clip(near + alpha * (image - alpha * near - (1 - alpha) * far), 0, 255)
        back = far
    result = rgb_u8.copy()
    result[part] = np.where(mixed[part][..., None], np.rint(front), rgb_u8[part])
    return result


def band_of(longest: int) -> int:
    """Half the width of the band, pixels, of an object that is so many pixels long."""
    return max(LEAST_BAND, round(BAND * longest))


def outline_band(mask: np.ndarray, reach: int) -> np.ndarray:
    """(h, w) bool: what lies within `reach` pixels of the outline of a mask (h, w) bool, on either side."""
    kernel, solid = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2), mask.astype(np.uint8)
    return cv2.dilate(solid, kernel) > cv2.erode(solid, kernel)


def alpha_at_outline(mask: np.ndarray, alpha_u8: np.ndarray) -> np.ndarray:
    """(h, w) float32 coverage by an object, of a file's alpha: 0 away from its mask (h, w) bool."""
    near = mask | outline_band(mask, band_of(max(mask.shape)))
    return np.where(near, alpha_u8.astype(np.float32) / 255, np.float32(0))


def _closed_form(image_01: np.ndarray, mask: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Levin et al. eq. 12 over the windows of 3 x 3 with an unknown pixel, and the mask; (h, w) float32."""
    h, w = mask.shape
    indices = sliding_window_view(np.arange(h * w).reshape(h, w), (3, 3)).reshape(-1, 9)
    indices = indices[unknown.ravel()[indices].any(axis=1)]  # (n, 9)
    colours = image_01.reshape(-1, 3)[indices]  # (n, 9, 3)
    offsets = colours - colours.mean(axis=1, keepdims=True)
    spread = offsets.transpose(0, 2, 1) @ offsets / 9 + EPSILON / 9 * np.eye(3)
    affinity = (1 + offsets @ np.linalg.solve(spread, offsets.transpose(0, 2, 1))) / 9  # (n, 9, 9)
    row, column = np.repeat(indices, 9, axis=1), np.tile(indices, 9)
    values = (np.eye(9) - affinity).reshape(len(indices), 81)
    laplacian = coo_array((values.ravel(), (row.ravel(), column.ravel())), shape=(h * w, h * w)).tocsr()
    free, alpha = np.flatnonzero(unknown), mask.ravel().astype(np.float64)
    fixed = np.where(unknown.ravel(), 0, alpha)
    solid, rows = mask.astype(np.uint8), laplacian[free]
    away = sum(cv2.distanceTransform(side, cv2.DIST_L2, 3) for side in (solid, 1 - solid))
    trust = TRUST * np.asarray(away, np.float64).ravel()[free]
    alpha[free] = spsolve((rows[:, free] + diags_array(trust)).tocsc(), trust * alpha[free] - rows @ fixed)
    return np.clip(alpha, 0, 1).reshape(h, w).astype(np.float32)
