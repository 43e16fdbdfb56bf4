"""Train the tiny depth network on rendered scenes.

    python -m tiny.depth.train configs/tiny/depth.yaml out=runs/tiny/depth minutes=25

Images are rendered once into shards; every scene gives two, with and without one solid.
"""

from dataclasses import dataclass
from pathlib import Path

from ldm.settings.cli import run_module, trainer
from ldm.settings.config import CheckedSettings, setting
from tiny.settings import DepthNetwork, StageSettings


@dataclass(frozen=True)
class DepthScenes(CheckedSettings):
    folder: Path = setting(Path("data/depth"), help="shards; made when missing, continued when interrupted")
    train: int = setting(4000, help="training scenes, two images each", low=1)
    held_out: int = setting(200, help="evaluation scenes, from seeds that training never uses", low=1)
    cutouts: Path | None = setting(None, help="images with alpha that stand in the scenes of the open world")
    smooth_edges: bool = setting(False, help="anti-aliased training scenes, about half as fast to render")


@dataclass(frozen=True)
class AugmentConfig(CheckedSettings):
    """How a training image is varied; the depth follows the geometry."""

    crop: float = setting(0.55, help="smallest side of a crop, fraction of the image", low=0.2, high=1)
    stretch: float = setting(0.1, help="largest change of a crop's aspect", low=0, high=0.5)
    wide: float = setting(0.3, help="fraction of batches at a size that is not square", low=0, high=1)
    colour: float = setting(0.35, help="strength of light and saturation changes", low=0, high=1)
    permute: float = setting(0.25, help="fraction of images with permuted colour channels", low=0, high=1)
    blur: float = setting(0.25, help="fraction of softened images", low=0, high=1)
    noise: float = setting(0.02, help="largest standard deviation of added noise, of 1", low=0, high=0.5)


@dataclass(frozen=True)
class TrainDepthConfig(StageSettings):
    out: Path = setting(Path("runs/tiny/depth"), help="folder of the run; the network is in `network` there")
    seed: int = setting(0, help="decides the initial weights and the order of samples", low=0)
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    network: DepthNetwork = setting(DepthNetwork(), help="sizes of the network")
    scenes: DepthScenes = setting(DepthScenes(), help="rendered images")
    open: int = setting(0, help="further training scenes, of the open world", low=0)
    pasted: float = setting(0.0, help="fraction of images with objects of others pasted in", low=0, high=1)
    exchanged: float = setting(0.0, help="fraction with a solid behind one that it hides", low=0, high=1)
    augment: AugmentConfig = setting(AugmentConfig(), help="variation of the images")
    steps: int = setting(8000, help="optimizer steps", low=1)
    batch: int = setting(16, help="images per step", low=1)
    final_lr: float = setting(0.01, help="last learning rate as a fraction of the peak", low=0, high=1)
    warmup: int = setting(200, help="steps until the peak learning rate", low=0)
    weight_decay: float = setting(0.05, help="of AdamW", low=0)
    edges: float = setting(0.5, help="weight of the gradient loss", low=0)
    ema: float = setting(0.999, help="decay of the averaged weights, which are the ones saved", low=0, high=1)


build_app = trainer(TrainDepthConfig, "tiny.depth.training:train_depth")

if __name__ == "__main__":
    run_module(build_app)
