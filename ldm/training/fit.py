"""One training loop on accelerate: deterministic order, accumulation, clipping, half precision, exact resume.

    def loss(model, batch, seeds): return model(**batch).loss
    fit(config, Path("runs/x"), model, Task(loss, dataset, collate, held_out=validation_set))

Everything random follows from (seed, epoch, example) or (seed, epoch, batch), so an interruption changes
nothing. Runs under `accelerate launch` and `torchrun` on several processes; only the first one writes.
"""

import contextlib
import logging
import math
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm.auto import tqdm

from ldm.checkpoints import drawing, in_precision
from ldm.seeds import seed_of
from ldm.training.run import (
    CHECKPOINT_PREFIX,
    CsvLogger,
    Task,
    agreed_checkpoint,
    checkpoint_folders,
    make_accelerator,
    read_checkpoint,
    tracker_id,
    trained,
    write_checkpoint,
)
from ldm.training.settings import FitConfig, ResumableSampler, TrainingProgress
from ldm.training.signals import signals_noted

log = logging.getLogger(__name__)

METRICS_COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm", "samples_per_second")


def fit(
    config: FitConfig, out: Path, model: nn.Module, task: Task, accelerator: Accelerator | None = None
) -> tuple[Path, Path | None]:
    """Train the parameters of `model` that require gradients; the same call again continues in `out`.

    returns: the checkpoint of the last step, and that of the lowest validation loss, if one was measured.
    `accelerator.end_training()` is the caller's last act on several processes. At the end the model holds the
    averaged weights where `config.ema` keeps them. Ctrl-C and SIGTERM save a checkpoint of their step, which
    the next one replaces. ValueError for an empty data set, a foreign checkpoint, a loss that is not finite.
    """
    accelerator = accelerator or make_accelerator(config, out)
    if not len(task.data):  # type: ignore[arg-type]
        raise ValueError("the training set holds no examples")
    if config.patience and task.held_out is None:
        raise ValueError(f"patience={config.patience} needs a validation set")
    start = agreed_checkpoint(accelerator, out)
    run = TrainingRun(config, out, accelerator, model, task)
    accelerator.wait_for_everyone()
    run.start(start)
    with in_precision(config.precision, accelerator.mixed_precision), signals_noted() as run.signals:
        try:
            while not (run.done or run.stopping):
                run.one_epoch()
        finally:
            run.bar.close()
            for tracker in accelerator.trackers:
                tracker.finish()
    if run.average is not None:
        run.average.copy_to(list(run.weights.values()))
    accelerator.unwrap_model(run.model, keep_fp32_wrapper=False)
    progress, best = run.progress, run.checkpoint(run.progress.best_step)
    return run.checkpoint(progress.step), best if math.isfinite(progress.best) and best.is_dir() else None


class TrainingRun:
    def __init__(
        self, config: FitConfig, out: Path, accelerator: Accelerator, model: nn.Module, task: Task
    ) -> None:
        self.config, self.out, self.accelerator, self.task = config, out, accelerator, task
        self.is_main, world = bool(accelerator.is_main_process), accelerator.num_processes
        examples = len(task.data)  # type: ignore[arg-type]
        # A continued run must share these with the one before: its order of examples follows from them.
        self.facts = {"examples": examples, "batch": config.batch * world, "seed": config.seed}
        self.facts["accumulate"] = config.accumulate
        self.order = ResumableSampler(examples, config.batch, config.seed, accelerator.process_index, world)
        self.total = config.steps_for(examples, world)
        self.weights = trained(model)
        if not self.weights:
            raise ValueError("no parameter of the model requires gradients: nothing to train")
        optimizer = task.optimizer(config, self.weights)
        warmup = math.ceil(config.warmup * self.total) if config.warmup < 1 else int(config.warmup)
        self.schedule = get_scheduler(config.schedule, optimizer, None, warmup, self.total)
        self.plain = model
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.average = EMAModel(list(self.weights.values()), decay=config.ema) if config.ema else None
        self.progress = TrainingProgress()
        self.signals, self.stopping = list[int](), False
        self.surplus: list[Path] = []  # the checkpoint of an interruption, until there is a later one
        self.loss_sum, self.grad_norm = torch.zeros((), device=accelerator.device), torch.tensor(math.nan)
        self.rows = CsvLogger(out / "metrics.csv", METRICS_COLUMNS)
        self.validation_rows = CsvLogger(out / "validation.csv")
        self.samples, self.row_time, self.started = 0, time.monotonic(), time.monotonic()
        self.bar = tqdm(total=self.total, desc="training", disable=None if self.is_main else True)

    @property
    def done(self) -> bool:
        return self.progress.stopped or self.progress.step >= self.total

    def checkpoint(self, step: int) -> Path:
        return self.out / f"{CHECKPOINT_PREFIX}{step}"

    def start(self, newest: Path | None) -> None:
        if newest is not None:
            self.restore(newest)
        if self.average is not None:
            self.average.to(self.accelerator.device)
        if self.is_main:
            for table in (self.rows, self.validation_rows):
                table.truncate(self.progress.step)
        if self.config.tracker != "none" and self.is_main:
            wandb = {"id": tracker_id(self.out), "resume": "allow", "name": self.out.name, "dir": self.out}
            again = self.progress.step + 1 if newest else None  # what came after it is sent again
            options = {"wandb": wandb, "tensorboard": {"purge_step": again}}
            settings = {**vars(self.config), "betas": str(self.config.betas)}  # tensorboard takes no lists
            self.accelerator.init_trackers(self.out.name, settings, options)
        self.bar.update(self.progress.step)
        self.started = time.monotonic() - self.progress.seconds

    def restore(self, folder: Path) -> None:
        weights, state, average = read_checkpoint(folder, self.task.layout, self.weights)
        differ = [f"{key}={value} (was {state['facts'].get(key)})" for key, value in self.facts.items()
                  if state["facts"].get(key) != value]  # fmt: skip
        if differ:
            raise ValueError(f"{folder}: this run was begun with other settings: {', '.join(differ)}")
        if (average is None) != (self.average is None):
            raise ValueError(f"{folder}: this run was begun {'with' if average else 'without'} ema")
        with torch.no_grad():
            for name, value in weights.items():
                self.weights[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None and average is not None:
            shadows = [average[name] for name in self.weights]
            self.average.load_state_dict({**state["average"], "shadow_params": shadows})
        self.progress = TrainingProgress(**state["progress"])
        self.loss_sum += self.progress.loss_sum
        self.surplus = [folder] if state.get("interrupted") else []
        log.info("continuing %s", folder)

    def one_epoch(self) -> None:
        """The rest of this epoch: each batch forward and backward, a step after `accumulate` of them."""
        progress, seed, every = self.progress, self.config.seed, self.config.accumulate
        accelerator, data, epoch = self.accelerator, self.task.data, progress.epoch
        batches = self.order.epoch(epoch)
        if hasattr(data, "set_epoch"):
            data.set_epoch(epoch)
        todo, first = batches[progress.batch :], progress.batch
        loader = self.task.loader(data, todo, self.config.workers)
        for number, (items, batch) in enumerate(zip(todo, loader, strict=True), first):
            count = min(every, len(batches) - number // every * every)  # batches of this step
            last = (number + 1) % every == 0 or number + 1 == len(batches)
            batch = send_to_device(batch, accelerator.device)
            seeds = [seed_of(seed, epoch, item) for item in items]
            draw = seed_of(seed, epoch, number, "dropout", accelerator.process_index)
            self.model.train()
            for module in self.model.modules():  # the statistics of frozen ones would drift, in no checkpoint
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and not trained(module):
                    module.eval()
            together = contextlib.nullcontext() if last else accelerator.no_sync(self.model)
            with together, drawing(draw, accelerator.device):  # recomputed layers draw in the backward pass
                with accelerator.autocast():
                    loss = self.task.loss(self.model, batch, seeds)
                accelerator.backward(loss / count)
            self.loss_sum += loss.detach()
            progress.loss_count += 1
            self.samples += len(items) * accelerator.num_processes
            if not last:
                continue
            progress.batch = number + 1
            if progress.batch == len(batches):
                progress.epoch, progress.batch = epoch + 1, 0
            self.one_step()
            if self.done or self.stopping:
                return

    def one_step(self) -> None:
        config, progress = self.config, self.progress
        self.grad_norm = self.accelerator.clip_grad_norm_(self.weights.values(), config.clip or math.inf)
        rate = float(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.step(list(self.weights.values()))
        progress.step += 1
        self.bar.update()
        epoch_ends, ends = progress.batch == 0, progress.step == self.total
        if progress.is_due(config.log_every) or ends:
            self.write_row(rate)
        if progress.is_due(config.validate_every) or ends or (epoch_ends and not config.validate_every):
            self.validate()
        saving = progress.is_due(config.save_every) or (epoch_ends and config.save_epochs)
        saving = saving or self.done or progress.best_step == progress.step
        # Several processes agree where they wait for each other anyway.
        alone = self.accelerator.num_processes == 1
        if alone or progress.is_due(config.log_every):
            came = torch.tensor(float(sum(self.signals)), device="cpu" if alone else self.loss_sum.device)
            self.stopping = bool(self.accelerator.reduce(came))
            self.signals += [signal.SIGTERM] if self.stopping and not self.signals else []
        if saving or self.stopping:
            self.save(interrupted=not saving)

    def mean_loss(self) -> float:
        """Of the batches since the last row, over all processes; a loss that is not finite ends the run."""
        value = float(self.accelerator.reduce(self.loss_sum.clone(), "mean"))
        if not math.isfinite(value):
            advice = "lower the learning rate, or use bf16 instead of fp16"
            raise ValueError(f"the loss is not finite after step {self.progress.step}: {advice}")
        return value

    def write_row(self, rate: float) -> None:
        progress, now = self.progress, time.monotonic()
        row = {
            "step": progress.step, "epoch": progress.epoch + progress.batch / self.order.batches,
            "loss": self.mean_loss() / progress.loss_count, "lr": rate, "grad_norm": float(self.grad_norm),
            "samples_per_second": self.samples / (now - self.row_time)}  # fmt: skip
        self.bar.set_postfix(loss=f"{row['loss']:.4g}")
        self.record("train", self.rows, row)
        self.loss_sum.zero_()
        progress.loss_count, self.samples, self.row_time = 0, 0, now

    def validate(self) -> None:
        task, weights = self.task, list(self.weights.values())
        if task.held_out is None and task.measure is None:
            return
        if self.average is not None:
            self.average.store(weights)
            self.average.copy_to(weights)
        self.plain.eval()
        row: dict[str, float] = {"step": self.progress.step, "epoch": self.progress.epoch}
        with torch.no_grad():
            if task.held_out is not None:
                row |= {"loss": task.held_out_loss(self.plain, self.config, self.accelerator)}
            if task.measure is not None:
                row |= task.measure(self.plain)
        if self.average is not None:
            self.average.restore(weights)
        if task.held_out is not None:
            self.progress.note_validation(row["loss"], self.config.patience)
        if self.is_main:
            log.info("%s", ", ".join(f"{name} {value:.5g}" for name, value in row.items()))
        self.record("val", self.validation_rows, row)

    def record(self, group: str, table: CsvLogger, row: dict[str, float]) -> None:
        if self.is_main:
            table.append(row)
        if self.config.tracker != "none":
            numbers = {f"{group}/{name}": value for name, value in row.items() if name != "step"}
            self.accelerator.log(numbers, self.progress.step)

    def save(self, interrupted: bool) -> None:
        """A checkpoint of this step; the first process writes it, the others wait."""
        progress, scaler = self.progress, self.accelerator.scaler
        progress.loss_sum = self.mean_loss()
        progress.seconds = time.monotonic() - self.started
        if self.is_main:
            state: dict[str, Any] = {"facts": self.facts, "progress": asdict(progress), "average": None}
            state |= {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
            state |= {"scaler": scaler and scaler.state_dict(), "interrupted": interrupted}
            shadows = None
            if self.average is not None:
                numbers = self.average.state_dict()
                shadows = dict(zip(self.weights, numbers.pop("shadow_params"), strict=True))
                state["average"] = numbers
            write_checkpoint(self.checkpoint(progress.step), self.task.layout, self.weights, state, shadows)
            found = [path for path in checkpoint_folders(self.out) if path not in self.surplus]
            for old in [*self.surplus, *([] if interrupted else found[: -self.config.keep])]:
                if old != self.checkpoint(progress.best_step):
                    shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()
