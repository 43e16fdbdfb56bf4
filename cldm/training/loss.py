"""Weighted squared error. Legend: b examples, c latent channels, h w latent pixels, H W pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def min_snr_weight(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float, velocity: bool) -> Tensor:
    """(b,) weights of timesteps, min(SNR, gamma) / SNR for noise and / (SNR + 1) for velocity.

    Hang et al. 2023, equation 11: every prediction is weighted as if the clean latents were predicted.
    """
    alpha = alphas_cumprod.to(timesteps.device)[timesteps].double()
    snr = alpha / (1 - alpha)
    clipped = snr.clamp(max=gamma)
    # Without any signal (SNR 0) the limit of min(SNR, gamma) / SNR is 1.
    weight = clipped / (snr + 1) if velocity else torch.where(snr > 0, clipped / snr.clamp_min(1e-12), 1.0)
    return weight.float()


def weighted_error(
    prediction: Tensor, wanted: Tensor, edit_mask: Tensor, mask_weight: float, weight: Tensor | None = None
) -> Tensor:
    """Mean squared error of (b, c, h, w); latent pixels of the edit mask count (1 + mask_weight) times.

    edit_mask: (b, 1, H, W) bool;  weight: (b,) of the examples
    """
    error = (prediction.float() - wanted.float()).square()
    if weight is not None:
        error = error * weight[:, None, None, None]
    if not mask_weight:
        return error.mean()
    inside = functional.interpolate(edit_mask.float(), size=error.shape[-2:], mode="area")
    place = 1 + mask_weight * inside
    return (place * error).mean() / place.mean()
