"""Paint one prepared pair: conditions once, one control evaluation per step for all samples, the shared loop.

Pairs come from `datasets.pairs` and the result goes to `datasets.pasteback`; nothing here touches files.
A step may take control residuals and deep features of the UNet from other steps, residuals from other seeds.
Legend: n samples, b conditions (2 with guidance: unconditional, conditional), c channels, h w latent pixels,
H W pixels of the crop.
"""

import hashlib
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from cldm.config import Sampling
from cldm.model import Compositor, Conditions, joined_conditions, shared
from datasets.pairs import Pair
from ldm.denoise import AT_ONCE, Known, Monitor, Schedule, denoise, noise_for, set_steps, start_latents
from ldm.device import FasterAttention, as_alone, check_finite
from ldm.images import from_pm1
from ldm.latents import LatentSpace, make_scheduler
from ldm.recent import FORGETFUL, Recent, bytes_of
from ldm.reuse import DeepReuse

OFFLOADING = threading.RLock()  # held while networks are on the device for a stage


@dataclass(frozen=True)
class Weights:
    """Residual i = detail * D_i + depth * Z_i. Released weights: 1, 1; depth is the paper's lambda."""

    detail: float = 1.0
    depth: float = 1.0


class Controls:
    """The fused residuals of both control branches at the timesteps of one schedule.

    They depend on hint, tokens and timestep only (other ControlNets read the noisy latent), so that
    `control_evaluations` at even distances, linear between, stand for all; 0 or not fewer: all are evaluated.
    `control_batch` of them run together, the same up to rounding.
    kept: holds evaluations for other runs; room: bytes of it that those of a run may take, else they stay out
    """

    def __init__(
        self, model: Compositor, conditions: Conditions, weights: Weights, times: Sequence[float],
        sampling: Sampling, kept: Recent = FORGETFUL, room: int = 0,
    ) -> None:  # fmt: skip
        self.run = lambda t, c: model.residuals(t, c, weights.detail, weights.depth)
        self.conditions, self.kept, self.room, self.batch = conditions, kept, room, sampling.control_batch
        count = sampling.control_evaluations
        self.all = not 0 < count < len(times)
        self.nodes = np.sort(times) if self.all else np.linspace(min(times), max(times), count)
        self.values: dict[int, list[Tensor]] = {}  # of nodes that were needed
        self.needed = 0
        self.key = (model, *astuple(weights), *conditions.digests()) if room else ()

    def evaluate(self, timesteps: Tensor) -> list[list[Tensor]]:
        """The residuals at each of the timesteps (k,), or what another run with the conditions had."""
        count, rows = len(timesteps), len(self.conditions.tokens)
        together = self.conditions if count == 1 else joined_conditions([self.conditions] * count)
        make = partial(self.run, timesteps.repeat(rows) if count > 1 else timesteps[0], together)
        if self.needed > self.room:
            values = make()
        else:
            values = self.kept.once(make, *self.key, *timesteps.tolist())
            self.needed = len(self.nodes) * bytes_of(values) // count
        return [[value[index::count] for value in values] for index in range(count)]

    def at(self, timestep: Tensor) -> list[Tensor]:
        """One residual (b, c, h, w) for each skip of the UNet, the mid block's last."""
        position = float(np.interp(float(timestep), self.nodes, range(len(self.nodes))))
        below, above = math.floor(position), math.ceil(position)
        while missing := {below, above} - self.values.keys():
            group = range(first := max(missing), max(first - self.batch, -1), -1)
            times = timestep.new_tensor(self.nodes[list(group)], dtype=torch.float32)
            self.values |= zip(group, self.evaluate(times), strict=True)
        self.values = {node: self.values[node] for node in self.values if node <= above}  # the rest is past
        if self.all:
            return self.values[below]
        pairs = zip(self.values[below], self.values[above], strict=True)
        return [torch.lerp(one, other, position - below) for one, other in pairs]


def make_controls(
    model: Compositor, conditions: Conditions, weights: Weights, sampling: Sampling, schedule: Schedule,
    kept: Recent = FORGETFUL,
) -> list[Controls]:  # fmt: skip
    """The residuals of one composite: of all conditions, or of each half where not all steps are guided."""
    times = schedule.timesteps.tolist()
    guided = [time for time, both in zip(times, schedule.guided(), strict=True) if both]
    if sampling.guidance == 1.0 or len(guided) == len(times):
        return [Controls(model, conditions, weights, times, sampling, kept, kept.limit)]
    halves = conditions.halves()
    fewer = math.ceil(sampling.control_evaluations * sum(schedule.acts()) / len(times))  # a shorter interval
    part = replace(sampling, control_evaluations=fewer)
    room = kept.limit // 2 if guided else kept.limit
    unconditional = [Controls(model, halves[0], weights, guided, part, kept, room)] if guided else []
    return [*unconditional, Controls(model, halves[1], weights, times, sampling, kept, room)]


class Predictor:
    """`predict` of `ldm.denoise.denoise` for one run of a schedule of `total` steps."""

    def __init__(self, model: Compositor, controls: list[Controls], sampling: Sampling, total: int) -> None:
        self.controls, self.dtype = controls, model.dtype
        predict = model.graphs.predict if model.graphs else None
        reuse = sampling.reuse_every, sampling.reuse_layers, sampling.full_last
        self.unet = DeepReuse(model.unet, total, *reuse, predict)

    def __call__(self, x: Tensor, t: Tensor, both: bool) -> Tensor:
        """x (n or 2n, c, h, w), unconditional half first -> prediction of the same shape, float32."""
        parts = self.controls if both else self.controls[-1:]
        x, t = x.to(self.dtype), t.to(x.device)
        tokens = torch.cat([part.conditions.tokens for part in parts])
        residuals = [torch.cat(each) for each in zip(*(part.at(t) for part in parts), strict=True)]
        times = len(x) // len(tokens)
        tokens, *residuals = [shared(value, times) for value in (tokens, *residuals)]
        return self.unet(x, t, tokens, residuals)


class CompositorPipeline:
    """Paints pairs with one model. With offload, each network is on the device for its own stage only.

    recent: keeps tokens for images to come; residuals: of control branches, for other seeds of a place;
    decoder: in the place of the model's own
    """

    def __init__(
        self, model: Compositor, device: torch.device | str = "cpu", offload: bool = False,
        recent: Recent = FORGETFUL, residuals: Recent = FORGETFUL, decoder: LatentSpace | None = None,
    ) -> None:  # fmt: skip
        self.model, self.offload, self.recent = model, offload, recent
        self.decoder = decoder or model.latent_space
        self.residuals = FORGETFUL if offload else residuals  # they would stay on the device
        self.device = torch.empty(0, device=device).device  # "cuda" -> "cuda:0"
        if self.device.type == "cpu" and model.dtype is torch.bfloat16:
            used = model.latent_space if model.graphs else model
            used.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions: 1.2 times faster

    @contextmanager
    def on_device(self, *modules: nn.Module) -> Iterator[None]:
        """Have networks on the device for one stage; with offload, for that of one thread."""
        faster = FasterAttention() if self.model.dtype is torch.bfloat16 else nullcontext()
        with OFFLOADING if self.offload else nullcontext(), faster:
            for module in modules:
                if self.device.type != "cpu" and any(p.device != self.device for p in module.parameters()):
                    module.to(self.device)
            try:
                yield
            finally:
                for module in modules if self.offload else ():
                    module.to("cpu")

    def batch(self, image: Tensor) -> Tensor:
        """(...) -> (1, ...) on the device, in the precision of the UNet."""
        return image[None].to(self.device, self.model.dtype)

    @torch.inference_mode()
    def conditions(self, pair: Pair, guided: bool) -> Conditions:
        """Tokens and hint embeddings of one pair; both halves when guided."""
        model, recent, reference = self.model, self.recent, pair.reference_01
        with self.on_device(model.identity):
            digest = hashlib.sha256(reference.cpu().numpy().tobytes()).hexdigest() if recent.limit else ""
            tokens = recent.once(lambda: model.identity(self.batch(reference)), "tokens", digest)
            tokens = check_finite(tokens, "image encoder")
            null = recent.once(model.identity.null, "null") if guided else None
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
        with self.on_device(self.decoder):
            images = [self.decoder.decode(self.batch(latent))[0] for latent in latents]
        if rounded:
            return [from_pm1(image.float().cpu()) for image in images]
        levels = [(image.float().cpu() * 127.5 + 127.5).clamp(0, 255) for image in images]
        return [image.permute(1, 2, 0).numpy() for image in levels]

    @staticmethod
    def known_region(pairs: Sequence[Pair], background: Tensor, noise: Tensor) -> Known:
        """Latent pixels that hold no pixel of the edit region keep the background (1 or n, c, h, w)."""
        edit = torch.stack([pair.edit_mask for pair in pairs]).to(background)
        touched = nn.functional.adaptive_max_pool2d(edit, background.shape[-2:])
        return Known(background.expand(len(noise), -1, -1, -1), 1 - touched, noise)

    def paint(
        self,
        pair: Pair | Sequence[Pair],
        seeds: Sequence[int],
        sampling: Sampling,
        weights: Weights = Weights(),
        monitor: Monitor | None = None,
        rounded: bool = True,
    ) -> list[np.ndarray]:
        """One image (H, W, 3) uint8 of the crop per seed; float32 in [0, 255] unless rounded.

        pair: one for all seeds; or one for each, at most `AT_ONCE`, which share batches of the networks: on a
        CPU each gives the image that it gives alone, to the bit
        Outside the edit region the background's latents are re-imposed at every step if `reimpose` is set;
        `init: paste` starts from the depth-tested cut-out paste noised to `strength`. With `strength` 0 the
        paste is returned.
        """
        monitor, pairs = monitor or Monitor(), list(pair) if isinstance(pair, Sequence) else [pair]
        if len(pairs) not in (1, len(seeds)) or len(pairs) > AT_ONCE:
            raise ValueError(
                f"{len(pairs)} pairs with {len(seeds)} seeds; allowed: 1, or as many, up to {AT_ONCE}"
            )
        model, pasted = self.model, sampling.init == "paste"
        if pasted and sampling.strength == 0:
            pastes = [from_pm1(each.paste_pm1) for each in pairs]
            return pastes if len(pairs) > 1 else pastes * len(seeds)
        conditions = joined_conditions(
            [self.conditions(each, guided=sampling.guidance != 1.0) for each in pairs]
        )
        background = torch.cat([self.encode(each.background_pm1) for each in pairs])
        pasted_latents = torch.cat([self.encode(each.paste_pm1) for each in pairs]) if pasted else None
        strength = sampling.strength if pasted else 1.0
        images: list[np.ndarray] = []
        for start in range(0, len(seeds), AT_ONCE):
            scheduler = make_scheduler(sampling.scheduler, model.scheduler_config)
            schedule = set_steps(scheduler, sampling.steps, strength, self.device, sampling.step_rule)
            interval, every = sampling.guidance_interval, sampling.guidance_every
            schedule = schedule._replace(interval=interval, guide_every=every)
            noise, generators = noise_for(seeds[start : start + AT_ONCE], background.shape[1:])
            noise = noise.to(self.device)
            known = self.known_region(pairs, background, noise) if sampling.reimpose else None
            first = None if pasted_latents is None else pasted_latents.expand(len(noise), -1, -1, -1)
            if not start:
                controls = make_controls(model, conditions, weights, sampling, schedule, self.residuals)
            with self.on_device(model.unet, model.detail, model.depth), as_alone(len(pairs), self.device):
                latents = denoise(
                    Predictor(model, controls, sampling, len(schedule.timesteps)),
                    start_latents(schedule, noise, first), schedule, guidance=sampling.guidance,
                    generators=generators, known=known,
                    monitor=replace(monitor, on_step=None) if start else monitor,  # previews: the first ones
                )  # fmt: skip
            images += self.decode(latents, rounded)
        return images
