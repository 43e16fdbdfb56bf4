"""The small inpainter's own first stage: AutoencoderTiny, f4, 4 latent channels of like scale.

Stable Diffusion's pipelines know one scaling factor and no statistics per channel. So the latents are held
near zero mean and equal deviation while the autoencoder learns, and one factor is enough for all of them.

Legend: b batch, c latent channels, h w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from ldm.checkpoints import folder_written_whole, save_part
from ldm.settings.config import CheckedSettings, setting
from tiny.inpainter.loop import LoopConfig, fit

SPREAD = 0.05  # weight of the penalty that holds the statistics of the latents


@dataclass(frozen=True)
class FirstStageConfig(CheckedSettings):
    """Sizes of the autoencoder and how it learns."""

    width: int = setting(32, low=8, help="channels of every level")
    layers: int = setting(2, low=1, help="residual blocks per level")
    latent_channels: int = setting(4, low=1, help="Stable Diffusion's inpainting layout has 4")
    scale: float = setting(
        2.0, low=0.1, help="root mean square of the scaled latents; a solid varies half as much as the room"
    )
    crop: int = setting(64, low=16, help="side of the training crops, pixels")
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=9000, batch=8, lr=1.5e-3, weight_decay=0.0, ema=0.99)
    )


def create(config: FirstStageConfig) -> AutoencoderTiny:
    """A fresh autoencoder, downsampling by 4."""
    levels = 3
    widths = (config.width,) * levels
    encoder = (1, *(config.layers,) * (levels - 1))
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=encoder,
        num_decoder_blocks=encoder[::-1],
        latent_channels=config.latent_channels,
    )


def crops(images_u8: np.ndarray, config: FirstStageConfig, step: int) -> Tensor:
    """The batch of (seed, step) from images (n, h, w, 3): (b, 3, crop, crop) in [-1, 1].

    Some have a box of mid-grey, as the encoder will see images with a hole too.
    """
    rng = np.random.default_rng((config.loop.seed, step))
    limit = images_u8.shape[1] - config.crop + 1
    batch = np.empty((config.loop.batch, config.crop, config.crop, 3), np.float32)
    for row, index in enumerate(rng.integers(len(images_u8), size=len(batch))):
        top, left = rng.integers(limit, size=2)
        crop = images_u8[index, top : top + config.crop, left : left + config.crop]
        batch[row] = crop[:, :: rng.choice((1, -1)), rng.permutation(3)] / 127.5 - 1
        if rng.random() < 0.3:
            y, x = rng.integers(0, config.crop, size=2)
            height, width = rng.integers(12, 48, size=2)
            batch[row, y : y + height, x : x + width] = 0
    return torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def spread(latents: Tensor) -> Tensor:
    """How far the channels of (b, c, h, w) are from mean 0 and deviation 1; a scalar."""
    flat = latents.float()
    return (flat.mean((0, 2, 3)).square() + (flat.std((0, 2, 3)) - 1).square()).mean()


def train(config: FirstStageConfig, images_u8: np.ndarray, run: Path) -> tuple[AutoencoderTiny, float]:
    """Minimise the squared error on images_u8 (n, h, w, 3); saves `run/vae`; returns it and the seconds."""
    torch.manual_seed(config.loop.seed)
    vae = create(config).to(memory_format=torch.channels_last)

    def losses(step: int) -> dict[str, Tensor]:
        image = crops(images_u8, config, step)
        latents = vae.encode(image).latents
        decoded = vae.decode(latents).sample
        return {
            "mse": nn.functional.mse_loss(decoded.float(), image),
            "spread": SPREAD * spread(latents),
        }

    seconds = fit(vae, losses, config.loop, run)
    vae.register_to_config(scaling_factor=round(config.scale / deviation(vae, images_u8[:512]), 4))
    with folder_written_whole(run / "vae") as folder:
        save_part(vae, folder)
    return vae, seconds


def to_pm1(images_u8: np.ndarray) -> Tensor:
    """(n, h, w, 3) uint8 -> (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images_u8)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def deviation(vae: AutoencoderTiny, images_u8: np.ndarray) -> float:
    """Root mean square of the latents of images (n, h, w, 3)."""
    parts = [part for part in np.array_split(images_u8, 32) if len(part)]
    squares = [vae.encode(to_pm1(part)).latents.square().mean() for part in parts]
    return float(torch.stack(squares).mean().sqrt())


@torch.inference_mode()
def round_trip_db(vae: AutoencoderTiny, images_u8: np.ndarray) -> float:
    """Mean PSNR of decode(encode(image)) over images (n, h, w, 3), dB."""
    values: list[float] = []
    for part in np.array_split(images_u8, max(1, len(images_u8) // 16)):
        image = to_pm1(part)
        error = (vae.decode(vae.encode(image).latents).sample.clamp(-1, 1) - image).square().mean((1, 2, 3))
        values.extend((10 * torch.log10(4 / error)).tolist())
    return float(np.mean(values))
