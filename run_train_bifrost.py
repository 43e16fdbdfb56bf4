"""Train the compositor.

    python run_train_bifrost.py configs/bifrost.yaml [key=value ...]
    python run_train_bifrost.py configs/tiny/compositor.yaml

To continue an interrupted run, run the same command again.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from cldm.create import NetworkConfig, create_compositor
from cldm.model import Compositor
from cldm.pretrained import CompositorConfig, Sampling, load_compositor, save_compositor
from cldm.training.checkpoints import Checkpoints, SplitCheckpoint, checkpoint_folders
from cldm.training.data import DataConfig, PairData
from cldm.training.metrics import Metrics
from cldm.training.module import CompositorModule, TrainConfig
from cldm.training.probes import ConditionProbe, Samples
from cldm.training.rejections import RejectionCounter
from cldm.training.sharding import Sharded, finished_weights, plain_model, takes_part
from datasets.inputs import PairOptions
from ldm.files import write_atomic
from ldm.latents import LatentSpace
from ldm.settings.cli import run_module, trainer
from ldm.settings.config import check_settings, dump_yaml, setting
from ldm.training.manifest import make_manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerConfig:
    """What Lightning is told."""

    max_steps: int = setting(20000, low=1, help="optimizer steps")
    accelerator: str = setting("auto", choices=("auto", "cpu", "gpu", "mps"), help="where to train")
    devices: int = setting(1, low=1, help="devices per node")
    nodes: int = setting(1, low=1, help="number of nodes")
    strategy: str = setting(
        "ddp",
        choices=("ddp", "fsdp"),
        help="of several devices: each holds the whole model, or its share of it (FSDP2)",
    )
    precision: str = setting("bf16-mixed", choices=("32-true", "16-mixed", "bf16-mixed"), help="arithmetic")
    accumulate: int = setting(1, low=1, help="batches per optimizer step")
    clip: float = setting(0.0, low=0.0, help="gradient norm limit; 0 = none")
    save_every: int = setting(1000, low=1, help="steps between checkpoints")
    keep: int = setting(2, low=1, help="checkpoints that stay, the newest")
    log_every: int = setting(50, low=1, help="steps between rows of metrics.csv")
    sample_every: int = setting(1000, low=0, help="steps between sheets of samples; 0 = none")
    probe_every: int = setting(
        500, low=0, help="steps between measurements of the effect of each hint; 0 = none"
    )
    tracker: str = setting(
        "none", choices=("none", "tensorboard", "wandb"), help="also send the numbers of metrics.csv there"
    )

    @property
    def batches_per_step(self) -> int:
        """Batches of all devices in one optimizer step."""
        return self.accumulate * self.all_devices

    @property
    def all_devices(self) -> int:
        """Devices of all nodes."""
        return self.devices * self.nodes

    def __post_init__(self) -> None:
        check_settings(self)
        if self.strategy == "fsdp" and self.all_devices == 1:
            raise ValueError("trainer.strategy=fsdp needs several devices, got trainer.devices=1")
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            raise ValueError("trainer.strategy=fsdp needs precision bf16-mixed or 32-true, got 16-mixed")


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

    def __post_init__(self) -> None:
        check_settings(self)
        if self.trainer.strategy == "fsdp" and self.train.shard_optimizer:
            raise ValueError(
                "train.shard_optimizer=true is for trainer.strategy=ddp: fsdp shares the optimizer anyway"
            )

    @property
    def card(self) -> CompositorConfig:
        return CompositorConfig(self.name, self.notice, self.pair, self.sampling)


def starting_model(config: RunConfig) -> Compositor:
    """The folder given by `pretrained`, or fresh networks around a trained first stage."""
    if config.pretrained is not None:
        return load_compositor(config.pretrained)[0]
    model = create_compositor(config.network, config.seed)
    if config.first_stage is not None:
        model.latent_space = LatentSpace.from_pretrained(config.first_stage)
    return model


class SaveModel(pl.Callback):
    """Writes model folder and manifest before each checkpoint, with averaged weights where they are kept.

    Before: a run whose last checkpoint exists has its model too.
    """

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
        writes = module.trainer.is_global_zero
        values = finished_weights(module, module.average_by_name, writes)
        if writes:
            with plain_model(module, values):
                save_compositor(module.model, self.config.card, self.config.out / "model")
            self.save_manifest(module)

    def save_manifest(self, module: CompositorModule) -> None:
        config = self.config
        batch = config.data.batch * config.trainer.batches_per_step
        manifest = make_manifest(
            "compositor", module.model, seed=config.seed, steps=module.global_step, batch=batch,
            seconds=self.seconds, settings=config, device=module.device,
        )  # fmt: skip
        write_atomic(config.out / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *ignored: object
    ) -> None:
        step = trainer.global_step
        due = step % self.config.trainer.save_every == 0 or step == trainer.max_steps
        if takes_part(trainer) and due and step != self.saved:
            self.saved = step
            self.save(pl_module)  # type: ignore[arg-type]


def make_tracker(config: RunConfig) -> Logger | bool:
    """TensorBoard or wandb when asked for; their packages are needed only then."""
    name = config.trainer.tracker
    if name == "none":
        return False
    try:
        if name == "tensorboard":
            from pytorch_lightning.loggers import TensorBoardLogger

            return TensorBoardLogger(config.out, name="tensorboard", version="")
        from pytorch_lightning.loggers import WandbLogger

        return WandbLogger(name=config.out.name, save_dir=config.out)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"trainer.tracker={name} needs a package that is not installed: "
            f"pip install {name} (requirements-extras.txt)"
        ) from error


def make_trainer(config: RunConfig) -> pl.Trainer:
    settings, out, watched = config.trainer, config.out, ConditionProbe()
    samples_per_step = config.data.batch * settings.batches_per_step
    callbacks = [
        Metrics(out / "metrics.csv", settings.log_every, samples_per_step, watched, settings.probe_every),
        Samples(out / "samples", settings.sample_every, config.sampling, watched),
        RejectionCounter(out / "refusals.json"),
        SaveModel(config),
        Checkpoints(out / "checkpoints", settings.save_every, settings.keep),
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
        logger=make_tracker(config),
        default_root_dir=out,
        use_distributed_sampler=False,  # RunBatches shares the examples out
        enable_checkpointing=False,  # Checkpoints does it
        enable_model_summary=False,
    )


def newest_checkpoint(config: RunConfig) -> Path | None:
    """Where an interrupted run stopped. A folder with another model in it is refused, not overwritten."""
    found = checkpoint_folders(config.out / "checkpoints")
    if not found and (config.out / "model").exists():
        raise ValueError(
            f"out={config.out}: holds a model but no checkpoint to go on from; name another folder "
            "or remove this one"
        )
    return found[-1] if found else None


def train(config: RunConfig) -> None:
    """Train the compositor; the same command again continues an interrupted run."""
    newest = newest_checkpoint(config)
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomic(config.out / "config.yaml", dump_yaml(config).encode())
    module = CompositorModule(starting_model(config), config.train)
    if newest is not None:
        logger.info("continuing %s", newest)
    data = PairData(
        config.data, config.pair, config.seed, config.trainer.max_steps * config.trainer.accumulate
    )
    make_trainer(config).fit(module, data, ckpt_path=newest, weights_only=True)
    logger.info("model folder: %s", config.out / "model")


build_app = trainer(RunConfig, train)

if __name__ == "__main__":
    run_module(build_app)
