"""A training in stages: AdamW, warm-up and cosine, a CSV log, checkpoints from which a run continues."""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm.settings.config import CheckedSettings, setting

log = logging.getLogger(__name__)

LOG_EVERY = 50  # steps

Loss = Callable[[int], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class StageSettings(CheckedSettings):
    """How long a stage trains and how fast."""

    minutes: float = setting(0.0, help="stop after this long; 0: only `steps` count", low=0)
    steps: int = setting(1_000_000, help="optimizer steps", low=1)
    batch: int = setting(12, help="images per step", low=1)
    lr: float = setting(1e-3, help="peak learning rate", low=0)
    final_lr: float = setting(0.05, help="last learning rate as a share of the peak", low=0, high=1)
    warmup: int = setting(100, help="steps until the peak", low=0)
    bf16: bool = setting(True, help="bfloat16 autocast")
    extra: int = setting(0, help="images per step without questions, for the vision loss alone", low=0)
    vision_lr: float = setting(0.0, help="learning rate of the vision transformer; 0: frozen", low=0)


class Schedule(Protocol):
    """What decides the learning rate; see StageSettings."""

    @property
    def minutes(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def final_lr(self) -> float: ...


@dataclass
class Progress:
    """How far a stage is."""

    step: int = 0
    seconds: float = 0.0

    def share(self, settings: Schedule) -> float:
        """Share of the stage that is done, by steps or by minutes, whichever is further."""
        by_time = self.seconds / (60 * settings.minutes) if settings.minutes else 0.0
        return max(self.step / settings.steps, by_time)


def learning_rate(settings: Schedule, progress: Progress) -> float:
    """Multiplier of the peak: linear warm-up, then cosine to `final_lr`."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress.share(settings))))
    rise = min(1.0, (progress.step + 1) / max(1, settings.warmup))
    return rise * (settings.final_lr + (1 - settings.final_lr) * cosine)


class Stage:
    """One stage of a run in the folder `out`: `<name>.pt` is its state, `<name>.csv` its log.

    module: what is trained and saved; groups: its parameters with their peak learning rates.
    """

    def __init__(self, name: str, module: nn.Module, groups: Iterable[tuple[list[nn.Parameter], float]],
                 settings: StageSettings, out: Path, save_every_s: float = 60.0) -> None:  # fmt: skip
        self.name, self.module, self.settings, self.out = name, module, settings, out
        self.save_every_s = save_every_s
        rows = [{"params": parameters, "lr": lr, "peak": lr} for parameters, lr in groups if lr > 0]
        self.optimizer = torch.optim.AdamW(rows, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.progress = Progress()
        self.checkpoint = out / f"{name}.pt"

    def load(self) -> bool:
        """Continue from the checkpoint if there is one; returns whether the stage is complete."""
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        peaks = [group["peak"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak
        self.progress = Progress(state["step"], state["seconds"])
        log.info("%s: continuing at step %d", self.name, self.progress.step)
        return self.progress.share(self.settings) >= 1

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.progress.step,
            "seconds": self.progress.seconds,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def run(self, loss: Loss) -> None:
        """Train to the end, saving also when interrupted; `loss(step)` depends on the step number alone."""
        before, start = self.progress.seconds, time.monotonic()
        last_save, recent = start, []
        self.module.train()
        with tqdm(total=100, desc=self.name, unit="%", bar_format="{l_bar}{bar}| {elapsed} {postfix}") as bar:
            try:
                while self.progress.share(self.settings) < 1:
                    recent.append(self._step(loss))
                    self.progress.seconds = before + time.monotonic() - start
                    if len(recent) == LOG_EVERY:
                        self._log(recent)
                        bar.n = 100 * min(1.0, self.progress.share(self.settings))
                        bar.set_postfix(loss=f"{recent[-1]['loss']:.3f}")
                        recent = []
                    if time.monotonic() - last_save > self.save_every_s:
                        self.save()
                        last_save = time.monotonic()
            finally:
                if recent:
                    self._log(recent)
                self.save()

    def _step(self, loss: Loss) -> dict[str, float]:
        rate = learning_rate(self.settings, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        value, measures = loss(self.progress.step)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], 1.0)
        self.optimizer.step()
        self.progress.step += 1
        return {"loss": float(value.detach()), **measures}

    def _log(self, rows: list[dict[str, float]]) -> None:
        """One row: means over the last steps."""
        path = self.out / f"{self.name}.csv"
        means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        fresh = not path.exists()
        with path.open("a", newline="") as handle:
            writer = csv.writer(handle)
            if fresh:
                writer.writerow(["step", "seconds", *means])
            writer.writerow(
                [
                    self.progress.step,
                    f"{self.progress.seconds:.1f}",
                    *(f"{value:.5g}" for value in means.values()),
                ]
            )


def describe_stages(stages: Iterable[Stage]) -> dict[str, Any]:
    """What a manifest says about all stages together: samples, and steps and minutes of each."""
    stages = list(stages)
    return {
        "samples": sum(stage.progress.step * stage.settings.batch for stage in stages),
        "stages": {
            stage.name: {"steps": stage.progress.step, "minutes": round(stage.progress.seconds / 60, 1)}
            for stage in stages
        },
    }
