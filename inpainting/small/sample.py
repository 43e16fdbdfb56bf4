"""Batched sampling for the evaluation: many pictures, each with its own masks and prompts, in one pass.

The same networks, token plan, region maps and sampling loop as the pipeline that users call, without its
conveniences: sizes are equal, nothing is resized, and the result is pasted by the box masks.

Legend: b batch, h w pixels, c latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from tqdm.auto import tqdm

from inpainting.models.text_to_image.layout import shrink_masks
from inpainting.models.text_to_image.load import Inpainter
from inpainting.models.text_to_image.rca import guided
from inpainting.models.text_to_image.tokens import encode_plans, plan_tokens
from inpainting.small.diffusion import regions_of_batch
from inpainting.small.examples import Example
from inpainting.small.first_stage import to_pm1
from inpainting.small.views import box_mask
from ldm.config import check_settings, setting
from ldm.denoise import denoise, noise_for, set_steps
from ldm.latents import make_scheduler


@dataclass(frozen=True)
class Sampling:
    """How pictures are painted."""

    steps: int = setting(12, low=1, help="denoising steps")
    guidance: float = setting(3.0, low=1.0, help="classifier-free guidance")
    batch: int = setting(8, low=1, help="pictures painted together; the result does not depend on it")

    def __post_init__(self) -> None:
        check_settings(self)


class Painter:
    """One model, ready to paint. rectified: with region maps, else all prompts joined and read everywhere."""

    def __init__(self, model: Inpainter, rectified: bool) -> None:
        self.model, self.rectified = model, rectified

    @torch.inference_mode()
    def paint(self, examples: Sequence[Example], seeds: Sequence[int], sampling: Sampling) -> np.ndarray:
        """(b, h, w, 3) uint8; pixels outside the masks are those of the pictures."""
        found = []
        for start in tqdm(range(0, len(examples), sampling.batch), desc="painting", leave=False):
            part = slice(start, start + sampling.batch)
            found.append(self._paint(examples[part], seeds[part], sampling))
        return np.concatenate(found)

    def _paint(self, examples: Sequence[Example], seeds: Sequence[int], sampling: Sampling) -> np.ndarray:
        images_u8 = np.stack([one.image_u8 for one in examples])
        size = (images_u8.shape[1], images_u8.shape[2])
        hole = np.stack([box_mask(one.boxes, size).any(0) for one in examples])
        given, attention = self._conditions(examples, images_u8, hole, sampling.guidance)
        config = self.model.scheduler_config
        scheduler = make_scheduler(config["_class_name"], config)
        noise, generators = noise_for(seeds, given["latents"].shape[1:])
        latents = denoise(
            Prediction(self.model.unet, given, attention),
            noise,
            scheduler,
            set_steps(scheduler, sampling.steps, 1.0, torch.device("cpu")),
            guidance=sampling.guidance,
            generators=generators,
            progress=False,
        )
        decoded = self.model.latent_space.decode(latents)
        painted = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        return np.where(hole[..., None], painted, images_u8)

    def _conditions(
        self, examples: Sequence[Example], images_u8: np.ndarray, hole: np.ndarray, guidance: float
    ) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """What the UNet reads beside the noisy latents, and its region maps."""
        union = torch.from_numpy(hole)[:, None]
        latents = self.model.latent_space.encode(to_pm1(images_u8) * ~union)
        latent_hw = (latents.shape[2], latents.shape[3])
        plans = [plan_tokens(one.prompts, self.model.tokenizer, regions=self.rectified) for one in examples]
        embeddings, owners = encode_plans(plans, self.model.text_encoder)
        empty, _ = encode_plans([plan_tokens([""], self.model.tokenizer)], self.model.text_encoder)
        mask = shrink_masks(union, latent_hw).float()
        given = {
            "latents": latents,
            "extra": torch.cat([mask, latents], 1),
            "embeddings": embeddings,
            "empty": empty.expand_as(embeddings),
        }
        if not self.rectified:
            return given, None
        levels = len(self.model.unet.config.block_out_channels)
        maps = regions_of_batch(examples, owners, latent_hw, levels)
        return given, guided(maps) if guidance != 1 else maps


class Prediction:
    """What `ldm.denoise` calls at every step."""

    def __init__(
        self, unet: UNet2DConditionModel, given: dict[str, Tensor], attention: dict[str, Any] | None
    ) -> None:
        self.unet, self.given, self.attention = unet, given, attention

    def __call__(self, x: Tensor, t: Tensor, is_guided: bool) -> Tensor:
        extra, embeddings = self.given["extra"], self.given["embeddings"]
        if is_guided:
            extra, embeddings = torch.cat([extra, extra]), torch.cat([self.given["empty"], embeddings])
        return self.unet(
            torch.cat([x, extra], 1),
            t,
            encoder_hidden_states=embeddings,
            cross_attention_kwargs=self.attention,
        ).sample
