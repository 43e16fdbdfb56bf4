"""Train the small shadow network on rendered scenes with and without one solid.

    python -m tiny.shadow.train configs/tiny/shadow.yaml

The scenes are rendered once into shards. The network is in `network` of the run, its course in curve.png.
"""

from dataclasses import dataclass
from pathlib import Path

from ldm.settings.cli import run_module, trainer
from ldm.settings.config import CheckedSettings, setting
from tiny.settings import StageSettings


@dataclass(frozen=True)
class ShadowScenes(CheckedSettings):
    folder: Path = setting(Path("data/shadow"), help="shards; made when missing, continued when interrupted")
    train: int = setting(5120, help="training scenes", low=1)
    held_out: int = setting(200, help="validation scenes, of seeds that no evaluation uses", low=1)


@dataclass(frozen=True)
class TrainShadowConfig(StageSettings):
    out: Path = setting(Path("runs/tiny/shadow"), help="folder of the run; the network is in `network` there")
    seed: int = setting(0, help="decides the initial weights and the order of samples", low=0)
    channels: tuple[int, ...] = setting((32, 48, 64), help="of each level, each at half the size", low=8)
    scenes: ShadowScenes = setting(ShadowScenes(), help="rendered scenes")
    zoom: tuple[float, float] = setting((2.5, 6.0), help="side of a square, in sizes of the solid", low=1)
    own_depth: float = setting(0.5, help="fraction with true depth, not a rounded body's", low=0, high=1)
    batch: int = setting(16, help="examples per step", low=1)
    warmup: int = setting(200, help="steps until the peak learning rate", low=0)
    ema: float = setting(0.999, help="decay of the averaged weights, which are the ones saved", low=0, high=1)


build_app = trainer(TrainShadowConfig, "tiny.shadow.training:train_shadow")

if __name__ == "__main__":
    run_module(build_app)
