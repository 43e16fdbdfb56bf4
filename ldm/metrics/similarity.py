"""Similarity of two images without a network. Legend: h w pixels; images are RGB (h, w, 3) uint8."""

import numpy as np
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

LEAST_ERROR = 1e-2  # squared gray levels; keeps the PSNR of equal images finite


def squared_error(one_u8: np.ndarray, other_u8: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean squared difference in gray levels, over mask (h, w) bool where it is given."""
    difference = one_u8.astype(np.float64) - other_u8
    return float(np.square(difference if mask is None else difference[mask]).mean())


def decibels(mean_squared_error: float) -> float:
    """PSNR of 8-bit images, dB."""
    return float(10 * np.log10(255.0**2 / max(mean_squared_error, LEAST_ERROR)))


def psnr_over(result_u8: np.ndarray, truth_u8: np.ndarray, mask: np.ndarray) -> float:
    """PSNR in dB over mask (h, w) bool."""
    return decibels(squared_error(result_u8, truth_u8, mask))


def ssim_over(result_u8: np.ndarray, truth_u8: np.ndarray, mask: np.ndarray) -> float:
    """Mean over mask (h, w) bool of the structural similarity map of (h, w, 3) uint8 images; 1 = equal."""
    one, other = (torch.from_numpy(image).permute(2, 0, 1)[None].float() for image in (result_u8, truth_u8))
    _, map_ = structural_similarity_index_measure(one, other, data_range=255.0, return_full_image=True)
    return float(map_[0].mean(0).numpy()[mask].mean())
