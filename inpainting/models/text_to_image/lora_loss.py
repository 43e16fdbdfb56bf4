"""What the inpainter learns: to predict the noise of a masked painting, with or without rectified attention.

Legend: b images, c latent channels, h w latent pixels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from inpainting.models.text_to_image.load import Inpainter
from inpainting.models.text_to_image.rca import region_kwargs
from inpainting.models.text_to_image.sample import known_channels
from inpainting.tokens import encode_plans, plan_tokens
from ldm.denoise import noise_for
from ldm.training.diffusion import min_snr_weight, prediction_target


@dataclass(eq=False)
class LoraLoss:
    """Mean squared error of the UNet's prediction over all latent pixels (published).

    rca: regions restrict the cross-attention;  layout, encoding: see `layout` and `tokens`
    noise_offset: extra noise per channel;  min_snr: limit of the weights by signal-to-noise ratio, 0 = none
    """

    model: Inpainter
    rca: bool
    layout: str
    encoding: str
    noise_offset: float = 0.0
    min_snr: float = 0.0

    def __post_init__(self) -> None:
        self.schedule = DDPMScheduler.from_config(self.model.scheduler_config)
        self.levels = len(self.model.unet.config.block_out_channels)

    def __call__(self, unet: nn.Module, batch: dict[str, Any], seeds: Sequence[int]) -> Tensor:
        """batch: of `InpaintingDataset.collate_fn`, on the device; seeds: one per image."""
        image, space = batch["pixel_values"], self.model.latent_space
        size = (image.shape[2] // space.factor, image.shape[3] // space.factor)
        noise, generators = noise_for(seeds, (space.channels, *size))
        noise = noise.to(image.device)
        if self.noise_offset:
            offsets = [torch.randn(space.channels, 1, 1, generator=generator) for generator in generators]
            noise = noise + self.noise_offset * torch.stack(offsets).to(image.device)
        count = int(self.schedule.config.num_train_timesteps)
        draws = [torch.randint(count, (1,), generator=generator) for generator in generators]
        timesteps = torch.cat(draws).to(image.device)
        plans = [
            plan_tokens(texts, self.model.tokenizer, encoding=self.encoding, regions=self.rca)
            for texts in batch["texts"]
        ]
        with torch.no_grad():
            latents = self.encode(image, generators)
            masked = self.encode(batch["masked_pixel_values"], generators)
            text, region_ids = encode_plans(plans, self.model.text_encoder)
        union = batch["masks"].bool()
        x = self.schedule.add_noise(latents, noise, timesteps)
        nine = torch.cat([x, known_channels(union, masked, self.layout)], 1)
        kwargs = None
        if self.rca:
            masks = batch["freestyle_layout_mask"][:, 1:].bool() & union  # the rows hold the background too
            kwargs = region_kwargs(
                masks, region_ids, size, levels=self.levels, layout=self.layout, dtype=text.dtype
            )
        prediction = unet(nine, timesteps, encoder_hidden_states=text, cross_attention_kwargs=kwargs).sample
        target = prediction_target(self.schedule, latents, noise, timesteps)
        error = (prediction.float() - target.float()).square().mean((1, 2, 3))
        return (error * min_snr_weight(self.schedule, timesteps, self.min_snr)).mean()

    def encode(self, image_pm1: Tensor, generators: list[torch.Generator]) -> Tensor:
        """(b, 3, H, W) -> (b, c, h, w), drawn from the autoencoder's posterior as published."""
        space = self.model.latent_space
        parameter = next(space.vae.parameters())
        return space.encode(image_pm1.to(parameter.dtype), generators).float()  # type: ignore[arg-type]
