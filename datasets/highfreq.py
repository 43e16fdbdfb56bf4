"""High-frequency map of the reference: the detail hint (AnyDoor eq. 2, Bifrost App. B.2 eq. 9).

zero      nothing: what the released compositor weights were trained with
gray255   strength of the edges, gray
color     edges times the object's colours: what the released AnyDoor weights were trained with
cutout    the object's own pixels
"""

import cv2
import numpy as np

from ldm.images import resize

HF_MODES = ("zero", "gray255", "color", "cutout")
SIDE = 256  # pixels; the map is computed at this size


def edge_strength(image_u8: np.ndarray, mask: np.ndarray, threshold: int) -> np.ndarray:
    """(h, w) uint8: mean of |d/dx| and |d/dy|, the largest of the channels; 0 outside the eroded mask.

    threshold: 0 to 255, weaker edges are 0
    """
    across = cv2.convertScaleAbs(cv2.Sobel(image_u8, cv2.CV_16S, 1, 0, ksize=3))
    down = cv2.convertScaleAbs(cv2.Sobel(image_u8, cv2.CV_16S, 0, 1, ksize=3))
    strength = cv2.addWeighted(across, 0.5, down, 0.5, 0).max(axis=-1)
    inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8), iterations=2)
    return np.where((inner > 0) & (strength >= threshold), strength, 0).astype(np.uint8)


def high_frequency(image_u8: np.ndarray, mask: np.ndarray, mode: str, threshold: int = 50) -> np.ndarray:
    """Detail map (h, w, 3) uint8 of image (h, w, 3) inside mask (h, w) bool."""
    if mode not in HF_MODES:
        raise ValueError(f"unknown hf_mode {mode!r}; allowed: {', '.join(HF_MODES)}")
    if mode == "zero":
        return np.zeros_like(image_u8)
    if mode == "cutout":
        return image_u8 * mask[..., None].astype(np.uint8)
    size = image_u8.shape[:2]
    side = (SIDE, SIDE)
    image = cv2.resize(image_u8, side)
    # Linear resizing of a 0/1 float mask, then 0.5, keeps the published silhouette.
    inside = cv2.resize(mask.astype(np.float32), side) > 0.5
    strength = edge_strength(image, inside, threshold)[..., None]
    if mode == "gray255":
        map_u8 = np.repeat(strength, 3, axis=-1)
    else:
        map_u8 = (strength / 255.0 * image).astype(np.uint8)
    return resize(map_u8, (size[0], size[1]), how="linear")


def collage(
    background_u8: np.ndarray, detail_u8: np.ndarray, coverage_01: np.ndarray, hide: np.ndarray | None
) -> np.ndarray:
    """The detail hint's image (h, w, 3) uint8: background, black where hidden, the object's detail.

    coverage_01: (h, w), how much of a pixel the visible object covers
    hide:        (h, w) bool, where the background must not be seen; None shows all of it
    """
    if hide is None:
        result = background_u8.copy()
    else:
        result = cv2.bitwise_and(background_u8, background_u8, mask=(~hide).astype(np.uint8))
    rows, columns = np.flatnonzero(coverage_01.any(axis=1)), np.flatnonzero(coverage_01.any(axis=0))
    if len(rows):
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        under, part = result[box].astype(np.float32), coverage_01[box][..., None]
        result[box] = np.rint(under + part * (detail_u8[box] - under)).astype(np.uint8)
    return result
