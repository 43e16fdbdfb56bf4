"""One training loop for every stage of the small inpainter: deterministic by step, resumable, logged to CSV.

The batch of a step is a function of (seed, step), so a run that was interrupted continues to the same result.
The learning rate depends on (step, steps): constant after a warm-up, then a cosine to zero. A run may
therefore be continued with more or fewer `steps` while it is in its constant part.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ldm.files import write_atomic
from ldm.settings.config import CheckedSettings, setting

STATE, LOG = "state.pt", "log.csv"
Losses = Callable[[int], dict[str, Tensor]]


@dataclass(frozen=True)
class LoopConfig(CheckedSettings):
    """How long and how fast a stage learns."""

    steps: int = setting(1000, low=1, help="optimizer steps")
    batch: int = setting(8, low=1, help="examples per step")
    lr: float = setting(1e-3, low=0.0, help="peak learning rate")
    warmup: int = setting(100, low=0, help="steps of linear warm-up")
    decay: float = setting(0.3, low=0.0, high=1.0, help="last share of the steps: cosine to zero")
    weight_decay: float = setting(0.01, low=0.0, help="of AdamW")
    clip: float = setting(1.0, low=0.0, help="largest norm of the gradient")
    ema: float = setting(0.999, low=0.0, high=1.0, help="decay of the averaged weights that are kept")
    bf16: bool = setting(True, help="bfloat16 autocast; about twice as fast on recent CPUs")
    seed: int = setting(0, help="seed of initialisation and of every batch")
    log_every: int = setting(50, low=1, help="steps between rows of log.csv")
    checkpoint_every: int = setting(250, low=1, help="steps between checkpoints")


def rate(step: int, config: LoopConfig) -> float:
    """Learning rate at `step` as a share of the peak."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    flat = round(config.steps * (1 - config.decay))
    if step < flat:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - flat) / max(1, config.steps - flat)))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


class Average:
    """Exponential average of weights, with a shorter memory in the first steps."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int) -> None:
        keep = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), [weights[name] for name in self.values], 1 - keep)


def read_state(folder: Path) -> dict[str, Any] | None:
    """The last checkpoint of a run, None before the first."""
    path = folder / STATE
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


@torch.no_grad()
def load_average(model: nn.Module, folder: Path) -> int:
    """Put the averaged weights of a run's last checkpoint into `model`; returns its number of steps."""
    state = read_state(folder)
    if state is None:
        raise ValueError(f"{folder}: no checkpoint ({STATE}); train this stage first")
    own = trainable(model)
    if own.keys() != state["average"].keys():
        raise ValueError(f"{folder}/{STATE} holds other weights than this model; choose another folder")
    for name, value in state["average"].items():
        own[name].copy_(value)
    return int(state["step"])


def fit(model: nn.Module, losses: Losses, config: LoopConfig, folder: Path) -> float:
    """Minimise the sum of losses(step); leaves the averaged weights in `model`.

    losses: step -> named scalars, which are added and logged; returns the seconds of training, pauses apart
    """
    weights = trainable(model)
    optimizer = torch.optim.AdamW(
        weights.values(), config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    average, first, seconds = Average(weights, config.ema), 0, 0.0
    state = read_state(folder)
    if state is not None:
        first, seconds = _restore(state, weights, optimizer, average, folder)
        _forget_after(folder, first)
    started = time.monotonic() - seconds
    for step in tqdm(range(first, config.steps), initial=first, total=config.steps, desc=folder.name):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate(step, config)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            parts = losses(step)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(parts.values())).sum().backward()
        nn.utils.clip_grad_norm_(weights.values(), config.clip)
        optimizer.step()
        average.update(weights, step)
        seconds = time.monotonic() - started
        done = step + 1
        if done % config.log_every == 0:
            _log(folder, done, seconds, {name: value.item() for name, value in parts.items()})
        if done % config.checkpoint_every == 0 or done == config.steps:
            _save(folder, done, seconds, weights, optimizer, average)
    load_average(model, folder)
    return seconds


def _restore(
    state: dict[str, Any],
    weights: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: Average,
    folder: Path,
) -> tuple[int, float]:
    if state["weights"].keys() != weights.keys():
        raise ValueError(f"{folder}/{STATE} holds other weights than this model; choose another folder")
    with torch.no_grad():
        for name, value in state["weights"].items():
            weights[name].copy_(value)
            average.values[name].copy_(state["average"][name])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["seconds"])


def _save(
    folder: Path,
    step: int,
    seconds: float,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    average: Average,
) -> None:
    buffer = io.BytesIO()
    state = {
        "step": step,
        "seconds": seconds,
        "weights": {name: value.detach() for name, value in weights.items()},
        "average": average.values,
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, buffer)
    write_atomic(folder / STATE, buffer.getvalue())


def _forget_after(folder: Path, step: int) -> None:
    """Drop the log's rows after `step`: they are trained, and written, again."""
    path = folder / LOG
    if path.exists():
        title, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [row for row in rows if int(row.split(",")[0]) <= step]
        write_atomic(path, "".join([title, *kept]).encode())


def _log(folder: Path, step: int, seconds: float, values: dict[str, float]) -> None:
    path = folder / LOG
    folder.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["step", "seconds", *values])
        writer.writerow([step, f"{seconds:.1f}", *(f"{value:.5f}" for value in values.values())])
