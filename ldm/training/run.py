"""One training run of `ldm.training.fit`: its loop, its metrics, its validations and its checkpoints."""

import contextlib
import logging
import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ldm.seeds import seed_of
from ldm.training.checkpoints import (
    CHECKPOINT_PREFIX,
    ResumableSampler,
    TrainingProgress,
    checkpoint_folders,
    read_checkpoint,
    trained,
    write_checkpoint,
)
from ldm.training.csv_log import CsvLogger
from ldm.training.task import FitConfig, Task, drawing, is_due

log = logging.getLogger(__name__)

METRICS_COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm", "samples_per_second")


class TrainingRun:
    """One training run; made by `ldm.training.fit.fit`."""

    def __init__(
        self, config: FitConfig, out: Path, accelerator: Accelerator, model: nn.Module, task: Task
    ) -> None:
        self.config, self.out, self.accelerator, self.task = config, out, accelerator, task
        examples, rank, world = len(task.data), accelerator.process_index, accelerator.num_processes  # type: ignore[arg-type]
        self.order = ResumableSampler(examples, config.batch, config.seed, rank, world)
        self.total = config.steps_for(examples, world)
        self.weights = trained(model)
        if not self.weights:
            raise ValueError("no parameter of the model requires gradients: nothing to train")
        groups: dict[float, list[nn.Parameter]] = {}  # by learning rate
        for name, value in self.weights.items():
            groups.setdefault(config.lr if task.rates is None else task.rates(name), []).append(value)
        optimizer = torch.optim.AdamW(
            [{"params": values, "lr": lr} for lr, values in groups.items()],
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
        warmup = math.ceil(config.warmup * self.total) if config.warmup < 1 else int(config.warmup)
        self.schedule = get_scheduler(
            config.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=self.total
        )
        self.plain = model
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.average = EMAModel(list(self.weights.values()), decay=config.ema) if config.ema else None
        self.progress = TrainingProgress()
        self.loss_sum = torch.zeros((), device=accelerator.device)
        self.grad_norm: Tensor | float = math.nan
        self.rows = CsvLogger(out / "metrics.csv", METRICS_COLUMNS)
        self.validation_rows = CsvLogger(out / "validation.csv")
        self.samples, self.row_time, self.started = 0, time.monotonic(), time.monotonic()
        self.bar = tqdm(total=self.total, desc="training", disable=None if self.is_main else True)

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def done(self) -> bool:
        return self.progress.stopped or self.progress.step >= self.total

    def checkpoint(self, step: int) -> Path:
        """The checkpoint folder of a step."""
        return self.out / f"{CHECKPOINT_PREFIX}{step}"

    def facts(self) -> dict[str, int]:
        """What a continued run must share with the one before: its order of examples follows from it."""
        order = self.order
        facts = {"examples": order.examples, "batch": order.batch * order.world, "seed": order.seed}
        return facts | {"accumulate": self.config.accumulate}

    def start(self, newest: Path | None) -> None:
        """Restore what `newest` holds and cut the tables off where it was written."""
        if newest is not None:
            self.restore(newest)
            log.info("continuing %s", newest)
        if self.is_main:
            for table in (self.rows, self.validation_rows):
                table.truncate(self.progress.step)
        if self.config.tracker != "none":
            self.accelerator.init_trackers(self.out.name)
        self.bar.update(self.progress.step)
        self.started = time.monotonic() - self.progress.seconds

    def restore(self, folder: Path) -> None:
        weights, state, average = read_checkpoint(folder, self.task.layout, self.weights)
        differ = [f"{key}={value} (was {state['facts'].get(key)})" for key, value in self.facts().items()
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

    def to_the_end(self) -> None:
        """Train until all steps are done or the validation loss stops the run."""
        if self.average is not None:
            self.average.to(self.accelerator.device)
        while not self.done:
            self.one_epoch()
        if self.average is not None:
            self.average.copy_to(list(self.weights.values()))
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def one_epoch(self) -> None:
        """The rest of this epoch."""
        progress, every = self.progress, self.config.accumulate
        batches = self.order.epoch(progress.epoch)
        if hasattr(self.task.data, "set_epoch"):
            self.task.data.set_epoch(progress.epoch)
        todo, epoch, first = batches[progress.batch :], progress.epoch, progress.batch
        loader = self.task.loader(self.task.data, todo, self.config.workers)
        for number, (items, batch) in enumerate(zip(todo, loader, strict=True), first):
            whole = min(every, len(batches) - number // every * every)  # batches of this step
            last = (number + 1) % every == 0 or number + 1 == len(batches)
            self.one_batch(epoch, number, items, batch, whole, last)
            if not last:
                continue
            progress.batch = number + 1
            if progress.batch == len(batches):
                progress.epoch, progress.batch = epoch + 1, 0
            self.one_step()
            if self.done:
                return

    def one_batch(
        self, epoch: int, number: int, items: list[int], batch: Any, whole: int, last: bool
    ) -> None:
        """Forward and backward of batch `number`, one of the `whole` batches of a step."""
        accelerator, seed = self.accelerator, self.config.seed
        batch = send_to_device(batch, accelerator.device)
        seeds = [seed_of(seed, epoch, item) for item in items]
        draw = seed_of(seed, epoch, number, "dropout", accelerator.process_index)
        self.model.train()
        with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
            with drawing(draw, accelerator.device), accelerator.autocast():
                loss = self.task.loss(self.model, batch, seeds)
            accelerator.backward(loss / whole)
        self.loss_sum += loss.detach()
        self.progress.loss_count += 1
        self.samples += len(items) * accelerator.num_processes

    def one_step(self) -> None:
        """The optimizer's step, and what is due after it."""
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
        if is_due(progress.step, config.log_every) or ends:
            self.write_row(rate)
        if is_due(progress.step, config.validate_every) or ends or (epoch_ends and not config.validate_every):
            self.validate()
        saving = is_due(progress.step, config.save_every) or (epoch_ends and config.save_epochs)
        if saving or self.done or progress.best_step == progress.step:
            self.save()

    def mean_loss(self) -> float:
        """Of the batches since the last row, over all processes; a loss that is not finite ends the run."""
        value = float(self.accelerator.reduce(self.loss_sum.clone(), "mean"))
        if not math.isfinite(value):
            raise ValueError(
                f"the loss is not finite after step {self.progress.step}: lower the learning rate, "
                "or use bf16 instead of fp16"
            )
        return value

    def write_row(self, rate: float) -> None:
        progress, now = self.progress, time.monotonic()
        row = {
            "step": progress.step,
            "epoch": progress.epoch + progress.batch / self.order.batches,
            "loss": self.mean_loss() / progress.loss_count,
            "lr": rate,
            "grad_norm": float(self.grad_norm),
            "samples_per_second": self.samples / (now - self.row_time),
        }
        if self.is_main:
            self.rows.append(row)
            self.bar.set_postfix(loss=f"{row['loss']:.4g}")
        self.track("train", row)
        self.loss_sum.zero_()
        progress.loss_count, self.samples, self.row_time = 0, 0, now

    def validate(self) -> None:
        """Validation loss and the caller's measures, with averaged weights where they are kept."""
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
                row |= {"loss": self.held_out_loss(task.held_out)}
            if task.measure is not None:
                row |= task.measure(self.plain)
        if self.average is not None:
            self.average.restore(weights)
        if task.held_out is not None:
            self.progress.note_validation(row["loss"], self.config.patience)
        if self.is_main:
            self.validation_rows.append(row)
            log.info("%s", ", ".join(f"{name} {value:.5g}" for name, value in row.items()))
        self.track("val", row)

    def held_out_loss(self, data: Dataset) -> float:
        """Over all examples, each process its part; the noise of an example is always the same."""
        accelerator, size, seed = self.accelerator, self.config.batch, self.config.seed
        mine = range(len(data))[accelerator.process_index :: accelerator.num_processes]  # type: ignore[arg-type]
        batches = [list(mine[start : start + size]) for start in range(0, len(mine), size)]
        sums = torch.zeros(2, device=accelerator.device)
        loader = self.task.loader(data, batches, self.config.workers)
        for items, batch in zip(batches, loader, strict=True):
            seeds = [seed_of(seed, "held out", item) for item in items]
            with drawing(seeds[0], accelerator.device), accelerator.autocast():
                loss = self.task.loss(self.plain, send_to_device(batch, accelerator.device), seeds)
            sums += torch.tensor([float(loss) * len(items), len(items)], device=sums.device)
        total, count = accelerator.reduce(sums, "sum").tolist()
        return total / max(count, 1)

    def track(self, group: str, row: dict[str, float]) -> None:
        """Send a row to the tracker, where there is one."""
        if self.config.tracker != "none":
            numbers = {f"{group}/{name}": value for name, value in row.items() if name != "step"}
            self.accelerator.log(numbers, self.progress.step)

    def save(self) -> None:
        """A checkpoint of this step; the first process writes it, the others wait."""
        progress = self.progress
        progress.loss_sum = self.mean_loss()
        progress.seconds = time.monotonic() - self.started
        if self.is_main:
            state: dict[str, Any] = {"facts": self.facts(), "progress": asdict(progress)}
            state |= {"scaler": None, "average": None}
            state |= {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
            if self.accelerator.scaler is not None:
                state["scaler"] = self.accelerator.scaler.state_dict()
            shadows = None
            if self.average is not None:
                numbers = self.average.state_dict()
                shadows = dict(zip(self.weights, numbers.pop("shadow_params"), strict=True))
                state["average"] = numbers
            write_checkpoint(self.checkpoint(progress.step), self.task.layout, self.weights, state, shadows)
            for old in checkpoint_folders(self.out)[: -self.config.keep]:
                if old != self.checkpoint(progress.best_step):
                    shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()
