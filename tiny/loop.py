"""The training loop of all small networks: warm-up and cosine, weight average, CSV log, exact continuation.

The loss of a step is a function of the step number, so an interrupted run continues to the same result.
"""

import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from ldm.device import make_manifest
from ldm.files import written_whole
from ldm.training.run import CsvLogger
from ldm.training.signals import signals_noted
from tiny.settings import StageSettings

# torch keeps cast weights for all threads: another training that drops them would change how sums are rounded
autocast = functools.partial(torch.autocast, dtype=torch.bfloat16, cache_enabled=False)
Loss = Callable[[int], tuple[Tensor, dict[str, float]]]  # step -> loss, numbers for the log


class WarmAverage(EMAModel):
    """A weight average with a shorter memory in the first steps: n / (9 + n) at step n, then `decay`."""

    def get_decay(self, optimization_step: int) -> float:
        return min(self.decay, optimization_step / (9 + optimization_step))


@dataclass
class Stage:
    """One stage of a run in the folder `out`; made with the state of its checkpoint, where there is one.

    groups: parameters with their peak learning rates; none: all that require gradients, at settings.lr
    schedule: makes a scheduler that replaces warm-up and cosine
    same: settings that a continued run must share with the run that wrote the checkpoint
    """

    name: str
    module: nn.Module
    settings: StageSettings
    out: Path
    groups: Sequence[tuple[list[nn.Parameter], float]] = ()
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None = None
    same: Mapping[str, Any] = field(default_factory=dict)
    state_file: str = "state.pt"
    log_file: str = "log.csv"

    def __post_init__(self) -> None:
        settings = self.settings
        self.weights = {name: value for name, value in self.module.named_parameters() if value.requires_grad}
        groups = self.groups or [(list(self.weights.values()), settings.lr)]
        self.peaks = [lr for _, lr in groups if lr > 0]
        self.optimizer = torch.optim.AdamW(
            [{"params": parameters, "lr": lr} for parameters, lr in groups if lr > 0],
            betas=settings.betas, weight_decay=settings.weight_decay, fused=True)  # fmt: skip
        self.scheduler = self.schedule(self.optimizer) if self.schedule else None
        self.average = WarmAverage(self.weights.values(), decay=settings.ema) if settings.ema else None
        self.step, self.seconds, self.recent = 0, 0.0, list[dict[str, float]]()  # measures since the last row
        self.checkpoint = self.out / self.state_file
        if self.checkpoint.exists():
            self._load(torch.load(self.checkpoint, map_location="cpu", weights_only=True))

    @property
    def fraction(self) -> float:
        """What is done of the stage, by steps or by minutes, whichever is further."""
        minutes = self.settings.minutes
        return max(self.step / self.settings.steps, self.seconds / (60 * minutes) if minutes else 0.0)

    @property
    def done(self) -> bool:
        return self.fraction >= 1

    def _load(self, state: dict[str, Any]) -> None:
        """Continue from a state; earlier versions called its weights `module` or `model`."""
        before = state.get("settings", {})
        if {name: self.same.get(name) for name in before} != before:
            wrong = "was made with other settings; choose another out= or remove it"
            raise ValueError(f"{self.checkpoint} {wrong}")
        weights = next(state[key] for key in ("weights", "module", "model") if key in state)
        shapes = {name: value.shape for name, value in self.module.state_dict().items()}
        same = all(shapes.get(name) == value.shape for name, value in weights.items())
        if not (same and self.weights.keys() <= weights.keys()):
            raise ValueError(f"{self.checkpoint} holds other weights than this model; choose another folder")
        self.module.load_state_dict(weights, strict=False)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            wrong = "an earlier version trained other parameters in this stage"
            way = "remove the file to train the stage again, or choose another out="
            raise ValueError(f"{self.checkpoint}: {wrong}; {way}") from error
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["schedule"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.recent = state.get("recent", [])
        if self.average is not None:
            self.average.optimization_step = self.step
            for name, shadow in zip(self.weights, self.average.shadow_params, strict=True):
                shadow.copy_(state["average"][name])
        logging.getLogger(__name__).info("%s: continuing at step %d", self.name, self.step)

    def save(self) -> None:
        """Write the checkpoint: what trains and the buffers, whole or not at all."""
        frozen = {name for name, value in self.module.named_parameters() if not value.requires_grad}
        state = {
            "settings": dict(self.same),
            "weights": {name: v for name, v in self.module.state_dict().items() if name not in frozen},
            "optimizer": self.optimizer.state_dict(),
            "step": self.step, "seconds": self.seconds, "recent": self.recent}  # fmt: skip
        if self.average is not None:
            state["average"] = dict(zip(self.weights, self.average.shadow_params, strict=True))
        if self.scheduler is not None:
            state["schedule"] = self.scheduler.state_dict()
        with written_whole(self.checkpoint) as partial:
            torch.save(state, partial)

    def train(self, loss: Loss) -> "Stage":
        """Train to the end; leaves the averaged weights in the module. Ctrl-C and SIGTERM save their step."""
        if not self.done:
            self._to_the_end(loss)
        if self.average is not None:
            self.average.copy_to(self.weights.values())
        return self

    def _to_the_end(self, loss: Loss) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        table, settings = CsvLogger(self.out / self.log_file), self.settings
        table.truncate(self.step)
        started, saved = time.monotonic() - self.seconds, self.seconds
        self.module.train()
        bar = tqdm(total=100, desc=self.name, unit="%", bar_format="{l_bar}{bar}| {elapsed} {postfix}")
        with signals_noted() as signals, bar:
            while not (self.done or signals):
                self.recent.append(self._step(loss))
                self.seconds = time.monotonic() - started
                if self.step % settings.log_every == 0 or self.done:
                    bar.n = 100 * min(1.0, self.fraction)
                    bar.set_postfix(loss=f"{self.recent[-1]['loss']:.3f}")
                    table.append({"step": self.step, "seconds": self.seconds, **means(self.recent)})
                    self.recent = []
                if self.seconds - saved > settings.save_every_s:
                    self.save()
                    saved = self.seconds
            self.save()

    def _step(self, loss: Loss) -> dict[str, float]:
        groups, settings = self.optimizer.param_groups, self.settings
        # Linear warm-up, constant part, cosine to `final_lr` over the part `decay`.
        if self.scheduler is None:
            rate = min(1.0, (self.step + 1) / max(1, settings.warmup))
            # Without a constant part the cosine falls from the first step on.
            if rate == 1 or settings.decay == 1:
                late = (self.fraction - (1 - settings.decay)) / max(settings.decay, 1e-9)
                cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, late))))
                rate *= settings.final_lr + (1 - settings.final_lr) * cosine
            for group, peak in zip(groups, self.peaks, strict=True):
                group["lr"] = peak * rate
        value, measures = loss(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], settings.clip)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.average is not None:
            self.average.step(self.weights.values())
        self.step += 1
        return {"loss": float(value.detach())} | {name: float(measures[name]) for name in measures}


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every number over the rows that have it."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: fmean(row[key] for row in rows if key in row) for key in keys}


def stages_manifest(
    part: str, model: nn.Module, stages: Sequence[Stage], settings: Any, seed: int, **more: Any
) -> dict[str, Any]:
    """The manifest of a network that was trained in these stages. more: see `make_manifest`."""
    samples = sum(stage.step * stage.settings.batch for stage in stages)
    steps, seconds = sum(stage.step for stage in stages), sum(stage.seconds for stage in stages)
    effort = {"seed": seed, "steps": steps, "samples": samples}
    manifest = make_manifest(part, model, settings, effort, seconds, **more)
    if len(stages) > 1:
        each = ((stage.name, stage.step, round(stage.seconds / 60, 1)) for stage in stages)
        manifest["stages"] = {name: {"steps": count, "minutes": minutes} for name, count, minutes in each}
    return manifest
