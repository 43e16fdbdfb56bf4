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
