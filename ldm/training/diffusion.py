"""What a denoising network learns: the target of its prediction, and the loss weight of each timestep.

Legend: b examples, c latent channels, h w latent pixels.
"""

from typing import Any

import torch
from diffusers.training_utils import compute_snr
from torch import Tensor


def prediction_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """(b, c, h, w): the noise (epsilon), or the velocity (Salimans and Ho 2022)."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise ValueError(f"the model predicts {kind!r}; training knows epsilon and v_prediction")


def min_snr_weight(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """(b,) loss weights: min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for velocity; gamma 0: all 1.

    Hang et al. 2023, equation 11: every prediction is weighted as if the clean latents were predicted.
    """
    if not gamma:
        return torch.ones(len(timesteps), device=timesteps.device)
    snr = compute_snr(scheduler, timesteps)
    clipped = snr.clamp(max=gamma)
    if scheduler.config.prediction_type == "v_prediction":
        return clipped / (snr + 1)
    # Without any signal (SNR 0) the limit of min(SNR, gamma) / SNR is 1.
    return torch.where(snr > 0, clipped / snr.clamp_min(1e-12), 1.0)
