"""The small inpainter's own first stage: AutoencoderTiny, f4, 4 latent channels of like scale.

Stable Diffusion's pipelines know one scaling factor and no statistics per channel. So the latents are held
near zero mean and equal deviation while the autoencoder learns, and one factor is enough for all of them.

Legend: b batch, c latent channels, h w pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from cldm.create import AutoencoderConfig, create_autoencoder
from ldm.checkpoints import folder_written_whole, save_part
from ldm.settings.config import CheckedSettings, setting
from tiny.compositor.autoencoder import pm1_batch
from tiny.loop import DiffusionStage, Stage

STATISTICS_WEIGHT = 0.05  # of the penalty that holds the statistics of the latents; chosen


@dataclass(frozen=True)
class LatentsConfig(CheckedSettings):
    """Sizes of the autoencoder and how it learns."""

    width: int = setting(32, low=8, help="channels of every level")
    layers: int = setting(2, low=1, help="residual blocks per level")
    latent_channels: int = setting(4, low=1, help="Stable Diffusion's inpainting layout has 4")
    scale: float = setting(
        2.0, low=0.1, help="root mean square of the scaled latents; a solid varies half as much as the room"
    )
    crop: int = setting(64, low=16, help="side of the training crops, pixels")
    loop: DiffusionStage = setting(
        DiffusionStage(steps=9000, batch=8, lr=1.5e-3, weight_decay=0.0, ema=0.99), help="how it learns"
    )


def train_autoencoder(
    config: LatentsConfig, images_u8: np.ndarray, out: Path
) -> tuple[AutoencoderTiny, Stage]:
    """Minimise the squared error on images_u8 (n, h, w, 3) and hold the latents near mean 0, deviation 1.

    Saves `out/vae`.
    """
    torch.manual_seed(config.loop.seed)
    sizes = AutoencoderConfig("tiny", (config.width,) * 3, config.layers, config.latent_channels)
    vae = create_autoencoder(sizes).to(memory_format=torch.channels_last)

    @torch.autocast("cpu", torch.bfloat16, enabled=config.loop.bf16)
    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        """On random crops; some have a box of mid-grey, as the encoder will see images with a hole too."""
        rng = np.random.default_rng((config.loop.seed, step))
        batch = np.empty((config.loop.batch, config.crop, config.crop, 3), np.float32)
        for row, index in enumerate(rng.integers(len(images_u8), size=len(batch))):
            top, left = rng.integers(images_u8.shape[1] - config.crop + 1, size=2)
            crop = images_u8[index, top : top + config.crop, left : left + config.crop]
            batch[row] = crop[:, :: rng.choice((1, -1)), rng.permutation(3)] / 127.5 - 1
            if rng.random() < 0.3:
                y, x = rng.integers(0, config.crop, size=2)
                height, width = rng.integers(12, 48, size=2)
                batch[row, y : y + height, x : x + width] = 0
        image = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        latents = vae.encode(image).latents
        error = nn.functional.mse_loss(vae.decode(latents).sample.float(), image)
        flat = latents.float()
        spread = (flat.mean((0, 2, 3)).square() + (flat.std((0, 2, 3)) - 1).square()).mean()
        penalty = STATISTICS_WEIGHT * spread
        return error + penalty, {"mse": error.item(), "spread": penalty.item()}

    stage = Stage("first stage", vae, config.loop, out).train(loss)
    with torch.inference_mode():
        parts = [part for part in np.array_split(images_u8[:512], 32) if len(part)]
        squares = torch.stack([vae.encode(pm1_batch(part)).latents.square().mean() for part in parts])
    vae.register_to_config(scaling_factor=round(config.scale / float(squares.mean().sqrt()), 4))
    with folder_written_whole(out / "vae") as folder:
        save_part(vae, folder)
    return vae, stage
