"""Paint one prepared pair: conditions once, one control evaluation per step for all samples, the shared loop.

Pairs come from `datasets.pairs` and the result goes to `datasets.pasteback`; nothing here touches files.
Legend: n samples, c latent channels, h w latent pixels, H W pixels of the crop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cldm.model import Compositor, Conditions
from cldm.pretrained import Sampling
from datasets.pairs import Pair
from ldm.denoise import Known, Monitor, Step, denoise, noise_for, set_steps, start_latents
from ldm.images import from_pm1
from ldm.latents import make_scheduler


@dataclass(frozen=True)
class Weights:
    """Residual i = detail * D_i + depth * Z_i. Released weights: 1, 1; depth is the paper's lambda."""

    detail: float = 1.0
    depth: float = 1.0


@contextmanager
def resident(module: nn.Module, device: torch.device, offload: bool) -> Iterator[None]:
    """Have `module` on `device` for one stage; with `offload` it goes back to the CPU afterwards."""
    exact = torch.empty(0, device=device).device  # "cuda" -> "cuda:0"
    if any(parameter.device != exact for parameter in module.parameters()):
        module.to(device)
    try:
        yield
    finally:
        if offload:
            module.to("cpu")


@torch.inference_mode()
def prepare(model: Compositor, pair: Pair, device: torch.device, guided: bool, offload: bool) -> Conditions:
    """Tokens and hint embeddings of one pair; both halves when guided."""
    dtype = model.unet.dtype
    move = {
        name: getattr(pair, name)[None].to(device, dtype)
        for name in ("reference_01", "detail_pm1", "depth_01")
    }
    with resident(model.identity, device, offload):
        tokens = model.identity(move["reference_01"])
        null = model.identity.null() if guided else None
    with resident(model.detail, device, offload), resident(model.depth, device, offload):
        conditions = Conditions(
            tokens, model.detail.embed(move["detail_pm1"]), model.depth.embed(move["depth_01"])
        )
    return conditions if null is None else conditions.with_null(null)


@torch.inference_mode()
def encode(model: Compositor, image_pm1: Tensor, device: torch.device, offload: bool) -> Tensor:
    """(3, H, W) -> (1, c, h, w) latents."""
    with resident(model.latent_space, device, offload):
        return model.latent_space.encode(image_pm1[None].to(device, model.unet.dtype)).float()


@torch.inference_mode()
def decode(model: Compositor, latents: Tensor, device: torch.device, offload: bool) -> list[np.ndarray]:
    """(n, c, h, w) -> n images (H, W, 3) uint8, one at a time to bound memory."""
    with resident(model.latent_space, device, offload):
        images = [model.latent_space.decode(one[None].to(device, model.unet.dtype))[0] for one in latents]
    return [from_pm1(image.float().cpu()) for image in images]


def known_region(pair: Pair, background: Tensor, noise: Tensor) -> Known:
    """Latent pixels that hold no pixel of the edit region keep the background.

    background: (1, c, h, w). noise: (n, c, h, w) that the latents start from.
    """
    edit = pair.edit_mask.float().to(background)[None]
    touched = nn.functional.adaptive_max_pool2d(edit, background.shape[-2:])
    return Known(background.expand(len(noise), -1, -1, -1), 1 - touched, noise)


def paint(
    model: Compositor,
    pair: Pair,
    seeds: Sequence[int],
    sampling: Sampling,
    weights: Weights = Weights(),
    *,
    device: torch.device | str = "cpu",
    offload: bool = False,
    on_step: Callable[[Step], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    progress: bool = True,
) -> list[np.ndarray]:
    """One image (H, W, 3) uint8 of the crop per seed.

    Outside the edit region the background's latents are re-imposed at every step; `init: paste` starts from
    the depth-tested cut-out paste noised to `strength`.  With `strength` 0 the paste itself is returned.
    """
    device = torch.device(device)
    count = len(seeds)
    if sampling.init == "paste" and sampling.strength == 0:
        return [from_pm1(pair.paste_pm1)] * count
    guided = sampling.guidance != 1.0
    conditions = prepare(model, pair, device, guided, offload)
    background = encode(model, pair.background_pm1, device, offload)
    scheduler = make_scheduler(sampling.scheduler, model.scheduler_config)
    pasted = sampling.init == "paste"
    strength = sampling.strength if pasted else 1.0
    schedule = set_steps(scheduler, sampling.steps, strength, device, sampling.step_rule)
    noise, generators = noise_for(seeds, background.shape[1:])
    noise = noise.to(device)
    start = encode(model, pair.paste_pm1, device, offload).expand(count, -1, -1, -1) if pasted else None
    latents = start_latents(schedule, noise, start)

    def predict(x: Tensor, t: Tensor, both: bool) -> Tensor:
        dtype = model.unet.dtype
        return model(x.to(dtype), t.to(device), conditions, weights.detail, weights.depth).float()

    with (
        resident(model.unet, device, offload),
        resident(model.detail, device, offload),
        resident(model.depth, device, offload),
    ):
        latents = denoise(
            predict,
            latents,
            schedule,
            guidance=sampling.guidance,
            generators=generators,
            known=known_region(pair, background, noise),
            monitor=Monitor(on_step, cancelled, progress),
        )
    return decode(model, latents, device, offload)
