"""Training that accelerate runs: settings, order of the examples, progress; what an adapter is."""

import logging
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ldm.settings.config import CheckedSettings, check_settings, setting

log = logging.getLogger(__name__)

SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


@dataclass(frozen=True)
class ResumableSampler:
    """Which examples form which batch, from (seed, epoch) alone.

    Several processes see what one with a larger batch would see, in the same order: process r takes the r-th
    part of each. The last batch of an epoch is smaller, and filled up from the start where processes need it.
    """

    examples: int
    batch: int  # per process
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def batches(self) -> int:  # per epoch and process
        return -(-self.examples // (self.batch * self.world))

    def epoch(self, number: int) -> list[list[int]]:
        order = np.random.default_rng((self.seed, number)).permutation(self.examples)
        order = np.concatenate([order, np.resize(order, -self.examples % self.world)])
        whole = self.batch * self.world
        parts = [order[start : start + whole] for start in range(0, len(order), whole)]
        return [np.array_split(part, self.world)[self.rank].tolist() for part in parts]


@dataclass(frozen=True)
class FitConfig(CheckedSettings):
    """How long, how fast and with what arithmetic a model is trained, and what is kept of it."""

    REMOVED: ClassVar = ("resume",)  # keys of earlier runs, read without effect

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
    seed: int = setting(0, low=0, help="seed of order, noise and dropout")

    def steps_for(self, examples: int, processes: int = 1) -> int:
        batches = ResumableSampler(examples, self.batch, 0, 0, processes).batches
        return self.steps or self.epochs * math.ceil(batches / self.accumulate)


@dataclass
class TrainingProgress:
    step: int = 0  # optimizer steps done
    epoch: int = 0
    batch: int = 0  # batches of this epoch done, per process
    loss_sum: float = 0.0  # of the batches since the last row, mean over processes
    loss_count: int = 0
    best: float = math.inf  # lowest validation loss
    best_step: int = 0
    since_best: int = 0  # validations
    stopped: bool = False
    seconds: float = 0.0  # spent on this run, interruptions left out

    def is_due(self, every: int) -> bool:
        """Whether what is done after each `every` steps is done now; 0 = never."""
        return every > 0 and self.step % every == 0

    def note_validation(self, loss: float, patience: int) -> None:
        """Note a validation loss; `patience` of them in a row that are not lower stop the run (0 = never)."""
        if loss < self.best:
            self.best, self.best_step, self.since_best = loss, self.step, 0
            return
        self.since_best += 1
        if patience and self.since_best >= patience:
            self.stopped = True
            log.info("stopped after step %d: the lowest validation loss stays %.5g", self.step, self.best)


LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
INITS = ("uniform", "gaussian")


@dataclass(frozen=True)
class LoraSettings:
    rank: int = setting(128, low=0, help="rank of the LoRA matrices; 0: the language model itself is trained")
    alpha: int = setting(256, low=1, help="LoRA scale is alpha / rank")
    dropout: float = setting(0.05, low=0.0, high=0.9, help="LoRA dropout")
    targets: tuple[str, ...] = setting(LINEARS, help="linear layers of the language model that get LoRA")
    projector: bool = setting(True, help="also train what maps images into the language model")
    init: str = setting("uniform", choices=INITS, help="initial values of the inner LoRA matrices")

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.targets:
            raise ValueError("targets must name at least one kind of linear layer")
