"""What a training run records: rows of numbers, rejected samples, what the model paints, the held-out loss.

Legend: b examples, c latent channels, h w latent pixels.
"""

import logging
import time
from collections import Counter, defaultdict
from math import inf
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from diffusers import DDIMScheduler
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from cldm.config import Sampling
from cldm.model import Compositor
from cldm.pipeline import CompositorPipeline
from cldm.training.checkpoints import runs_model
from cldm.training.module import CompositorModule
from cldm.training.settings import RunConfig
from datasets.base import UNREADABLE
from datasets.examples import TrainingSample, collate_pairs
from datasets.pairs import model_inputs
from datasets.sources.inspection import RejectionStats
from ldm.denoise import Monitor
from ldm.files import write_json
from ldm.images import from_pm1, write_png
from ldm.sheet import grid
from ldm.training.run import CsvLogger

log = logging.getLogger(__name__)

PROBES = ("change_identity", "change_detail", "change_depth")
COUNT = 4  # watched samples; chosen
PROBE_AT = 0.6  # of the timesteps; chosen: the object's shape is decided there
TITLES = ("reference", "detail hint", "depth hint", "target", "sample")
COLUMNS = ("step", "loss", "lr", "grad_norm", "samples_per_second", *PROBES)


def watched_samples(trainer: pl.Trainer) -> list[TrainingSample]:
    """Held-out ones, where there are such."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return [(data.held_out or data.dataset)[k] for k in range(COUNT)]


@torch.no_grad()
def condition_sensitivity(model: Compositor, batch: dict[str, Tensor], seed: int = 0) -> dict[str, float]:
    """How far the prediction moves when a hint is blanked as in condition dropout, relative to its own size.

    Root mean square over the edit region's latents of the targets at PROBE_AT; 0 = the hint is ignored.
    """
    latents = model.latent_space.encode(batch["target_pm1"])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    schedule = DDIMScheduler.from_config(model.scheduler_config)
    timesteps = torch.full((len(latents),), int(PROBE_AT * len(schedule)), device=latents.device)
    inputs = {name: batch[name] for name in ("reference_01", "detail_pm1", "depth_01")}
    weight = torch.nn.functional.adaptive_max_pool2d(batch["edit_mask"].float(), latents.shape[-2:])
    noisy = schedule.add_noise(latents, noise, timesteps)

    def predict(blank: str = "") -> Tensor:
        given = {name: value * (name != blank) for name, value in inputs.items()}
        return model(noisy, timesteps, model.conditions(**given)) * weight

    whole = predict()
    size = whole.square().mean().clamp_min(1e-12)
    changes = [(predict(blank) - whole).square().mean() for blank in inputs]
    return {name: float((change / size).sqrt()) for name, change in zip(PROBES, changes, strict=True)}


class Metrics(pl.Callback):
    """A row every `every` steps, measurements of the hints every `probe_every`, 0 = never; see COLUMNS."""

    def __init__(self, path: Path, every: int, samples_per_step: int, probe_every: int) -> None:
        self.file, self.every, self.probe_every = CsvLogger(path, COLUMNS), every, probe_every
        self.samples_per_step = samples_per_step
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

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        if self.is_due(trainer.global_step + 1):
            norm = get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None])
            self.grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *ignored: object) -> None:
        self.loss_sum = self.loss_sum + pl_module.last_loss
        self.loss_count += 1
        step, now = trainer.global_step, time.monotonic()
        if step <= self.row_step or not self.is_due(step):
            return
        local = torch.as_tensor(self.loss_sum / self.loss_count, device=pl_module.device)
        row = {
            "loss": float(trainer.strategy.reduce(local, reduce_op="mean")),
            "lr": pl_module.last_rate,
            "grad_norm": float(self.grad_norm) if self.grad_norm is not None else float("nan"),
            "samples_per_second": (step - self.row_step) * self.samples_per_step / (now - self.row_time),
        }
        if runs_model(trainer) and self.probe_every and step % self.probe_every == 0:
            batch = collate_pairs(watched_samples(trainer))
            on_device = {name: value.to(pl_module.device) for name, value in batch.items()}
            with pl_module.painting():
                row |= condition_sensitivity(pl_module.model, model_inputs(on_device))
        if trainer.is_global_zero:
            self.file.append({"step": step, **row})
            if trainer.logger is not None:
                trainer.logger.log_metrics(row, step)
        self.loss_sum, self.loss_count = 0.0, 0
        self.row_step, self.row_time = step, time.monotonic()


class RejectionCounter(pl.Callback):
    """Counts samples (of the first device); at the end of a run, also an early one, writes and logs them.

    stop_after: ValueError when a source has accepted nothing in so many tries
    """

    state_key = "Refusals"  # type: ignore[assignment]  # in checkpoints of every version

    def __init__(self, path: Path, stop_after: int) -> None:
        self.path, self.stop_after = path, stop_after
        self.accepted: Counter[int] = Counter()
        self.replaced: Counter[int] = Counter()  # examples of a source that another one gave
        self.in_a_row: Counter[int] = Counter()  # tries since the last accepted one
        self.rejected: defaultdict[int, Counter[str]] = defaultdict(Counter)  # source -> reason -> count
        self.named: set[str] = set()  # messages about files

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: dict, *rest: Any) -> None:
        names = trainer.datamodule.names  # in the order of the settings
        for planned, accepted, rejected in batch["origins"]:
            for source, reason, message in rejected:
                self.rejected[source][reason] += 1
                self.in_a_row[source] += 1
                if reason == UNREADABLE and message not in self.named:
                    self.named.add(message)
                    log.warning("%s, skipped: %s", names[source], message)
                if self.in_a_row[source] >= self.stop_after:
                    counts = ", ".join(f"{n} x {why}" for why, n in self.rejected[source].most_common())
                    wrong = f"{names[source]} has accepted nothing in {self.in_a_row[source]} tries"
                    raise ValueError(f"{wrong} (rejected in all: {counts}), the last one {message}")
            self.in_a_row[accepted] = 0
            self.accepted[accepted] += 1
            self.replaced[planned] += planned != accepted

    def state_dict(self) -> dict[str, Any]:
        counts = {name: dict(getattr(self, name)) for name in ("accepted", "replaced", "in_a_row")}
        return {**counts, "refused": {k: dict(v) for k, v in self.rejected.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in ("accepted", "replaced", "in_a_row"):
            setattr(self, name, Counter(state_dict.get(name, {})))
        for k, reasons in state_dict["refused"].items():
            self.rejected[k] = Counter(reasons)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *ignored: object) -> None:
        if not trainer.is_global_zero or not self.accepted:
            return
        body = {}
        for k, name in enumerate(trainer.datamodule.names):  # type: ignore[attr-defined]
            stats = RejectionStats(name, self.accepted[k], self.rejected[k])
            counts = {"accepted": stats.accepted, "replaced": self.replaced[k]}
            body[name] = {**counts, "refused": dict(stats.rejected)}
            log.info(stats.table())
        write_json(self.path, body)

    on_exception = on_fit_end  # type: ignore[assignment]


class SampleSheets(pl.Callback):
    """A sheet every `every` steps, 0 = never: watched samples with their hints and what the model paints."""

    def __init__(self, folder: Path, every: int, sampling: Sampling) -> None:
        self.folder, self.every, self.sampling = folder, every, sampling
        self.drawn = -1  # step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.drawn = trainer.global_step  # by the run before

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *ignored: object) -> None:
        step = trainer.global_step
        if not self.every or step % self.every or step == self.drawn or not runs_model(trainer):
            return
        self.drawn = step
        pipeline = CompositorPipeline(pl_module.model, pl_module.device)
        rows = []
        for pair in watched_samples(trainer):
            with pl_module.painting():
                painted = pipeline.paint(pair, [0], self.sampling, monitor=Monitor(progress=False))[0]
            rows.append([from_pm1(pair.reference_01 * 2 - 1), from_pm1(pair.detail_pm1[:3]),
                         pair.depth_01[0].numpy(), from_pm1(pair.target_pm1), painted])  # fmt: skip
        if not trainer.is_global_zero:
            return
        sheet_u8, tracker = grid(rows, TITLES, cell=160), trainer.logger
        write_png(self.folder / f"step-{step:08d}.png", sheet_u8)
        if isinstance(tracker, WandbLogger):
            tracker.log_image("samples", [sheet_u8], step)
        elif isinstance(tracker, TensorBoardLogger):
            tracker.experiment.add_image("samples", sheet_u8, step, dataformats="HWC")


class Validation(pl.Callback):
    """Every `validation.every` steps the mean loss over the held-out examples, in all and by source.

    Examples, noise and timesteps are always the same, the timesteps spread evenly; no condition is dropped.
    The rows stand in validation.csv. SaveModel keeps the checkpoint of `best_step`.
    """

    def __init__(self, config: RunConfig) -> None:
        self.settings, self.file = config.validation, CsvLogger(config.out / "validation.csv")
        self.best, self.best_step, self.step = inf, 0, -1

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "measured": self.settings.measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["measured"] == self.settings.measured:  # the loss over other examples is another one
            self.best, self.best_step = state_dict["best"], state_dict["best_step"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.step = trainer.global_step
        if trainer.is_global_zero and self.file.path.is_file():
            self.file.truncate(self.step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *ignored: object) -> None:
        step = trainer.global_step
        if step == self.step or not self.settings.measured or step % self.settings.every:
            return
        self.step = step
        row = self.losses(trainer, pl_module)
        if row["loss"] < self.best:
            self.best, self.best_step = row["loss"], step
        if trainer.is_global_zero:
            self.file.append({"step": step, **row})
            if trainer.logger is not None:
                trainer.logger.log_metrics({f"validation/{name}": value for name, value in row.items()}, step)

    @torch.no_grad()
    def losses(self, trainer: pl.Trainer, module: CompositorModule) -> dict[str, float]:
        """`loss` over all examples, each device its part, and by source; of averaged weights where kept."""
        data, count = trainer.datamodule.held_out, self.settings.examples  # type: ignore[attr-defined]
        names, world = trainer.datamodule.held_out_names, trainer.world_size  # type: ignore[attr-defined]
        sums = torch.zeros(2, len(names), device=module.device)
        average, weights = module.average, module.parameters_to_train
        if average is not None:
            average.store(weights)
            average.copy_to(weights)
        with trainer.precision_plugin.forward_context():
            for k in range(trainer.global_rank, -(-count // world) * world, world):  # equally many on each
                sample = data[k % count]
                batch = {key: value.to(module.device) for key, value in collate_pairs([sample]).items()}
                loss = module.held_out_loss(batch, k % count, count)
                sums[:, sample.source] += torch.stack([loss, torch.ones_like(loss)]) * (k < count)
        if average is not None:
            average.restore(weights)
        total, number = trainer.strategy.reduce(sums, reduce_op="sum").cpu()
        by_source = {name: float(total[i] / number[i]) for i, name in enumerate(names) if number[i]}
        return {"loss": float(total.sum() / number.sum()), **(by_source if len(names) > 1 else {})}
