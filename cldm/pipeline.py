"""Paint one prepared pair: conditions once, one control evaluation per step for all samples, the shared loop.

Pairs come from `datasets.pairs` and the result goes to `datasets.pasteback`; nothing here touches files.
Legend: n samples, c latent channels, h w latent pixels, H W pixels of the crop.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from cldm.config import Sampling
from cldm.model import Compositor, Conditions
from cldm.shortcuts import Predictor, make_controls
from datasets.pairs import Pair
from ldm.attention import FasterAttention
from ldm.denoise import AT_ONCE, Known, Monitor, denoise, noise_for, set_steps, start_latents
from ldm.device import check_finite
from ldm.images import from_pm1
from ldm.latents import make_scheduler

OFFLOADING = threading.RLock()  # held while networks are on the device for a stage


@dataclass(frozen=True)
class Weights:
    """Residual i = detail * D_i + depth * Z_i. Released weights: 1, 1; depth is the paper's lambda."""

    detail: float = 1.0
    depth: float = 1.0


class CompositorPipeline:
    """Paints pairs with one model. With offload, each network is on the device for its own stage only."""

    def __init__(self, model: Compositor, device: torch.device | str = "cpu", offload: bool = False) -> None:
        self.model, self.offload = model, offload
        self.device = torch.empty(0, device=device).device  # "cuda" -> "cuda:0"
        if self.device.type == "cpu" and model.unet.dtype is torch.bfloat16:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions: 1.2 times faster

    @contextmanager
    def on_device(self, *modules: nn.Module) -> Iterator[None]:
        """Have networks on the device for one stage; with offload, for that of one thread."""
        with OFFLOADING if self.offload else nullcontext(), FasterAttention():
            for module in modules:
                if any(parameter.device != self.device for parameter in module.parameters()):
                    module.to(self.device)
            try:
                yield
            finally:
                for module in modules if self.offload else ():
                    module.to("cpu")

    def batch(self, image: Tensor) -> Tensor:
        """(...) -> (1, ...) on the device, in the precision of the UNet."""
        return image[None].to(self.device, self.model.unet.dtype)

    @torch.inference_mode()
    def conditions(self, pair: Pair, guided: bool) -> Conditions:
        """Tokens and hint embeddings of one pair; both halves when guided."""
        model = self.model
        with self.on_device(model.identity):
            tokens = check_finite(model.identity(self.batch(pair.reference_01)), "image encoder")
            null = model.identity.null() if guided else None
        with self.on_device(model.detail, model.depth):
            detail = model.detail.embed(self.batch(pair.detail_pm1))
            conditions = Conditions(tokens, detail, model.depth.embed(self.batch(pair.depth_01)))
        return conditions if null is None else conditions.with_null(null)

    @torch.inference_mode()
    def encode(self, image_pm1: Tensor) -> Tensor:
        """(3, H, W) -> (1, c, h, w) latents."""
        with self.on_device(self.model.latent_space):
            return self.model.latent_space.encode(self.batch(image_pm1)).float()

    @torch.inference_mode()
    def decode(self, latents: Tensor, rounded: bool = True) -> list[np.ndarray]:
        """(n, c, h, w) -> n images (H, W, 3) uint8, one at a time to bound memory; float32 unless rounded."""
        with self.on_device(self.model.latent_space):
            images = [self.model.latent_space.decode(self.batch(latent))[0] for latent in latents]
        if rounded:
            return [from_pm1(image.float().cpu()) for image in images]
        levels = [(image.float().cpu() * 127.5 + 127.5).clamp(0, 255) for image in images]
        return [image.permute(1, 2, 0).numpy() for image in levels]

    @staticmethod
    def known_region(pair: Pair, background: Tensor, noise: Tensor) -> Known:
        """Latent pixels that hold no pixel of the edit region keep the background (1, c, h, w)."""
        edit = pair.edit_mask.float().to(background)[None]
        touched = nn.functional.adaptive_max_pool2d(edit, background.shape[-2:])
        return Known(background.expand(len(noise), -1, -1, -1), 1 - touched, noise)

    def paint(
        self,
        pair: Pair,
        seeds: Sequence[int],
        sampling: Sampling,
        weights: Weights = Weights(),
        monitor: Monitor | None = None,
        rounded: bool = True,
    ) -> list[np.ndarray]:
        """One image (H, W, 3) uint8 of the crop per seed; float32 in [0, 255] unless rounded.

        Outside the edit region the background's latents are re-imposed at every step if `reimpose` is set;
        `init: paste` starts from the depth-tested cut-out paste noised to `strength`. With `strength` 0 the
        paste is returned.
        """
        monitor = monitor or Monitor()
        model, pasted = self.model, sampling.init == "paste"
        if pasted and sampling.strength == 0:
            return [from_pm1(pair.paste_pm1)] * len(seeds)
        conditions = self.conditions(pair, guided=sampling.guidance != 1.0)
        background = self.encode(pair.background_pm1)
        pasted_latents = self.encode(pair.paste_pm1) if pasted else None
        strength = sampling.strength if pasted else 1.0
        images: list[np.ndarray] = []
        for start in range(0, len(seeds), AT_ONCE):
            scheduler = make_scheduler(sampling.scheduler, model.scheduler_config)
            schedule = set_steps(scheduler, sampling.steps, strength, self.device, sampling.step_rule)
            schedule = schedule._replace(
                interval=sampling.guidance_interval, guide_every=sampling.guidance_every
            )
            noise, generators = noise_for(seeds[start : start + AT_ONCE], background.shape[1:])
            noise = noise.to(self.device)
            known = self.known_region(pair, background, noise) if sampling.reimpose else None
            first = None if pasted_latents is None else pasted_latents.expand(len(noise), -1, -1, -1)
            if not start:
                branches = weights.detail, weights.depth
                controls = make_controls(model, conditions, branches, sampling, schedule)
            with self.on_device(model.unet, model.detail, model.depth):
                latents = denoise(
                    Predictor(model, controls, sampling, len(schedule.timesteps)),
                    start_latents(schedule, noise, first), schedule, guidance=sampling.guidance,
                    generators=generators, known=known,
                    monitor=replace(monitor, on_step=None) if start else monitor,  # previews: the first ones
                )  # fmt: skip
            images += self.decode(latents, rounded)
        return images
