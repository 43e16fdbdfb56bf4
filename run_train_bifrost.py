"""Train the compositor.

    python run_train_bifrost.py configs/bifrost.yaml [key=value ...]
    python run_train_bifrost.py configs/tiny/bifrost.yaml

To continue an interrupted run, run the same command again.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from cldm.create import NetworkConfig, create_compositor
from cldm.data import DataConfig, PairData
from cldm.model import Compositor
from cldm.module import CompositorModule, TrainConfig
from cldm.pretrained import Card, Sampling, load_compositor, save_compositor
from datasets.inputs import PairOptions
from ldm.config import check_settings, dump_yaml, setting
from ldm.files import write_atomic
from ldm.latents import LatentSpace
from ldm.manifest import make_manifest
from ldm.options import run_app, trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerConfig:
    """What Lightning is told."""

    max_steps: int = setting(20000, low=1, help="optimizer steps")
    accelerator: str = setting("auto", choices=("auto", "cpu", "gpu", "mps"), help="where to train")
    devices: int = setting(1, low=1, help="devices per node")
    nodes: int = setting(1, low=1, help="number of nodes")
    precision: str = setting("bf16-mixed", choices=("32-true", "16-mixed", "bf16-mixed"), help="arithmetic")
    accumulate: int = setting(1, low=1, help="batches per optimizer step")
    clip: float = setting(0.0, low=0.0, help="gradient norm limit; 0 = none")
    save_every: int = setting(1000, low=1, help="steps between checkpoints")
    log_every: int = setting(50, low=1, help="steps between rows of metrics.csv")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class RunConfig:
    """One training run, as written in configs/bifrost.yaml."""

    out: Path = setting(help="run folder: checkpoints, metrics, resolved settings, the finished model")
    pretrained: Path | None = setting(
        None, help="compositor folder to start from; none: fresh networks of `network`"
    )
    first_stage: Path | None = setting(None, help="autoencoder folder for fresh networks")
    name: str = setting("compositor", help="name of the trained model")
    notice: str = setting("", help="what users of the trained model are told once")
    seed: int = setting(0, help="seed of initialisation and data order")
    network: NetworkConfig = setting(NetworkConfig(), help="sizes of fresh networks")
    pair: PairOptions = setting(PairOptions(), help="pre-processing")
    sampling: Sampling = setting(
        Sampling(), help="sampler settings recommended to users of the trained model"
    )
    data: DataConfig = setting(DataConfig(), help="sources and batches")
    train: TrainConfig = setting(TrainConfig(), help="loss and optimizer")
    trainer: TrainerConfig = setting(TrainerConfig(), help="steps and hardware")

    @property
    def card(self) -> Card:
        return Card(self.name, self.notice, self.pair, self.sampling)


def starting_model(config: RunConfig) -> Compositor:
    """The folder given by `pretrained`, or fresh networks around a trained first stage."""
    if config.pretrained is not None:
        return load_compositor(config.pretrained)[0]
    model = create_compositor(config.network, config.seed)
    if config.first_stage is not None:
        model.latent_space = LatentSpace.from_pretrained(config.first_stage)
    return model


class SaveModel(pl.Callback):
    """Writes model folder and manifest beside each checkpoint, with averaged weights where they are kept."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.seconds_before, self.started = 0.0, time.monotonic()
        self.saved = -1  # step

    @property
    def seconds(self) -> float:
        """Time spent on this run, interruptions left out."""
        return self.seconds_before + time.monotonic() - self.started

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.seconds_before = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.monotonic()

    def save(self, module: CompositorModule) -> None:
        average, parameters = module.average, module.parameters_to_train
        if average is not None:
            average.store(parameters)
            average.copy_to(parameters)
        save_compositor(module.model, self.config.card, self.config.out / "model")
        self.save_manifest(module)
        if average is not None:
            average.restore(parameters)

    def save_manifest(self, module: CompositorModule) -> None:
        config = self.config
        batch = config.data.batch * config.trainer.accumulate * config.trainer.devices * config.trainer.nodes
        manifest = make_manifest(
            "compositor", module.model, seed=config.seed, steps=module.global_step, batch=batch,
            seconds=self.seconds, settings=config, device=module.device,
        )  # fmt: skip
        write_atomic(config.out / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *ignored: object
    ) -> None:
        due = trainer.global_step % self.config.trainer.save_every == 0 and trainer.global_step != self.saved
        if trainer.is_global_zero and due:
            self.saved = trainer.global_step
            self.save(pl_module)  # type: ignore[arg-type]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.save(pl_module)  # type: ignore[arg-type]


def make_trainer(config: RunConfig) -> pl.Trainer:
    settings = config.trainer
    keep = ModelCheckpoint(
        config.out / "checkpoints",
        filename="{step}",
        every_n_train_steps=settings.save_every,
        save_top_k=1,
        save_last=True,
        monitor="step",
        mode="max",
    )
    return pl.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        max_epochs=-1,
        precision=settings.precision,
        max_steps=settings.max_steps,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip or None,
        log_every_n_steps=settings.log_every,
        callbacks=[keep, SaveModel(config)],
        logger=CSVLogger(config.out, name="log"),
        default_root_dir=config.out,
        enable_model_summary=False,
    )


def train(config: RunConfig) -> None:
    """Train the compositor; the same command again continues an interrupted run."""
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    module = CompositorModule(starting_model(config), config.train)
    last = config.out / "checkpoints" / "last.ckpt"
    if last.exists():
        logger.info("continuing %s", last)
    data = PairData(
        config.data, config.pair, config.seed, config.trainer.max_steps * config.trainer.accumulate
    )
    make_trainer(config).fit(module, data, ckpt_path=last if last.exists() else None, weights_only=False)
    logger.info("model folder: %s", config.out / "model")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(run_app(trainer(RunConfig, train), sys.argv[1:]))
