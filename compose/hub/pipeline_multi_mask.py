"""The multi-mask inpainter as a pipeline of diffusers: every mask has its own prompt, all in one pass.

A pixel reads the prompts of its own masks only (rectified cross-attention).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin, SchedulerMixin, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import BaseOutput
from transformers import CLIPTextModel, CLIPTokenizer

from compose.hub.shared import (
    HubPipeline,
    as_images,
    as_loaded,
    as_mask,
    first_seed,
    setting_values,
    shows_progress,
)
from inpainting.models.text_to_image.config import InpainterConfig, PaintOptions, Recommended
from inpainting.models.text_to_image.load import Inpainter
from inpainting.models.text_to_image.pipeline import PaintJob, batch_of, pair_masks, resolve_options
from inpainting.models.text_to_image.rca import install_rca
from inpainting.models.text_to_image.sample import sample_all
from ldm.denoise import Monitor
from ldm.latents import LatentSpace


@dataclass
class MultiMaskOutput(BaseOutput):
    images: list[Any]  # PIL images, or uint8 arrays (h, w, c) with output_type "np"
    seeds: list[int]
    edit_mask: np.ndarray  # (h, w) bool, all masks


class MultiMaskInpaintPipeline(HubPipeline, StableDiffusionLoraLoaderMixin):
    """Fill several masks of an image, each with its own prompt. LoRAs load as for Stable Diffusion."""

    def __init__(
        self,
        vae: ModelMixin,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """settings: of the model: `inpainter`, its configuration, and `latents` (mean, std)."""
        super().__init__()
        text = {"text_encoder": text_encoder, "tokenizer": tokenizer}
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, **text)
        self.register_to_config(settings=settings or {})

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        masks: Sequence[Any],
        prompts: Sequence[str],
        negative_prompts: Sequence[str] = (),
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int = 0,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> MultiMaskOutput | tuple[list[Any]]:
        """The image with every mask filled.

        image, masks: paths, addresses, PIL images or uint8 arrays; masks are white where they are filled
        seed: sample i has seed + i;  generator: draws the seed
        options: layout, encoding, soft_edges, join_from, speed, resolution, feather ... of `PaintOptions`
        """
        source, config = as_loaded(image), setting_values(self, "inpainter")
        config["sampling"] = Recommended(**config.get("sampling", {}))
        space = LatentSpace(self.vae, **setting_values(self, "latents"))
        schedule = {**self.scheduler.config, "_class_name": type(self.scheduler).__name__}
        encoder = self.text_encoder.to(self.unet.dtype)  # transformers loads the type of the file
        unet, space = install_rca(self.unet), space.to(self.unet.device)
        pipe = Inpainter(unet, space, encoder, self.tokenizer, schedule, InpainterConfig(**config))
        chosen = PaintOptions(steps=num_inference_steps, guidance=guidance_scale, **options)
        chosen, seed = resolve_options(pipe, chosen), first_seed(seed, generator)
        seeds = range(seed, seed + num_images_per_prompt)
        regions = pair_masks([as_mask(mask, source.size) for mask in masks], prompts, negative_prompts)
        job = PaintJob(source.rgb_u8, regions, seeds, source).prepare(pipe, chosen)
        painted = sample_all(batch_of([job]), pipe, chosen, Monitor(progress=shows_progress(self)))
        results, edit_mask = job.pasted(iter(painted), chosen)
        images = as_images(results, output_type)
        return MultiMaskOutput(images, list(seeds), edit_mask) if return_dict else (images,)
