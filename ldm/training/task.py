"""What the training loop `ldm.training.fit` is given, and how a run ended."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from ldm.settings.config import CheckedSettings, setting
from ldm.training.checkpoints import Layout, ResumableSampler

LossFunction = Callable[[nn.Module, Any, list[int]], Tensor]
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


@dataclass(frozen=True)
class FitConfig(CheckedSettings):
    """How long, how fast and with what arithmetic a model is trained, and what is kept of it."""

    epochs: int = setting(1, low=1, help="passes over the examples")
    steps: int = setting(0, low=0, help="optimizer steps; 0: as many as the epochs take")
    batch: int = setting(8, low=1, help="examples per batch and process")
    accumulate: int = setting(1, low=1, help="batches per optimizer step")
    workers: int = setting(4, low=0, help="loader processes; 0 loads in the training process")
    lr: float = setting(1e-4, low=0.0, help="learning rate of AdamW")
    betas: tuple[float, float] = setting((0.9, 0.999), help="AdamW betas")
    eps: float = setting(1e-8, low=0.0, help="AdamW epsilon")
    weight_decay: float = setting(0.01, low=0.0, help="AdamW weight decay")
    schedule: str = setting("constant_with_warmup", choices=SCHEDULES, help="learning-rate schedule")
    warmup: float = setting(0.01, low=0.0, help="warm-up: fraction of all steps, or a number of steps from 1")
    clip: float = setting(1.0, low=0.0, help="gradient norm limit; 0 = none")
    precision: str = setting("no", choices=("no", "fp16", "bf16"), help="mixed precision")
    device: str = setting("auto", choices=("auto", "cpu"), help="where to train")
    ema: float = setting(
        0.0, low=0.0, high=0.99999, help="decay of the weights' moving average (EMA); 0 = none"
    )
    save_every: int = setting(500, low=0, help="steps between checkpoints; 0 = none but those below")
    save_epochs: bool = setting(True, help="a checkpoint at the end of each epoch; there is one at the end")
    keep: int = setting(2, low=1, help="checkpoints that stay: the newest, and the best besides")
    log_every: int = setting(10, low=1, help="steps between rows of metrics.csv")
    validate_every: int = setting(0, low=0, help="steps between validations; 0: at the end of each epoch")
    patience: int = setting(0, low=0, help="stop after so many validations without a lower loss; 0 = never")
    tracker: str = setting(
        "none", choices=("none", "tensorboard", "wandb"), help="also send the numbers of metrics.csv there"
    )
    resume: str = setting("latest", help="go on from this checkpoint: latest, none, or its name")
    seed: int = setting(0, low=0, help="seed of order, noise and dropout")

    def steps_for(self, examples: int, processes: int = 1) -> int:
        """Optimizer steps of the whole run."""
        batches = ResumableSampler(examples, self.batch, 0, 0, processes).batches
        return self.steps or self.epochs * math.ceil(batches / self.accumulate)


@dataclass(frozen=True)
class FitOutcome:
    """How a run ended. best: checkpoint with the lowest validation loss, where there is a validation set."""

    step: int
    stopped_early: bool
    newest: Path
    best: Path | None
    seconds: float


@dataclass(frozen=True)
class Task:
    """What a model learns from which examples, and what is measured meanwhile.

    loss(model, batch, seeds): mean loss of a collated batch, ();  model: the one to call, which may be
        wrapped for several processes;  seeds: one per example, for its noise (`ldm.denoise.noise_for`)
    data: has a length and items; where it has `set_epoch(n)`, that is called before each epoch
    held_out: its mean loss is the validation loss, always with the same seeds
    measure(model): more numbers for validation.csv, called without gradients on every process
    rates(name): learning rate of a parameter; metrics.csv shows the first one
    """

    loss: LossFunction
    data: Dataset
    collate: Callable[[list], Any] = default_collate
    held_out: Dataset | None = None
    measure: Callable[[nn.Module], dict[str, float]] | None = None
    layout: Layout = Layout()
    rates: Callable[[str], float] | None = None

    def loader(self, data: Dataset, batches: list[list[int]], workers: int) -> DataLoader:
        """Reads the examples of each batch, in up to `workers` processes."""
        return DataLoader(
            data,
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=min(workers, len(batches)),
            generator=torch.Generator().manual_seed(0),  # the loader draws from it, no example does
        )


def is_due(step: int, every: int) -> bool:
    """Whether something is done after `step`; every 0 = never."""
    return every > 0 and step % every == 0


@contextlib.contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Draws without a generator, such as dropout, follow from `seed`; the state outside stays as it is."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
