"""metrics.csv: one file for a whole run, with as many interruptions as there were."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from cldm.training.probes import PROBES, ConditionProbe, condition_sensitivity
from cldm.training.sharding import takes_part
from ldm.training.csv_log import CsvLogger

if TYPE_CHECKING:
    from cldm.training.module import CompositorModule

COLUMNS = ("step", "loss", "lr", "grad_norm", "samples_per_second", *PROBES)


class MetricsFile(CsvLogger):
    """The rows of COLUMNS."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, COLUMNS)


class Metrics(pl.Callback):
    """A row every `every` steps: mean loss since the last row, learning rate, gradient norm before clipping.

    probe_every: steps between measurements of how much the prediction changes without each hint; 0 = never
    """

    def __init__(
        self, path: Path, every: int, samples_per_step: int, watched: ConditionProbe, probe_every: int
    ):
        self.file, self.every, self.probe_every = MetricsFile(path), every, probe_every
        self.samples_per_step, self.watched = samples_per_step, watched
        self.loss_sum: Tensor | float = 0.0
        self.loss_count = 0
        self.grad_norm: Tensor | None = None
        self.row_step, self.row_time = 0, 0.0

    def state_dict(self) -> dict[str, float]:
        return {"loss_sum": float(self.loss_sum), "loss_count": self.loss_count}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.loss_sum, self.loss_count = state_dict["loss_sum"], int(state_dict["loss_count"])

    def is_due(self, step: int) -> bool:
        return step % self.every == 0 or bool(self.probe_every and step % self.probe_every == 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.row_step, self.row_time = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            self.file.truncate(trainer.global_step)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if self.is_due(trainer.global_step + 1):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norm = get_total_norm(gradients)
            self.grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *ignored: object
    ) -> None:
        module: CompositorModule = pl_module  # type: ignore[assignment]
        self.loss_sum = self.loss_sum + module.last_loss
        self.loss_count += 1
        if trainer.global_step > self.row_step and self.is_due(trainer.global_step):
            self.write_row(trainer, module)

    def write_row(self, trainer: pl.Trainer, module: CompositorModule) -> None:
        step, now = trainer.global_step, time.monotonic()
        local = torch.as_tensor(self.loss_sum / self.loss_count, device=module.device)
        row = {
            "step": step,
            "loss": float(trainer.strategy.reduce(local, reduce_op="mean")),
            "lr": module.last_rate,
            "grad_norm": float(self.grad_norm) if self.grad_norm is not None else float("nan"),
            "samples_per_second": (step - self.row_step) * self.samples_per_step / (now - self.row_time),
        }
        if takes_part(trainer) and self.probe_every and step % self.probe_every == 0:
            row |= condition_sensitivity(module.model, self.watched.batch(trainer, module.device))
        if trainer.is_global_zero:
            self.file.append(row)
            if trainer.logger is not None:
                numbers = {name: value for name, value in row.items() if name != "step"}
                trainer.logger.log_metrics(numbers, step)
        self.loss_sum, self.loss_count = 0.0, 0
        self.row_step, self.row_time = step, time.monotonic()
