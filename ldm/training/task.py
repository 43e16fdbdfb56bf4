"""What the training loop `ldm.training.fit` is given, the order of its examples, and how a run ended."""

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from ldm.settings.config import CheckedSettings, setting
from ldm.training.checkpoints import Layout

LossFunction = Callable[[nn.Module, Any, list[int]], Tensor]
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


@dataclass(frozen=True)
class ResumableSampler:
    """Which examples form which batch, from (seed, epoch) alone.

    The batches of all processes together are consecutive parts of one permutation of the examples; process
    r takes the r-th part of each. So several processes see what one with a larger batch would see, in the
    same order. The last batch of an epoch is smaller; it is filled up from the start where processes need it.
    """

    examples: int
    batch: int  # per process
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def batches(self) -> int:
        """Per epoch and process."""
        return -(-self.examples // (self.batch * self.world))

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of this process, as lists of examples."""
        order = np.random.default_rng((self.seed, number)).permutation(self.examples)
        whole = self.batch * self.world
        found = []
        for start in range(0, self.examples, whole):
            part = order[start : start + whole]
            part = np.concatenate([part, np.resize(order, -len(part) % self.world)])
            found.append(np.array_split(part, self.world)[self.rank].tolist())
        return found


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

    def optimizer(self, config: FitConfig, weights: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW over weights by name, grouped by learning rate."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, value in weights.items():
            groups.setdefault(config.lr if self.rates is None else self.rates(name), []).append(value)
        return torch.optim.AdamW(
            [{"params": values, "lr": lr} for lr, values in groups.items()],
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
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


@dataclass(frozen=True)
class FitOutcome:
    """How a run ended. best: checkpoint with the lowest validation loss, where there is a validation set."""

    step: int
    stopped_early: bool
    newest: Path
    best: Path | None


def make_accelerator(config: FitConfig, out: Path) -> Accelerator:
    """The processes and the device of a run, for callers that place other models beside the trained one."""
    package = None if config.tracker == "none" else importlib.util.find_spec(config.tracker)
    # A folder of that name, which a tracker's runs may leave behind, has a spec too, but no origin.
    if config.tracker != "none" and (package is None or package.origin is None):
        raise ValueError(
            f"tracker={config.tracker} needs a package that is not installed: "
            f"pip install {config.tracker} (requirements-extras.txt)"
        )
    AcceleratorState._reset_state()  # a process may run one training after another
    cpu = config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if cpu and config.precision == "fp16":
        raise ValueError("precision=fp16 needs a GPU; on a CPU set precision to bf16 or no")
    tracker = None if config.tracker == "none" else config.tracker
    return Accelerator(mixed_precision=config.precision, cpu=cpu, log_with=tracker, project_dir=out)
