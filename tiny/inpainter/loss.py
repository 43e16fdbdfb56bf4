"""The loss of the small inpainter: v-prediction, every mask of equal weight whatever its size.

Legend: b batch, c latent channels, h w latent pixels, t tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from inpainting.models.text_to_image.rca import region_kwargs
from inpainting.tokens import ENCODINGS
from ldm.settings.config import CheckedSettings, setting
from tiny.inpainter.examples import Example, UnetInputs
from tiny.regions import box_masks

DROP_PROMPT = 0.1  # condition dropout of classifier-free guidance, as published
OUTSIDE = 0.1  # weight of the loss over the whole image beside that inside the masks


@dataclass(frozen=True)
class Conditioning(CheckedSettings):
    """How prompts reach their masks.

    rectified: with region maps, else all prompts are joined with periods and read everywhere
    encoding:  one token sequence for all prompts of an image (published), or one for each
    """

    rectified: bool
    encoding: str = setting("separate", choices=ENCODINGS)


def region_arguments(
    examples: Sequence[Example], owners: Tensor, latent_hw: tuple[int, int], levels: int
) -> dict[str, Any]:
    """The cross_attention_kwargs of a batch; absent regions are empty rows."""
    size = (examples[0].image_u8.shape[0], examples[0].image_u8.shape[1])
    most = max(len(example.boxes) for example in examples)
    masks = np.zeros((len(examples), most, *size), bool)
    for row, example in zip(masks, examples, strict=True):
        row[: len(example.boxes)] = box_masks(example.boxes, size)
    return region_kwargs(torch.from_numpy(masks), owners, latent_hw, levels=levels)


def loss(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    known: UnetInputs,
    embeddings: Tensor,
    generator: torch.Generator,
    cross_attention_kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """Squared error of v, averaged over each image's masked cells, plus a little of the whole image.

    embeddings: (b, t, width)
    """
    noise = torch.randn(known.latents.shape, generator=generator)
    t = torch.randint(scheduler.config.num_train_timesteps, (len(noise),), generator=generator)
    noisy = scheduler.add_noise(known.latents, noise, t)
    x = torch.cat([noisy, known.mask, known.masked], dim=1)
    predicted = unet(
        x, t, encoder_hidden_states=embeddings, cross_attention_kwargs=cross_attention_kwargs
    ).sample
    target = scheduler.get_velocity(known.latents, noise, t)
    error = (predicted.float() - target).square().mean(1, keepdim=True)
    inside = (error * known.mask).sum((1, 2, 3)) / known.mask.sum((1, 2, 3)).clamp(min=1)
    return inside.mean() + OUTSIDE * error.mean()
