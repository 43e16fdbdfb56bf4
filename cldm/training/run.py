"""A training run of the compositor: the model it starts from, what it saves and records."""

import logging
import shutil
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from cldm.config import CompositorConfig
from cldm.create import create_compositor
from cldm.model import Compositor
from cldm.pretrained import load_compositor, save_compositor
from cldm.training.data import PairData
from cldm.training.module import CompositorModule
from cldm.training.records import Metrics, RejectionCounter, Samples
from cldm.training.settings import RunConfig
from cldm.training.sharding import Sharded, SplitCheckpoint, runs_model, step_folders
from ldm.files import write_atomic, write_json
from ldm.latents import LatentSpace
from ldm.settings.config import dump_yaml
from ldm.training.manifest import Effort, make_manifest

logger = logging.getLogger(__name__)


def starting_model(config: RunConfig) -> Compositor:
    """The folder given by `pretrained`, or fresh networks around a trained first stage."""
    if config.pretrained is not None:
        return load_compositor(config.pretrained)[0]
    model = create_compositor(config.network, config.seed)
    if config.first_stage is not None:
        model.latent_space = LatentSpace.from_pretrained(config.first_stage)
    return model


class SaveModel(pl.Callback):
    """Writes model folder, manifest and checkpoint; only the newest checkpoints stay.

    The model is written before the checkpoint, so a run whose last checkpoint exists has its model too.
    This must be the last callback, so that the states of the others are those after the step.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.seconds_before, self.started = 0.0, time.monotonic()
        self.saved = -1  # step

    def state_dict(self) -> dict[str, float]:
        """Time spent on this run, interruptions left out."""
        return {"seconds": self.seconds_before + time.monotonic() - self.started}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.seconds_before = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started, self.saved = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *ignored: object) -> None:
        step, every = trainer.global_step, self.config.trainer.save_every
        if step == self.saved or (step % every and step != trainer.max_steps):
            return
        self.saved = step
        if runs_model(trainer):
            self.save_model(pl_module)
        folder = self.config.out / "checkpoints"
        trainer.save_checkpoint(folder / f"step-{step:08d}")
        if trainer.is_global_zero:
            for old in step_folders(folder)[: -self.config.trainer.keep]:
                shutil.rmtree(old, ignore_errors=True)

    def save_model(self, module: CompositorModule) -> None:
        """Folder and manifest of the trained model, with averaged weights where they are kept."""
        config, trainer = self.config, module.trainer
        model_config = CompositorConfig(config.name, config.notice, config.pair, config.sampling)
        model, average = module.model, module.average
        if isinstance(trainer.strategy, Sharded):  # whole weights in a fresh model; the rest is frozen
            weights = module.averaged_weights() or trainer.strategy.lightning_module_state_dict()
            if not trainer.is_global_zero:
                return
            model, average = starting_model(config), None
            whole = {name.removeprefix("model."): value for name, value in weights.items()}
            model.load_state_dict(whole, strict=False)
        if average is not None:
            average.store(module.parameters_to_train)
            average.copy_to(module.parameters_to_train)
        try:
            save_compositor(model, model_config, config.out / "model")
        finally:
            if average is not None:
                average.restore(module.parameters_to_train)
        steps, seconds = module.global_step, self.state_dict()["seconds"]
        effort = Effort(config.seed, steps, steps * config.samples_per_step, seconds)
        manifest = make_manifest("compositor", model, config, effort, device=module.device)
        write_json(config.out / "manifest.json", manifest)


def make_trainer(config: RunConfig) -> pl.Trainer:
    """The trainer with what it records; the packages of the trackers are needed only where one is chosen."""
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
    callbacks = [
        Metrics(out / "metrics.csv", settings.log_every, config.samples_per_step, settings.probe_every),
        Samples(out / "samples", settings.sample_every, config.sampling),
        RejectionCounter(out / "refusals.json"),
        SaveModel(config),
    ]
    return pl.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=Sharded(settings.all_devices) if settings.strategy == "fsdp" else "auto",
        max_epochs=-1,
        precision=settings.precision,  # type: ignore[arg-type]  # one of its literals, checked by the setting
        max_steps=settings.max_steps,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip or None,
        log_every_n_steps=settings.log_every,
        callbacks=callbacks,
        plugins=[SplitCheckpoint()],
        logger=tracker,
        default_root_dir=out,
        use_distributed_sampler=False,  # RunBatches splits the examples among the devices
        enable_checkpointing=False,  # SaveModel does it
        enable_model_summary=False,
    )


def train(config: RunConfig) -> None:
    """Train the compositor; the same command again continues an interrupted run."""
    newest = next(reversed(step_folders(config.out / "checkpoints")), None)
    if newest is None and (config.out / "model").exists():
        raise ValueError(
            f"out={config.out}: holds a model but no checkpoint to go on from; name another folder "
            "or remove this one"
        )
    write_atomic(config.out / "config.yaml", dump_yaml(config).encode())
    module = CompositorModule(starting_model(config), config.train)
    if newest is not None:
        logger.info("continuing %s", newest)
    batches = config.trainer.max_steps * config.trainer.accumulate
    data = PairData(config.data, config.pair, config.seed, batches)
    make_trainer(config).fit(module, data, ckpt_path=newest, weights_only=True)
    logger.info("model folder: %s", config.out / "model")
