"""One training loop on accelerate: deterministic order, accumulation, clipping, half precision, exact resume.

    def loss(model, batch, seeds): return model(**batch).loss
    fit(config, Path("runs/x"), model, Task(loss, dataset, collate, held_out=validation_set))

Everything random follows from (seed, epoch, example) or (seed, epoch, batch): a run that was interrupted
and started again by the same call ends as if nothing had happened. Runs under `accelerate launch` and
`torchrun` on several processes; only the first one writes.
"""

import importlib.util
import math
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from ldm.training.checkpoints import chosen_checkpoint
from ldm.training.run import TrainingRun
from ldm.training.task import FitConfig, FitOutcome, Task


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
    config: FitConfig, out: Path, model: nn.Module, task: Task, accelerator: Accelerator | None = None
) -> FitOutcome:
    """Train the parameters of `model` that require gradients; the same call again continues in `out`.

    The process group stays open; `accelerator.end_training()` is the caller's last act on several processes.
    At the end the model holds the averaged weights where `config.ema` keeps them.
    Raises ValueError for an empty data set, a damaged or foreign checkpoint, a loss that is not finite.
    """
    accelerator = accelerator or make_accelerator(config, out)
    if not len(task.data):  # type: ignore[arg-type]
        raise ValueError("the training set holds no examples")
    if config.patience and task.held_out is None:
        raise ValueError(f"patience={config.patience} needs a validation set")
    newest = chosen_checkpoint(out, config.resume)
    run = TrainingRun(config, out, accelerator, model, task)
    accelerator.wait_for_everyone()
    run.start(newest)
    try:
        run.to_the_end()
    finally:
        run.bar.close()
        for tracker in accelerator.trackers:
            tracker.finish()
    progress, best = run.progress, run.checkpoint(run.progress.best_step)
    return FitOutcome(
        progress.step,
        progress.stopped,
        run.checkpoint(progress.step),
        best if math.isfinite(progress.best) and best.is_dir() else None,
        progress.seconds,
    )
