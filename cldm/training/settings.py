"""One training run of the compositor."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cldm.config import NetworkConfig, Sampling
from datasets.base import STOP_AFTER, ExampleSource
from datasets.inputs import PUBLISHED_TRAINING, PairOptions
from datasets.sources.registry import DatasetsConfig, drawn_sources
from ldm.files import named_failure
from ldm.settings.config import check_settings, load_config, setting, to_plain


@dataclass(frozen=True)
class DataConfig:
    datasets: Path | None = setting(None, help="real sources with weights, such as configs/datasets.yaml")
    scenes: Path | None = setting(None, help="folder of scene shards, instead of datasets")
    more: tuple[Path, ...] = setting((), help="further folders of scene shards, mixed with the first")
    weights: tuple[float, ...] = setting(
        (), low=0.0, help="relative weight of scenes and of each folder of more; none: equal"
    )
    true_depth: bool = setting(False, help="show the depth of the target itself, not the one of inference")
    batch: int = setting(16, low=1, help="examples per batch and device")
    stop_after: int = setting(
        STOP_AFTER, low=1, help="a run stops when a source has accepted nothing in so many tries"
    )
    workers: int = setting(8, low=0, help="loader processes; 0 loads in the training process")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.weights and len(self.weights) != 1 + len(self.more):
            wrong = "data.weights needs one number for scenes and one for each folder of more,"
            raise ValueError(f"{wrong} {1 + len(self.more)} in all, got {len(self.weights)}")
        if self.datasets is not None and self.scenes is not None:
            wrong = f"data.datasets={self.datasets} and data.scenes={self.scenes}: only one of them;"
            raise ValueError(f"{wrong} rendered scenes are also a source of a datasets file (section scenes)")
        idle = [name for name in ("more", "weights", "true_depth") if self.datasets and getattr(self, name)]
        if idle:
            listed = ", ".join(f"data.{name}" for name in idle)
            wrong = f"{listed} is for data.scenes and has no effect with data.datasets={self.datasets},"
            raise ValueError(f"{wrong} whose file has weights and sources of its own")

    def open_sources(self, section: str = "data") -> tuple[Mapping[str, ExampleSource], list[float]]:
        if self.datasets is not None:
            settings = load_config(DatasetsConfig, self.datasets)
            with named_failure(f"{section}.datasets={self.datasets}", ValueError):
                sources, weights = settings.open_mixture()
            return dict(zip(drawn_sources(settings), sources, strict=True)), weights
        if self.scenes is None:
            raise ValueError(
                "neither data.datasets nor data.scenes is set: name a file such as configs/datasets.yaml, "
                "or render scenes with `python -m datasets.scenes render --out FOLDER` and name the folder"
            )
        folders = (self.scenes, *self.more)
        from datasets.sources.rendered import RenderedScenes

        rendered = {str(folder): RenderedScenes(folder, true_depth=self.true_depth) for folder in folders}
        return rendered, list(self.weights) or [1.0] * len(folders)


@dataclass(frozen=True)
class CompositorTrainConfig:
    """The defaults are the published recipe (AdamW 1e-5, constant rate). drop_*: condition dropout."""

    lr: float = setting(1e-5, low=0.0, help="learning rate after warm-up")
    final_lr: float = setting(1.0, low=0.0, high=1.0, help="fraction of lr at the last step; 1 = constant")
    hold: float = setting(0.0, low=0.0, high=1.0, help="fraction of steps at full lr before the cosine decay")
    warmup: int = setting(0, low=0, help="steps of linear warm-up")
    betas: tuple[float, float] = setting((0.9, 0.999), help="AdamW betas")
    weight_decay: float = setting(0.01, low=0.0, help="AdamW weight decay")
    shard_optimizer: bool = setting(False, help="each device keeps a part of the optimizer (ZeRO, stage 1)")
    trainable: str = setting(
        "published",
        choices=("published", "all"),
        help="published: control branches, UNet decoder and projector; all: everything but the autoencoder",
    )
    train_projector: bool = setting(True, help="False: the projector stays frozen, as in the published code")
    drop_identity: float = setting(
        0.5,
        low=0.0,
        high=1.0,
        help="condition dropout (classifier-free guidance): probability of the tokens of the zero image",
    )
    drop_detail: float = setting(
        0.3, low=0.0, high=1.0, help="condition dropout: probability of a blank detail hint"
    )
    drop_depth: float = setting(
        0.3, low=0.0, high=1.0, help="condition dropout: probability of a blank depth hint"
    )
    timesteps: str = setting(
        "dynamics",
        choices=("dynamics", "uniform"),
        help="dynamics: moving sources train the early, still ones the late timesteps in 7 cases of 10",
    )
    timestep_shift: float = setting(
        1.0,
        low=0.01,
        high=100.0,
        help="above 1 trains the noisy timesteps more, which suits few sampling steps; 1 = as drawn",
    )
    vae: str = setting(
        "mode",
        choices=("mode", "sample"),
        help="latents of the targets: the mode of the autoencoder's posterior, or a sample of it (published)",
    )
    min_snr: float = setting(0.0, low=0.0, help="min-SNR limit of loss weights (usual: 5); 0 = equal")
    mask_weight: float = setting(0.0, low=0.0, help="extra loss weight inside the edit mask")
    ema: float = setting(0.0, low=0.0, high=0.99999, help="decay of the weight average (EMA); 0 = none")
    attention: str = setting("sdpa", choices=("sdpa", "eager"), help="eager: faster for small models on CPU")
    frozen: str = setting(
        "fp32", choices=("fp32", "bf16"), help="weights of frozen networks; bf16: half their memory"
    )
    gradient_checkpointing: bool = setting(False, help="recompute activations: less memory, about 1/3 slower")
    seed: int = setting(0, help="seed of noise, timesteps and dropout")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.hold and self.final_lr == 1:
            wrong = f"train.hold={self.hold} has no effect with train.final_lr=1: the rate is constant"
            raise ValueError(wrong)

    def lr_factor(self, step: int, total: int) -> float:
        """Factor on lr: linear warm-up, 1 until `hold`, then cosine decay to `final_lr` at `total` steps."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        start = max(self.warmup, self.hold * total)
        progress = min(1.0, max(0.0, step - start) / max(1.0, total - start))
        return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class TrainerConfig:
    max_steps: int = setting(20000, low=1, help="optimizer steps")
    accelerator: str = setting("auto", choices=("auto", "cpu", "gpu", "mps"), help="where to train")
    devices: int = setting(1, low=1, help="devices per node")
    nodes: int = setting(1, low=1, help="number of nodes")
    strategy: str = setting(
        "ddp",
        choices=("ddp", "fsdp"),
        help="several devices: each holds the whole model (ddp) or a part of it (fsdp: FSDP2)",
    )
    precision: str = setting("bf16-mixed", choices=("32-true", "16-mixed", "bf16-mixed"), help="arithmetic")
    accumulate: int = setting(1, low=1, help="batches per optimizer step")
    clip: float = setting(0.0, low=0.0, help="gradient norm limit; 0 = none")
    save_every: int = setting(1000, low=1, help="steps between checkpoints")
    keep: int = setting(2, low=1, help="how many of the newest checkpoints are kept")
    log_every: int = setting(50, low=1, help="steps between rows of metrics.csv")
    sample_every: int = setting(1000, low=0, help="steps between sheets of samples; 0 = none")
    probe_every: int = setting(500, low=0, help="steps between measurements of each hint's effect; 0 = none")
    tracker: str = setting(
        "none", choices=("none", "tensorboard", "wandb"), help="also send the numbers of metrics.csv there"
    )

    @property
    def all_devices(self) -> int:
        return self.devices * self.nodes

    def __post_init__(self) -> None:
        check_settings(self)
        if self.strategy == "fsdp" and self.all_devices == 1:
            raise ValueError("trainer.strategy=fsdp needs several devices, got trainer.devices=1")
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            raise ValueError("trainer.strategy=fsdp needs precision bf16-mixed or 32-true, got 16-mixed")


@dataclass(frozen=True)
class ValidationConfig:
    """Examples that are not trained on; without datasets or scenes nothing is measured."""

    datasets: Path | None = setting(None, help="real sources, none of whose items is trained on")
    scenes: Path | None = setting(None, help="folder of scene shards, instead of datasets")
    examples: int = setting(64, low=1, help="held-out examples")
    every: int = setting(1000, low=1, help="steps between measurements")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.datasets is not None and self.scenes is not None:
            both = f"validation.datasets={self.datasets} and validation.scenes={self.scenes}"
            raise ValueError(f"{both}: only one of them")

    @property
    def measured(self) -> list[Any]:
        """What decides the numbers; empty where nothing is measured."""
        named = self.datasets or self.scenes
        return [] if named is None else [named.as_posix(), self.examples]


# Of the released training, beside PUBLISHED_TRAINING (docs/compositor.md, table of differences).
RELEASED: dict[str, Any] = {
    "trainable": "published", "train_projector": False, "vae": "sample", "timesteps": "dynamics",
    "drop_identity": 0.0, "drop_detail": 0.0, "drop_depth": 0.0, "timestep_shift": 1.0, "min_snr": 0.0,
    "mask_weight": 0.0, "ema": 0.0, "lr": 1e-5, "final_lr": 1.0, "hold": 0.0, "warmup": 0,
    "betas": [0.9, 0.999], "weight_decay": 0.01}  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    out: Path = setting(help="run folder: checkpoints, metrics, resolved settings, the finished model")
    pretrained: Path | None = setting(None, help="compositor folder to start from; none: fresh networks")
    first_stage: Path | None = setting(None, help="autoencoder folder for fresh networks")
    name: str = setting("compositor", help="name of the trained model")
    notice: str = setting("", help="shown to users once, when the trained model is loaded")
    seed: int = setting(0, help="seed of initialisation and data order")
    network: NetworkConfig = setting(NetworkConfig(), help="sizes of fresh networks")
    pair: PairOptions = setting(PairOptions(), help="pre-processing")
    sampling: Sampling = setting(Sampling(), help="sampler settings recommended for the trained model")
    data: DataConfig = setting(DataConfig(), help="sources and batches")
    validation: ValidationConfig = setting(
        ValidationConfig(), help="held-out loss, sheet and best checkpoint"
    )
    train: CompositorTrainConfig = setting(CompositorTrainConfig(), help="loss and optimizer")
    trainer: TrainerConfig = setting(TrainerConfig(), help="steps and hardware")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.pretrained is not None and self.first_stage is not None:
            raise ValueError(
                f"first_stage={self.first_stage} is for fresh networks and has no effect with "
                f"pretrained={self.pretrained}, which has an autoencoder; set one of them to null"
            )
        given = f"trainer.precision={self.trainer.precision} and trainer.strategy={self.trainer.strategy}"
        if self.train.frozen == "bf16" and given != "trainer.precision=bf16-mixed and trainer.strategy=ddp":
            raise ValueError(f"train.frozen=bf16 needs trainer.precision=bf16-mixed and ddp, got {given}")
        if self.trainer.strategy == "fsdp" and self.train.shard_optimizer:
            wrong = "train.shard_optimizer=true is for trainer.strategy=ddp: fsdp shards the optimizer anyway"
            raise ValueError(wrong)

    @staticmethod
    def layers(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Values that name `pair.preset` as two layers: what it stands for, and the rest, which wins."""
        pair = values.get("pair")
        if not isinstance(pair, Mapping) or pair.get("preset") != "published":
            return [values]
        own = ("size", "reference_size", "preset")  # of the model
        published = {key: value for key, value in to_plain(PUBLISHED_TRAINING).items() if key not in own}
        rest = {key: value for key, value in pair.items() if key != "preset"}
        return [{"pair": published, "train": RELEASED}, {**values, "pair": rest}]

    @property
    def samples_per_step(self) -> int:
        return self.data.batch * self.trainer.accumulate * self.trainer.all_devices
