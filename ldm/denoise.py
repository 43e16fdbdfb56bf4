"""The one sampling loop, for any network: guidance in one batch, a known region, previews, cancelling; and
what such a network learns: the target of its prediction, and the loss weight of each timestep.

Legend: b images, c latent channels, h w latent pixels.
"""

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, PNDMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor
from tqdm.auto import tqdm

from ldm.device import check_finite

UNET = "denoising network (UNet)"  # as errors call it
# Images that go through a UNet together; chosen: with guidance 512 px take 12 GB in half precision.
AT_ONCE = 8
# Least share of the timesteps that steps go over; chosen: known pixels then come out 6 % too noisy.
COVERED = 0.9
Predict = Callable[[Tensor, Tensor, bool], Tensor]


class Cancelled(Exception):
    """The caller's `cancelled` function returned True between two steps."""


class Schedule(NamedTuple):
    scheduler: Any  # a diffusers scheduler, prepared
    timesteps: Tensor  # (steps,), to run
    interval: tuple[float, float] = (0.0, 1.0)  # noise levels t / T at which guidance acts
    guide_every: int = 1  # of its steps compute the unconditional half; the others keep the difference

    def acts(self) -> list[bool]:
        """For each step whether guidance acts (Kynkaanniemi et al. 2024: best in the middle only)."""
        low, high = self.interval
        total = self.scheduler.config.num_train_timesteps
        return [low <= float(t) / total <= high for t in self.timesteps]

    def guided(self) -> list[bool]:
        """For each step whether both halves are computed."""
        acts = self.acts()
        return [one and sum(acts[:index]) % self.guide_every == 0 for index, one in enumerate(acts)]


@dataclass(frozen=True)
class Known:
    """What is known of the result and re-imposed at every step."""

    latents: Tensor  # (b, c, h, w), noise-free
    keep: Tensor  # (b, 1, h, w) in [0, 1], 1 = known
    noise: Tensor  # (b, c, h, w), the draw that the latents were started from


@dataclass(frozen=True)
class Step:
    """One finished step, for previews: `index` of `total`, latents (b, c, h, w)."""

    index: int
    total: int
    latents: Tensor


@dataclass(frozen=True)
class Monitor:
    """What a caller wants to know while it runs. cancelled: asked before every step; progress: a bar."""

    on_step: Callable[[Step], None] | None = None
    cancelled: Callable[[], bool] | None = None
    progress: bool = True


def noise_for(seeds: Sequence[int], shape: Sequence[int]) -> tuple[Tensor, list[torch.Generator]]:
    """One CPU generator and one (c, h, w) draw per seed: image i depends on neither batch nor device."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    draws = [torch.randn(tuple(shape), generator=generator) for generator in generators]
    return torch.stack(draws), generators


def set_steps(
    scheduler: Any, steps: int, strength: float, device: torch.device, rule: str = "exact"
) -> Schedule:
    """Prepare a diffusers scheduler for the last `strength` fraction of its steps, at least one.

    rule: "published" takes every (T // steps)-th of T timesteps, which can be more than `steps` (DDIM only)
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], got {strength}")
    scheduler.set_timesteps(steps, device=device)
    if rule == "published":
        # The original DDIM code: 1, 1 + T // steps, ... below T, the last first.
        if not isinstance(scheduler, DDIMScheduler):
            kind = type(scheduler).__name__
            raise ValueError(f"the published step rule is DDIM's, the scheduler is {kind}")
        total = int(scheduler.config.num_train_timesteps)
        found = torch.arange(0, total, max(total // steps, 1), device=device) + 1
        if int(found[-1]) >= total:
            raise ValueError(f"the published step rule leads beyond {total} timesteps with {steps} steps")
        scheduler.timesteps, steps = found.flip(0), len(found)
    elif not leads_to_image(scheduler, steps):
        right = steps - 1
        while not (scheduler.set_timesteps(right) or leads_to_image(scheduler, right)):
            right -= 1
        how = f"{type(scheduler).__name__} with spacing {scheduler.config.timestep_spacing!r}"
        raise ValueError(f"{steps} steps of {how} do not lead from all noise to none: use {right}")
    total, start = scheduler.config.num_train_timesteps, float(scheduler.timesteps[0])
    if steps == 1 and start < 0.9 * total:  # spacing "leading" or "linspace"
        message = "one step of this schedule is t = %g of %d, as if less noise were there: use more steps"
        logging.getLogger(__name__).warning(message, start, total)
    first = min(round(steps * (1 - strength)), steps - 1) * getattr(scheduler, "order", 1)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return Schedule(scheduler, scheduler.timesteps[first:])


def leads_to_image(scheduler: Any, steps: int) -> bool:
    """Whether steps, which are set, lead from all noise to none.

    DDIM and PNDM remove the noise of T // steps timesteps in each; the spacing "leading" of any scheduler
    puts the steps about that far apart (findings/steps_that_do_not_divide.sh). "trailing" may add one at -1,
    which DDIM takes for all noise (findings/timestep_before_the_first.sh).
    """
    total, times = int(scheduler.config.num_train_timesteps), scheduler.timesteps
    if times.min() < 0 or times.max() >= total:
        return False
    covered = total // steps * steps if isinstance(scheduler, DDIMScheduler | PNDMScheduler) else total
    if steps > 1 and scheduler.config.timestep_spacing == "leading":
        covered = min(covered, int(2 * times[0] - times[1]))
    return covered >= COVERED * total


def start_latents(schedule: Schedule, noise: Tensor, image: Tensor | None) -> Tensor:
    """x_t at the first timestep: pure noise, or `image` (b, c, h, w) noised to that level."""
    if image is None:
        return noise * schedule.scheduler.init_noise_sigma
    return schedule.scheduler.add_noise(image, noise, schedule.timesteps[:1].repeat(len(noise)))


@torch.inference_mode()
def denoise(
    predict: Predict,
    latents: Tensor,
    schedule: Schedule,
    *,
    guidance: float = 1.0,
    generators: list[torch.Generator] | None = None,
    known: Known | None = None,
    monitor: Monitor = Monitor(),
) -> Tensor:
    """Run a schedule from `latents` (b, c, h, w); returns noise-free latents.

    predict(x, t, guided): x is (b, c, h, w), or (2b, c, h, w) where guidance acts, unconditional half first
    """
    scheduler, timesteps = schedule.scheduler, schedule.timesteps
    known_options = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"generator": generators} if "generator" in known_options else {}
    acts, both, difference = schedule.acts(), schedule.guided(), torch.zeros(())
    for index, t in enumerate(tqdm(timesteps, desc="denoising", disable=not monitor.progress, leave=False)):
        if monitor.cancelled is not None and monitor.cancelled():
            raise Cancelled(f"cancelled after {index} of {len(timesteps)} steps")
        guided = guidance != 1.0 and both[index]
        x = scheduler.scale_model_input(latents, t)
        prediction = predict(torch.cat([x, x]) if guided else x, t, guided)
        if index == 0:  # most overflows show at once, the others at the end
            check_finite(prediction, UNET)
        if guided:
            unconditional, prediction = prediction.chunk(2)
            difference = prediction - unconditional
        if guidance != 1.0 and acts[index]:
            prediction = prediction + (guidance - 1) * difference
        if "order" in known_options:  # LMS would count the steps before a midway start
            extra["order"] = min(index + 1, known_options["order"].default)
        latents = scheduler.step(prediction, t, latents, **extra).prev_sample
        if known is not None:
            target, later = known.latents, timesteps[index + 1 : index + 2]
            if len(later):  # at the noise level of the next step
                target = scheduler.add_noise(target, known.noise, later.repeat(len(known.noise)))
            latents = known.keep * target + (1 - known.keep) * latents
        if monitor.on_step is not None:
            monitor.on_step(Step(index, len(timesteps), latents))
    return check_finite(latents, UNET)


def prediction_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """(b, c, h, w): the noise (epsilon), or the velocity (Salimans and Ho 2022)."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    raise ValueError(f"the model predicts {kind!r}; training knows epsilon and v_prediction")


def min_snr_weight(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """(b,) loss weights: min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for velocity; gamma 0: all 1.

    Hang et al. 2023, equation 11: every prediction is weighted as if the clean latents were predicted.
    """
    if not gamma:
        return torch.ones(len(timesteps), device=timesteps.device)
    snr = compute_snr(scheduler, timesteps)
    clipped = snr.clamp(max=gamma)
    if scheduler.config.prediction_type == "v_prediction":
        return clipped / (snr + 1)
    # Without any signal (SNR 0) the limit of min(SNR, gamma) / SNR is 1.
    return torch.where(snr > 0, clipped / snr.clamp_min(1e-12), 1.0)
