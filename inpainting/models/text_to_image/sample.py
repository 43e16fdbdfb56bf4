"""From prepared tensors to images: conditions once, then the shared denoising loop.

Legend: j images, b samples of them, c channels, r regions, H W pixels, h w latent cells, t tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inpainting.models.text_to_image.config import PaintOptions
from inpainting.models.text_to_image.load import Inpainter
from inpainting.models.text_to_image.rca import check_processors, region_kwargs, shrink_masks
from inpainting.tokens import TokenPlan, encode_plans
from ldm.denoise import AT_ONCE, Monitor, denoise, noise_for, set_steps, start_latents
from ldm.images import from_pm1
from ldm.latents import make_scheduler
from ldm.reuse import DeepReuse
from ldm.settings.choices import UNET_SPEEDS


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one size."""

    image_pm1: Tensor  # (j, 3, H, W)
    masks: Tensor  # (j, r, H, W) bool, absent regions are empty
    union: Tensor  # (j, 1, H, W) bool
    plans: Sequence[TokenPlan]  # j
    negatives: Sequence[TokenPlan]  # j
    rows: Sequence[int]  # b, which image each sample is of
    seeds: Sequence[int]  # b


def known_channels(union: Tensor, masked: Tensor, layout: str = "coverage") -> Tensor:
    """The input channels of the UNet after the noisy latents: mask and masked image, 1 + c channels.

    union: (b, 1, H, W) bool;  masked: (b, c, h, w) latents of the masked image
    """
    channel = shrink_masks(union, (masked.shape[-2], masked.shape[-1]), layout)
    return torch.cat([channel.to(masked), masked], dim=1)


def sample_all(batch: Batch, pipe: Inpainter, options: PaintOptions, monitor: Monitor) -> list[np.ndarray]:
    """As `sample`, at most AT_ONCE samples together."""
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(batch.rows), AT_ONCE)]
    batches = [replace(batch, rows=batch.rows[part], seeds=batch.seeds[part]) for part in parts]
    return [image_u8 for each in batches for image_u8 in sample(each, pipe, options, monitor)]


@torch.inference_mode()
def sample(batch: Batch, pipe: Inpainter, options: PaintOptions, monitor: Monitor) -> list[np.ndarray]:
    """One image (H, W, 3) uint8 per sample. options: without None, see `pipeline.resolve_options`."""
    device, dtype, space = pipe.device, pipe.dtype, pipe.latent_space
    guided = options.guidance != 1.0
    rows = torch.tensor(list(batch.rows), device=device)
    # Of each sample and, with guidance, of its unconditional half before it.
    plans = [*batch.negatives, *batch.plans] if guided else list(batch.plans)
    order = torch.cat([rows, rows + len(batch.plans)]) if guided else rows
    image, union = batch.image_pm1.to(device, dtype), batch.union.to(device)
    masked = space.encode(image.masked_fill(union, 0.0)).float()  # mid-grey where painted
    known = known_channels(union, masked, str(options.layout))[rows]
    known = torch.cat([known, known]) if guided else known
    latent_hw = masked.shape[-2], masked.shape[-1]
    embeddings, region_ids = (part[order] for part in encode_plans(plans, pipe.text_encoder))
    levels, soft = len(pipe.unet.config.block_out_channels), options.soft_edges / space.factor
    fixed: dict[str, Any] = {"levels": levels, "layout": str(options.layout), "dtype": dtype}
    masks, apart, joined = batch.masks.to(device)[order % len(batch.plans)], None, None
    if options.rca or (region_ids < 0).any():
        apart = region_kwargs(masks, region_ids, latent_hw, soft_cells=soft, **fixed)
    if apart is not None and options.join_from < 1:  # every region is everywhere
        joined = region_kwargs(torch.ones_like(masks), region_ids, latent_hw, **fixed)
    scheduler = make_scheduler(str(options.scheduler), pipe.scheduler_config)
    schedule = set_steps(scheduler, int(options.steps or 1), options.strength, device)
    saved = {"guidance_every": 1, "reuse_every": 1, "reuse_layers": 0, **UNET_SPEEDS[options.speed]}
    schedule = schedule._replace(interval=options.guidance_interval, guide_every=saved["guidance_every"])
    check_processors(pipe.unet, (), {"cross_attention_kwargs": apart})  # a reused step does not
    unet = DeepReuse(pipe.unet, len(schedule.timesteps), saved["reuse_every"], saved["reuse_layers"])
    noise, generators = noise_for(batch.seeds, masked.shape[1:])
    start = space.encode(image).float()[rows] if options.strength < 1 else None
    latents = start_latents(schedule, noise.to(device), start)
    steps, first_joined = count(), options.join_from * len(schedule.timesteps)

    def predict(x: Tensor, t: Tensor, both: bool) -> Tensor:
        last = slice(-len(x), None)  # the conditional half alone, where guidance does not need both
        nine = torch.cat([x, known[last]], dim=1).to(dtype)
        chosen = joined if next(steps) >= first_joined else apart
        kept = chosen and {"regions": {n: bias[last] for n, bias in chosen["regions"].items()}}
        return unet(nine, t.to(device), embeddings[last], cross_attention_kwargs=kept)

    guidance = float(options.guidance or 0.0)
    latents = denoise(predict, latents, schedule, guidance=guidance, generators=generators, monitor=monitor)
    return [from_pm1(space.decode(latent[None].to(dtype))[0].float().cpu()) for latent in latents]
