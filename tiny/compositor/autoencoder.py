"""Train the small first stage (an autoencoder) on stored scenes, then measure it.

    python -m tiny.compositor.autoencoder configs/tiny/autoencoder.yaml

A linear map of the same size (PCA of f x f patches) is the baseline: below it nothing has been learned.
"""

from dataclasses import dataclass
from pathlib import Path

from cldm.config import AutoencoderConfig
from ldm.settings.cli import run_module, trainer
from ldm.settings.config import CheckedSettings, setting


@dataclass(frozen=True)
class AutoencoderTraining(CheckedSettings):
    data: Path = setting(help="folder of scene shards for training")
    held_out: Path = setting(help="folder of scene shards for measuring")
    out: Path = setting(help="folder that receives the autoencoder")
    autoencoder: AutoencoderConfig = setting(AutoencoderConfig(), help="sizes")
    crop: int = setting(64, low=16, help="side of the random training crops, pixels")
    batch: int = setting(8, low=1, help="crops per step")
    steps: int = setting(5000, low=1, help="optimizer steps")
    bf16: bool = setting(True, help="bfloat16 autocast; twice as fast on recent CPUs")
    lr: float = setting(1.5e-3, low=0.0, help="peak learning rate, cosine to 0")
    seed: int = setting(0, help="seed of initialisation and crops")
    log_every: int = setting(200, low=1, help="steps between rows of log.csv")


build_app = trainer(AutoencoderTraining, "tiny.compositor.training:train_first_stage")

if __name__ == "__main__":
    run_module(build_app)
