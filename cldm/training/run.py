"""A training run of the compositor: its data, the model it starts from, what it saves and records."""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.trainer import trainer as lightning
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from cldm.config import CompositorConfig
from cldm.create import create_compositor
from cldm.model import Compositor
from cldm.pretrained import load_compositor, save_compositor
from cldm.training.module import CompositorModule
from cldm.training.records import Metrics, RejectionCounter, Samples
from cldm.training.resume import Change, check_resumed, run_record, write_settings
from cldm.training.settings import DataConfig, RunConfig
from cldm.training.sharding import Sharded, SplitCheckpoint, runs_model, step_folders
from datasets.base import ExampleSource
from datasets.examples import PairDataset, RunBatches, TrainingSample, collate_pairs
from datasets.inputs import PairOptions
from ldm.device import make_manifest
from ldm.files import read_json, write_json
from ldm.latents import LatentSpace
from ldm.loading import loading
from ldm.training.run import Layout, read_files
from ldm.training.signals import signals_noted

logger = logging.getLogger(__name__)


class RunLoader(DataLoader[TrainingSample]):
    """Its place follows from the trainer's step (see RunBatches), so it has no state of its own to keep."""

    def state_dict(self) -> dict[str, int]:
        return {"batches": len(self)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing to restore."""


class PairData(pl.LightningDataModule):
    """All `batches` of a run; after an interruption it goes on where the trainer stands."""

    def __init__(self, config: DataConfig, options: PairOptions, seed: int, batches: int) -> None:
        super().__init__()
        self.config, self.options, self.seed, self.batches = config, options, seed, batches

    @cached_property
    def opened(self) -> tuple[Mapping[str, ExampleSource], list[float]]:
        """Sources by name, and their weights."""
        return self.config.open_sources()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sources, in the order of the settings."""
        return tuple(self.opened[0])

    @cached_property
    def dataset(self) -> PairDataset:
        """All examples of the run by their number; opened at first use."""
        sources, weights = self.opened
        stop_after = self.config.stop_after
        return PairDataset(list(sources.values()), self.options, self.seed, weights, stop_after)

    @staticmethod
    def collate(drawn: Sequence[TrainingSample]) -> dict[str, Any]:
        """The stacked tensors, and `origins`: `planned`, `source` and `rejected` of every sample."""
        return {**collate_pairs(drawn), "origins": [(one.planned, one.source, one.rejected) for one in drawn]}

    def stands_at(self) -> int:
        return self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0

    def train_dataloader(self) -> RunLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        workers = self.config.workers
        return RunLoader(
            self.dataset,
            batch_sampler=RunBatches(self.batches, self.config.batch, self.stands_at, rank, world),
            collate_fn=self.collate, num_workers=workers, persistent_workers=workers > 0,
            generator=torch.Generator(),  # the loader draws from it, no example does
        )  # fmt: skip


def starting_model(config: RunConfig) -> Compositor:
    """The folder given by `pretrained`, or fresh networks around a trained first stage."""
    if config.pretrained is not None:
        return load_compositor(config.pretrained)[0]
    model = create_compositor(config.network, config.seed)
    if config.first_stage is not None:
        model.latent_space = LatentSpace.from_pretrained(config.first_stage)
    return model


class SaveModel(pl.Callback):
    """Writes checkpoint, model folder and manifest; only the newest checkpoints stay.

    The checkpoint comes first: a run that was killed goes on from it, and writes the model that is not of the
    last one. When a signal was noted, a checkpoint of this step is written, which the next one replaces.
    This must be the last callback, so that the states of the others are those after the step.
    """

    def __init__(self, config: RunConfig, signals: Sequence[int] = ()) -> None:
        self.config, self.signals = config, signals
        self.folder = config.out / "checkpoints"
        self.seconds_before, self.started = 0.0, time.monotonic()
        self.step = -1
        self.interrupted, self.surplus = False, list[Path]()

    def state_dict(self) -> dict[str, float]:
        """Time spent on this run, interruptions left out."""
        seconds = self.seconds_before + time.monotonic() - self.started
        return {"seconds": seconds, "interrupted": self.interrupted}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.seconds_before = state_dict["seconds"]
        self.interrupted = bool(state_dict.get("interrupted"))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started, self.step = time.monotonic(), trainer.global_step
        self.surplus = [self.folder / f"step-{self.step:08d}"] if self.interrupted else []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *ignored: object) -> None:
        step, settings = trainer.global_step, self.config.trainer
        if step == self.step:
            return
        self.step = step
        regular = step % settings.save_every == 0 or step == trainer.max_steps
        # Several devices agree where they wait for each other anyway.
        stop = bool(self.signals) if settings.all_devices == 1 or step % settings.log_every == 0 else False
        stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        trainer.should_stop = trainer.should_stop or stop
        if not (regular or stop):
            return
        self.interrupted = not regular
        trainer.save_checkpoint(self.folder / f"step-{step:08d}")
        if regular and runs_model(trainer):  # whole weights in a fresh model; the rest is frozen
            weights = pl_module.averaged_weights() or trainer.strategy.lightning_module_state_dict()
            if trainer.is_global_zero:
                self.write_model(weights, pl_module, step)
        if trainer.is_global_zero:
            found = [path for path in step_folders(self.folder) if path not in self.surplus]
            for old in [*self.surplus, *(found[: -settings.keep] if regular else [])]:
                shutil.rmtree(old, ignore_errors=True)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the model of the last checkpoint where a kill came between the two."""
        newest = step_folders(self.folder)[-1:]
        manifest = self.config.out / "manifest.json"
        if self.interrupted or not trainer.is_global_zero or not newest:
            return
        if not manifest.is_file() or read_json(manifest)["steps"] != int(newest[0].name[5:]):
            weights, _, average = read_files(newest[0], Layout())
            self.write_model(average or weights, pl_module, int(newest[0].name[5:]))

    def write_model(self, weights: Mapping[str, Tensor], module: pl.LightningModule, steps: int) -> None:
        """The folder of the model that the run started from with `weights`, then its manifest."""
        config, model = self.config, starting_model(self.config)
        model.load_state_dict({name.removeprefix("model."): v for name, v in weights.items()}, strict=False)
        model_config = CompositorConfig(config.name, config.notice, config.pair, config.sampling)
        save_compositor(model, model_config, config.out / "model")
        effort = {"seed": config.seed, "steps": steps, "samples": steps * config.samples_per_step}
        seconds = self.state_dict()["seconds"]
        manifest = make_manifest("compositor", model, config, effort, seconds, device=module.device)
        write_json(config.out / "manifest.json", manifest)


@contextlib.contextmanager
def isolated_rng(include_cuda: bool = True) -> Iterator[None]:
    """What Lightning calls before it trains; it sets the random state of the process back, so others wait."""
    with loading(), isolate_rng(include_cuda):
        yield


def make_trainer(
    config: RunConfig, signals: Sequence[int] = (), record: Mapping[str, Any] | None = None
) -> pl.Trainer:
    """The trainer with what it records; the packages of the trackers are needed only where one is chosen.

    record: what the checkpoints hold beside the state
    """
    settings, out = config.trainer, config.out
    tracker: Logger | bool = False
    try:
        if settings.tracker == "tensorboard":
            tracker = TensorBoardLogger(out, name="tensorboard", version="")
        elif settings.tracker == "wandb":
            tracker = WandbLogger(name=out.name, save_dir=out)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"trainer.tracker={settings.tracker} needs a package that is not installed: "
            f"pip install {settings.tracker} (requirements-extras.txt)"
        ) from error
    callbacks: list[pl.Callback] = [
        TQDMProgressBar(),  # that of rich, the default, is one of the process
        Metrics(out / "metrics.csv", settings.log_every, config.samples_per_step, settings.probe_every),
        Samples(out / "samples", settings.sample_every, config.sampling),
        RejectionCounter(out / "refusals.json", config.data.stop_after),
        SaveModel(config, signals),
    ]
    return pl.Trainer(
        accelerator=settings.accelerator, devices=settings.devices, num_nodes=settings.nodes,
        strategy=Sharded(settings.all_devices) if settings.strategy == "fsdp" else "auto",
        precision=settings.precision,  # type: ignore[arg-type]  # one of its literals, checked by the setting
        max_epochs=-1, max_steps=settings.max_steps, accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip or None, log_every_n_steps=settings.log_every,
        callbacks=callbacks, plugins=[SplitCheckpoint(record or {})], logger=tracker, default_root_dir=out,
        use_distributed_sampler=False,  # RunBatches splits the examples among the devices
        enable_checkpointing=False, enable_model_summary=False,  # SaveModel does it
    )  # fmt: skip


def train(config: RunConfig) -> None:
    """Train the compositor; the same command again continues an interrupted run."""
    newest = next(reversed(step_folders(config.out / "checkpoints")), None)
    if newest is None and (config.out / "model").exists():
        raise ValueError(
            f"out={config.out}: holds a model but no checkpoint to go on from; name another folder "
            "or remove this one"
        )
    batches = config.trainer.max_steps * config.trainer.accumulate
    data = PairData(config.data, config.pair, config.seed, batches)
    record = run_record(config, {name: len(source) for name, source in data.opened[0].items()})
    changes: list[Change] = []
    if newest is not None:
        changes = check_resumed(config, record, newest)
        logger.info("continuing %s", newest)
    write_settings(config, changes, 0 if newest is None else int(newest.name[5:]))
    module = CompositorModule(starting_model(config), config.train)
    lightning.isolate_rng = isolated_rng
    with signals_noted() as signals:
        make_trainer(config, signals, record).fit(module, data, ckpt_path=newest, weights_only=True)
    logger.info("model folder: %s", config.out / "model")
