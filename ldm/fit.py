"""One training loop on accelerate: deterministic order, accumulation, clipping, half precision, exact resume.

    def loss(model, batch, seeds): return model(**batch).loss
    fit(config, Path("runs/x"), model, loss, dataset, collate=collate, held_out=validation_set)

Everything random follows from (seed, epoch, example) or (seed, epoch, batch): a run that was interrupted
and started again by the same call ends as if nothing had happened. Runs under `accelerate launch` and
`torchrun` on several processes; only the first one writes.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import Dataset, default_collate

from ldm.config import check_settings, setting
from ldm.fit_batches import Collate, Loss, Measure, Validation
from ldm.fit_run import Run
from ldm.resume import Layout, Order, chosen_checkpoint

SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


@dataclass(frozen=True)
class FitConfig:
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
    schedule: str = setting("constant_with_warmup", choices=SCHEDULES, help="course of the learning rate")
    warmup: float = setting(0.01, low=0.0, help="warm-up: a share of all steps, or a number of steps from 1")
    clip: float = setting(1.0, low=0.0, help="gradient norm limit; 0 = none")
    precision: str = setting("no", choices=("no", "fp16", "bf16"), help="mixed precision")
    device: str = setting("auto", choices=("auto", "cpu"), help="where to train")
    ema: float = setting(0.0, low=0.0, high=0.99999, help="decay of the weight average; 0 = none")
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

    def __post_init__(self) -> None:
        check_settings(self)

    def steps_for(self, examples: int, processes: int = 1) -> int:
        """Optimizer steps of the whole run."""
        batches = Order(examples, self.batch, 0, 0, processes).batches
        return self.steps or self.epochs * math.ceil(batches / self.accumulate)


@dataclass(frozen=True)
class Outcome:
    """How a run ended. best: checkpoint with the lowest validation loss, where there is a validation set."""

    step: int
    stopped_early: bool
    newest: Path
    best: Path | None
    seconds: float


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


def fit(
    config: FitConfig,
    out: Path,
    model: nn.Module,
    loss: Loss,
    data: Dataset,
    *,
    collate: Collate = default_collate,
    held_out: Dataset | None = None,
    measure: Measure | None = None,
    layout: Layout | None = None,
    rates: Callable[[str], float] | None = None,
    accelerator: Accelerator | None = None,
) -> Outcome:
    """Train the parameters of `model` that require gradients; the same call again continues in `out`.

    loss(model, batch, seeds): mean loss of a collated batch, ();  model: the one to call, which may be
        wrapped for several processes;  seeds: one per example, for its noise (`ldm.denoise.noise_for`)
    data: has a length and items; where it has `set_epoch(n)`, that is called before each epoch
    held_out: its mean loss is the validation loss, always with the same seeds
    rates(name): learning rate of a parameter; metrics.csv shows the first one
    measure(model): more numbers for validation.csv, called without gradients on every process
    The process group stays open; `accelerator.end_training()` is the caller's last act on several processes.
    At the end the model holds the averaged weights where `config.ema` keeps them.
    Raises ValueError for an empty data set, a damaged or foreign checkpoint, a loss that is not finite.
    """
    accelerator = accelerator or make_accelerator(config, out)
    if not len(data):  # type: ignore[arg-type]
        raise ValueError("the training set holds no examples")
    if config.patience and held_out is None:
        raise ValueError(f"patience={config.patience} needs a validation set")
    newest = chosen_checkpoint(out, config.resume)
    validation = Validation(
        accelerator, loss, collate, held_out, measure, config.batch, config.workers, config.seed
    )
    run = Run(config, out, accelerator, model, loss, data, collate, validation, layout or Layout(), rates)
    accelerator.wait_for_everyone()
    run.start(newest)
    try:
        run.to_the_end()
    finally:
        run.bar.close()
        for tracker in accelerator.trackers:
            tracker.finish()
    progress, best = run.progress, run.checkpoint(run.progress.best_step)
    return Outcome(
        progress.step,
        progress.stopped,
        run.checkpoint(progress.step),
        best if math.isfinite(progress.best) and best.is_dir() else None,
        progress.seconds,
    )
