"""Settings that the commands of the small networks share: sizes, stages; they import no network."""

from dataclasses import dataclass
from pathlib import Path

from cldm.config import check_levels
from inpainting.prompts import COLORS
from ldm.settings.config import CheckedSettings, setting

PATCH = 16  # pixels per image token and side: the ResNet's stride
MULTIPLE = 32  # patch 4, halved three times
MASK_COLORS = tuple(COLORS)[:5]  # colours of masks that the small prompter knows
PROMPTS = ("random", "true")


@dataclass(frozen=True)
class StageSettings(CheckedSettings):
    steps: int = setting(1_000_000, help="optimizer steps", low=1)
    minutes: float = setting(0.0, help="stop after this long; 0: only `steps` count", low=0)
    batch: int = setting(12, help="examples per step", low=1)
    lr: float = setting(1e-3, help="peak learning rate", low=0)
    final_lr: float = setting(0.05, help="last learning rate as a fraction of the peak", low=0, high=1)
    decay: float = setting(1.0, help="last fraction of the stage, in which a cosine falls", low=0, high=1)
    warmup: int = setting(100, help="steps of linear warm-up", low=0)
    betas: tuple[float, float] = setting((0.9, 0.98), help="of AdamW")
    weight_decay: float = setting(0.01, help="of AdamW", low=0)
    clip: float = setting(1.0, help="largest norm of the gradient", low=0)
    ema: float = setting(0.0, help="decay of the averaged weights that are kept; 0: none", low=0, high=1)
    bf16: bool = setting(True, help="bfloat16 autocast; about twice as fast on recent CPUs")
    log_every: int = setting(50, help="steps between rows of the CSV log", low=1)
    save_every_s: float = setting(60.0, help="seconds between checkpoints", low=1, was=("checkpoint_every",))


@dataclass(frozen=True)
class DiffusionStage(StageSettings):
    """The same with values for a stage that is short, has a seed of its own and keeps averaged weights."""

    seed: int = setting(0, help="seed of initialisation and of every batch")
    steps: int = setting(1000, help="optimizer steps", low=1)
    batch: int = setting(8, help="examples per step", low=1)
    final_lr: float = setting(0.0, help="last learning rate as a fraction of the peak", low=0, high=1)
    decay: float = setting(0.3, help="last fraction of the stage, in which a cosine falls", low=0, high=1)
    betas: tuple[float, float] = setting((0.9, 0.99), help="of AdamW")
    ema: float = setting(0.999, help="decay of the averaged weights that are kept; 0: none", low=0, high=1)


@dataclass(frozen=True)
class SmallConfig(CheckedSettings):
    """Sizes of the network. 2.7 M parameters as they stand."""

    image: int = setting(128, help="side of the image, pixels", low=32)
    width: int = setting(160, help="channels of the vision transformer and of the language model", low=16)
    heads: int = setting(5, help="attention heads of both", low=1)
    stages: tuple[int, int, int] = setting((32, 64, 128), help="channels of the ResNet's three stages", low=8)
    blocks: tuple[int, int, int] = setting((2, 2, 2), help="blocks of each of them", low=1)
    vision_layers: int = setting(2, help="layers of the vision transformer", low=1)
    layers: int = setting(4, help="layers of the language model", low=2)
    hidden: int = setting(432, help="channels within the language model's gated layers", low=16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image % PATCH:
            raise ValueError(f"image must be a multiple of {PATCH}, got {self.image}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 heads, got {self.width} and {self.heads}")

    @property
    def patches(self) -> int:
        return (self.image // PATCH) ** 2


@dataclass(frozen=True)
class LlavaStage(StageSettings):
    extra: int = setting(0, help="images per step without questions, for the vision loss alone", low=0)
    vision_lr: float = setting(0.0, help="learning rate of the vision transformer; 0: frozen", low=0)


@dataclass(frozen=True)
class LlavaTraining(CheckedSettings):
    data: Path = setting(help="folder of shards of rendered scenes, full views")
    out: Path = setting(help="folder of the run; the network is in its `model` folder")
    seed: int = setting(0, help="decides initial weights, scenes, masks and questions", low=0)
    model: SmallConfig = setting(SmallConfig(), help="sizes of the network")
    vision: LlavaStage = setting(LlavaStage(), help="stage of the vision tower")
    blind: bool = setting(False, help="control: the language model never sees the image")


@dataclass(frozen=True)
class DepthNetwork(CheckedSettings):
    """Sizes of the network; about 6 MB in half precision at most."""

    size: int = setting(128, help="side of training images, shortest at inference", low=32, high=1024)
    width: int = setting(32, help="channels of the first stage, doubled three times", low=8, high=256)
    depths: tuple[int, int, int, int] = setting((2, 2, 4, 2), help="blocks per stage", low=1, high=32)
    heads: tuple[int, int, int, int] = setting((1, 2, 4, 8), help="attention heads per stage", low=1, high=64)
    window: int = setting(8, help="attention window in tokens", low=2, high=32)
    fusion: int = setting(32, help="channels of the decoder", low=8, high=256)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % MULTIPLE:
            raise ValueError(f"network.size must be a multiple of {MULTIPLE}, got {self.size}")


@dataclass(frozen=True)
class InpainterNetworks(CheckedSettings):
    latent_size: int = setting(32, low=4, help="side of the latents; 4 pixels each")
    block_channels: tuple[int, ...] = setting((32, 64, 128), help="UNet width per level")
    heads: tuple[int, ...] = setting((1, 2, 4), help="attention heads per level")
    attention: tuple[bool, ...] = setting((False, True, True), help="cross-attention at each level")
    norm_groups: int = setting(16, low=1, help="GroupNorm groups")
    text_width: int = setting(128, low=8, help="width of the text encoder")
    text_layers: int = setting(2, low=1, help="layers of the text encoder")
    text_heads: int = setting(4, low=1, help="attention heads of the text encoder")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_levels(self)


@dataclass(frozen=True)
class LatentsConfig(CheckedSettings):
    width: int = setting(32, low=8, help="channels of every level")
    layers: int = setting(2, low=1, help="residual blocks per level")
    latent_channels: int = setting(4, low=1, help="Stable Diffusion's inpainting layout has 4")
    scale: float = setting(
        2.0, low=0.1, help="root mean square of the scaled latents; a solid varies half as much as the room"
    )
    crop: int = setting(64, low=16, help="side of the training crops, pixels")
    loop: DiffusionStage = setting(
        DiffusionStage(steps=9000, batch=8, lr=1.5e-3, weight_decay=0.0, ema=0.99), help="how it learns"
    )


@dataclass(frozen=True)
class ClassifierConfig(CheckedSettings):
    width: int = setting(24, low=4, help="channels of the first level, twice as many per level")
    loop: DiffusionStage = setting(
        DiffusionStage(steps=5000, batch=32, lr=2e-3, ema=0.995, decay=0.6), help="how it learns"
    )
