"""A training run of the compositor: its data, the model it starts from, what it saves and records."""

import contextlib
import logging
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.trainer import trainer as lightning
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from cldm.config import CompositorConfig, NetworkConfig
from cldm.create import create_compositor
from cldm.model import Compositor, load_compositor, save_compositor
from cldm.training import checkpoints
from cldm.training.data import PairData
from cldm.training.module import CompositorModule
from cldm.training.records import Metrics, RejectionCounter, SampleSheets, Validation
from cldm.training.settings import RunConfig
from ldm.checkpoints import loading
from ldm.device import make_manifest
from ldm.files import read_json, write_json
from ldm.latents import LatentSpace
from ldm.training.run import Layout, read_files, tracker_id, trained
from ldm.training.signals import signals_noted

logger = logging.getLogger(__name__)


def starting_model(config: RunConfig) -> Compositor:
    """The folder given by `pretrained`, or fresh networks around a trained first stage."""
    if config.pretrained is not None:
        model = load_compositor(config.pretrained)[0]
        net, schedule, asked = model.unet.config, model.scheduler_config, config.network
        there = {
            "block_channels": tuple(net.block_out_channels), "layers_per_block": net.layers_per_block,
            "token_width": net.cross_attention_dim, "prediction": schedule["prediction_type"],
            "zero_snr": schedule.get("rescale_betas_zero_snr", False)}  # fmt: skip
        for key, value in there.items():
            if (wanted := getattr(asked, key)) not in (value, getattr(NetworkConfig(), key)):
                given = f"network.{key}={wanted} is for fresh networks and has no effect with pretrained="
                raise ValueError(f"{given}{config.pretrained}: {value} there")
        return model
    model = create_compositor(config.network, config.seed)
    if config.first_stage is not None:
        model.latent_space = LatentSpace.from_pretrained(config.first_stage)
    return model


class SaveModel(pl.Callback):
    """Writes checkpoint, model folder and manifest; the newest checkpoints stay, and the best one.

    The checkpoint comes first: a run that was killed goes on from it, and writes the model that is not of the
    last one. When a signal was noted, a checkpoint of this step is written, which the next one replaces.
    This must be the last callback, so that the states of the others are those after the step.
    """

    def __init__(self, config: RunConfig, signals: Sequence[int], validation: Validation) -> None:
        self.config, self.signals, self.validation = config, signals, validation
        self.folder = config.out / "checkpoints"
        self.seconds_before, self.started = 0.0, time.monotonic()
        self.step = -1
        self.interrupted, self.surplus = False, list[Path]()
        self.on_sigterm = signal.getsignal(signal.SIGTERM)

    def state_dict(self) -> dict[str, float]:
        """Time spent on this run, interruptions left out."""
        seconds = self.seconds_before + time.monotonic() - self.started
        return {"seconds": seconds, "interrupted": self.interrupted}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.seconds_before = state_dict["seconds"]
        self.interrupted = bool(state_dict.get("interrupted"))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        here = threading.current_thread() is threading.main_thread()  # elsewhere nobody sets handlers
        if here and signal.getsignal(signal.SIGTERM) is not self.on_sigterm:
            # Lightning's handler broadcasts in the middle of a step, and ends before the processes agree.
            signal.signal(signal.SIGTERM, self.on_sigterm)
        self.started, self.step = time.monotonic(), trainer.global_step
        self.surplus = [self.folder / f"step-{self.step:08d}"] if self.interrupted else []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *ignored: object) -> None:
        step, settings = trainer.global_step, self.config.trainer
        if step == self.step:
            return
        self.step = step
        best = step == self.validation.best_step
        regular = best or step % settings.save_every == 0 or step == trainer.max_steps
        # Several devices agree where they wait for each other anyway.
        stop = bool(self.signals) if settings.all_devices == 1 or step % settings.log_every == 0 else False
        stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        trainer.should_stop = trainer.should_stop or stop
        # A launcher starts again what did not end well: that one process was told to stop is no success here.
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if stop and not self.signals and environment and environment.creates_processes_externally:
            signal.raise_signal(signal.SIGTERM)
        if not (regular or stop):
            return
        self.interrupted = not regular
        trainer.save_checkpoint(self.folder / f"step-{step:08d}")
        if regular and checkpoints.runs_model(trainer):  # whole weights in a fresh model; the rest is frozen
            weights = pl_module.averaged_weights() or trainer.strategy.lightning_module_state_dict()
            weights = {name: weights[name] for name in trained(pl_module) if name in weights}
            if trainer.is_global_zero:
                self.write_model(weights, pl_module, step)
        if trainer.is_global_zero:
            kept = (self.best, *self.surplus)
            found = [path for path in checkpoints.step_folders(self.folder) if path not in kept]
            for old in [*self.surplus, *(found[: -settings.keep] if regular else [])]:
                shutil.rmtree(old, ignore_errors=True)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the best model, and that of the last checkpoint where a kill came between the two."""
        found = checkpoints.step_folders(self.folder)
        if self.interrupted or not trainer.is_global_zero:
            return
        for prefix, folders in (("", found[-1:]), ("best_", [path for path in found if path == self.best])):
            for folder in folders:
                manifest, steps = self.config.out / f"{prefix}manifest.json", int(folder.name[5:])
                if not manifest.is_file() or read_json(manifest)["steps"] != steps:
                    weights, _, average = read_files(folder, Layout())
                    self.write_model(average or weights, pl_module, steps, prefix)

    @property
    def best(self) -> Path:
        """The checkpoint of the lowest held-out loss, where one was measured."""
        return self.folder / f"step-{self.validation.best_step:08d}"

    def write_model(
        self, weights: Mapping[str, Tensor], module: pl.LightningModule, steps: int, prefix: str = ""
    ) -> None:
        """The folder of the model that the run started from with `weights`, then its manifest."""
        config, model = self.config, starting_model(self.config)
        model.load_state_dict({name.removeprefix("model."): v for name, v in weights.items()}, strict=False)
        model_config = CompositorConfig(config.name, config.notice, config.pair, config.sampling)
        save_compositor(model, model_config, config.out / f"{prefix}model")
        effort = {"seed": config.seed, "steps": steps, "samples": steps * config.samples_per_step}
        seconds = self.state_dict()["seconds"]
        manifest = make_manifest("compositor", model, config, effort, seconds, device=module.device)
        write_json(config.out / f"{prefix}manifest.json", manifest)


@contextlib.contextmanager
def isolated_rng(include_cuda: bool = True) -> Iterator[None]:
    """What Lightning calls before it trains; it sets the random state of the process back, so others wait."""
    with loading(), isolate_rng(include_cuda):
        yield


def make_trainer(config: RunConfig, signals: Sequence[int] = (), record: dict | None = None) -> pl.Trainer:
    """The trainer with what it records; only a chosen tracker needs its package. record: of run.json"""
    settings, out = config.trainer, config.out
    tracker: Logger | bool = False
    try:
        if settings.tracker == "tensorboard":
            found = checkpoints.step_folders(out / "checkpoints")
            again = int(found[-1].name[5:]) + 1 if found else None  # what came after it is sent again
            tracker = TensorBoardLogger(out, name="tensorboard", version="", purge_step=again)
        elif settings.tracker == "wandb":
            name = rank_zero_only(tracker_id)(out)
            tracker = WandbLogger(name=out.name, save_dir=out, id=name, resume="allow")
    except ModuleNotFoundError as error:
        wrong = f"trainer.tracker={settings.tracker} needs a package that is not installed:"
        raise ValueError(f"{wrong} pip install {settings.tracker} (requirements-extras.txt)") from error
    validation = Validation(config)
    callbacks: list[pl.Callback] = [
        # That of rich, the default, is one of the process. What it shows waits for the device.
        TQDMProgressBar(settings.log_every if torch.cuda.is_available() else 1),
        Metrics(out / "metrics.csv", settings.log_every, config.samples_per_step, settings.probe_every),
        SampleSheets(out / "samples", settings.sample_every, config.sampling),
        RejectionCounter(out / "refusals.json", config.data.stop_after),
        validation,
        SaveModel(config, signals, validation),
    ]
    return pl.Trainer(
        accelerator=settings.accelerator, devices=settings.devices, num_nodes=settings.nodes,
        strategy=checkpoints.Sharded(settings.all_devices) if settings.strategy == "fsdp" else "auto",
        precision=settings.precision,  # type: ignore[arg-type]  # one of its literals, checked by the setting
        max_epochs=-1, max_steps=settings.max_steps, accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip or None, log_every_n_steps=settings.log_every,
        callbacks=callbacks, plugins=[checkpoints.SplitCheckpoint(record or {})], logger=tracker,
        default_root_dir=out,
        use_distributed_sampler=False,  # RunBatches splits the examples among the devices
        enable_checkpointing=False, enable_model_summary=False,  # SaveModel does it
    )  # fmt: skip


def train(config: RunConfig) -> None:
    """Train the compositor; the same command again continues an interrupted run."""
    newest = next(reversed(checkpoints.step_folders(config.out / "checkpoints")), None)
    if newest is None and (config.out / "model").exists():
        wrong = f"out={config.out}: holds a model but no checkpoint to go on from;"
        raise ValueError(f"{wrong} name another folder or remove this one")
    data = PairData(config, config.trainer.max_steps * config.trainer.accumulate)
    _ = data.held_out  # refused before anything is written
    record = checkpoints.run_record(config, {name: len(source) for name, source in data.opened[0].items()})
    changes: list[checkpoints.Change] = []
    if newest is not None:
        changes = checkpoints.check_resumed(config, record, newest)
        logger.info("continuing %s", newest)
    checkpoints.write_settings(config, changes, 0 if newest is None else int(newest.name[5:]))
    module = CompositorModule(starting_model(config), config.train)
    lightning.isolate_rng = isolated_rng
    with signals_noted() as signals:
        trainer = make_trainer(config, signals, record)
        if trainer.logger is not None:
            trainer.logger.log_hyperparams(record["config"])
        try:
            trainer.fit(module, data, ckpt_path=newest, weights_only=True)
        finally:
            if isinstance(trainer.logger, WandbLogger):
                trainer.logger.experiment.finish()  # or the next run in this process goes on in this one
    logger.info("model folder: %s", config.out / "model")
