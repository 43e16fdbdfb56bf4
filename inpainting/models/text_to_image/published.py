"""The Python interface of the published system, under its own names, on the stock UNet.

    pipe = get_pretrained_mm_inpainting_pipe(sd2_path, adapter_path, device)
    layout = get_freestyle_layout_mask(masks)
    ids, token_region_ids = get_freestyle_text_inputs(texts, pipe.tokenizer)
    pipe(ids[None], token_region_ids[None], layout[None], image, mask_image).images

`pipeline.paint` takes the same pipe and offers the rest. Legend: b images, r regions, t tokens, h w pixels.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from inpainting.data.datasets import layout_rows
from inpainting.models.text_to_image.config import COMPAT
from inpainting.models.text_to_image.load import Inpainter, load_inpainter
from inpainting.models.text_to_image.pipeline import resolve_options
from inpainting.models.text_to_image.sample import Batch, sample
from inpainting.tokens import TokenPlan, plan_shared, plan_tokens
from ldm.denoise import Monitor
from ldm.images import to_01, to_pm1

Images = Tensor | Image.Image | Sequence[Image.Image]
SEEDS = 2**31


@dataclass(frozen=True, eq=False)
class PipelineOutput:
    images: list  # PIL images, or (h, w, 3) uint8 arrays for output_type "np"
    seeds: list[int]


class FreestyleStableDiffusionInpaintPipeline(Inpainter):
    def __call__(
        self,
        input_ids: Tensor,
        freestyle_attention_mask: Tensor,
        freestyle_layout_mask: Tensor,
        image: Images,
        mask_image: Images,
        height: int | None = None,
        width: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
    ) -> PipelineOutput:
        """Paint b images, each num_images_per_prompt times in a row.

        input_ids, freestyle_attention_mask: (b, t);  freestyle_layout_mask: (b, r + 1, h, w)
        image:      (b, 3, h, w) in [-1, 1], or PIL images, which are brought to height x width
        mask_image: (b, 1, h, w), above 0.5 = paint, or PIL masks
        generator:  seeds are drawn from it (from each, if there is one per image); without it every call
                    gives another image, and the result holds its seeds
        """
        if output_type not in ("pil", "np"):
            raise ValueError(f"unknown output_type {output_type!r}; allowed: pil, np")
        size = height or self.resolution, width or self.resolution
        pixels = _stacked(image, size, mask=False)
        union = _stacked(mask_image, size, mask=True) > 0.5
        count = len(input_ids)
        if not len(pixels) == len(union) == len(freestyle_layout_mask) == count:
            given = f"{len(pixels)} images, {len(union)} masks, {len(freestyle_layout_mask)} layouts"
            raise ValueError(f"{count} token sequences for {given}; there must be as many of each")
        if pixels.shape[-2:] != union.shape[-2:]:
            raise ValueError(f"image, mask_image differ in size: {list(pixels.shape)}, {list(union.shape)}")
        h, w, factor = *pixels.shape[-2:], self.latent_space.factor
        if h % factor or w % factor:
            raise ValueError(f"images are {w} x {h} pixels; both sides must be multiples of {factor}")
        several = [generator] * count if isinstance(generator, torch.Generator) else list(generator or ())
        if len(several) != count and generator is not None:
            raise ValueError(f"{len(several)} generators for {count} images; give one, or one for each")
        draws = [generator for generator in several for _ in range(num_images_per_prompt)]  # of one in a row
        seeds = [int(torch.randint(SEEDS, (), generator=draw, device=draw.device)) for draw in draws]
        if generator is None:
            seeds = [secrets.randbelow(SEEDS) for _ in range(count * num_images_per_prompt)]
        tokens = zip(input_ids, freestyle_attention_mask, strict=True)
        batch = Batch(
            image_pm1=pixels, masks=freestyle_layout_mask[:, 1:].bool(), union=union,
            plans=[TokenPlan(ids[None].cpu(), region_ids.cpu().long()) for ids, region_ids in tokens],
            negatives=[plan_shared(negative_prompt or "", self.tokenizer)] * count,
            rows=[row for row in range(count) for _ in range(num_images_per_prompt)], seeds=seeds,
        )  # fmt: skip
        options = replace(COMPAT, steps=num_inference_steps, guidance=guidance_scale, strength=strength)
        painted = sample(batch, self, resolve_options(self, options), Monitor())
        images = [Image.fromarray(image_u8) if output_type == "pil" else image_u8 for image_u8 in painted]
        return PipelineOutput(images, list(batch.seeds))


def get_pretrained_mm_inpainting_pipe(
    sd2_path: Path | str, adapter_path: Path | str | None, device: torch.device | str
) -> FreestyleStableDiffusionInpaintPipeline:
    """A model folder and a LoRA file (or its folder), in half precision on CUDA."""
    loaded = load_inpainter(sd2_path, adapter_path, device=device)
    return FreestyleStableDiffusionInpaintPipeline(**vars(loaded))


def get_freestyle_layout_mask(masks: Sequence[Tensor], max_concepts: int = 5) -> Tensor:
    """Masks (1, h, w) of one image -> layout (max_concepts + 1, h, w), int64, see `layout_rows`."""
    if not 0 < len(masks) <= max_concepts:
        raise ValueError(f"a layout of at most {max_concepts} masks needs at least one, got {len(masks)}")
    return layout_rows(torch.cat([mask > 0 for mask in masks]), max_concepts).long()


def get_freestyle_text_inputs(texts: Sequence[str], tokenizer: CLIPTokenizer) -> tuple[Tensor, Tensor]:
    """Prompts of one image -> input_ids (77,) and freestyle_attention_mask (77,), each token's region."""
    plan = plan_tokens(texts, tokenizer)
    return plan.input_ids[0], plan.token_region_ids


def _stacked(pixels: Images, size_hw: tuple[int, int], mask: bool) -> Tensor:
    """PIL images -> (b, 3, h, w) in [-1, 1], masks -> (b, 1, h, w) in [0, 1]; tensors stay as they are."""
    if isinstance(pixels, Tensor):
        return pixels if pixels.ndim == 4 else pixels[None]
    several = [pixels] if isinstance(pixels, Image.Image) else list(pixels)
    shape = size_hw[1], size_hw[0]
    if mask:
        flat = [np.array(image.convert("L").resize(shape, Image.Resampling.NEAREST)) for image in several]
        return torch.stack([to_01(mask[..., None]) for mask in flat])
    smooth = [np.array(image.convert("RGB").resize(shape, Image.Resampling.LANCZOS)) for image in several]
    return torch.stack([to_pm1(image_u8) for image_u8 in smooth])
