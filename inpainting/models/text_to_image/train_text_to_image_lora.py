"""Train a LoRA of the inpainter on paintings with masked regions (paper section 3.3, docs/paintings.md)."""

from dataclasses import dataclass
from pathlib import Path

from inpainting.config_path import config_app
from inpainting.data.paintings import PaintingOptions
from inpainting.models.text_to_image.config import ENCODINGS, LAYOUTS
from ldm.settings.cli import run_module
from ldm.settings.config import CheckedSettings, check_settings, setting
from ldm.training.settings import FitConfig

WORK = "inpainting.models.text_to_image.lora:train_lora"
HELP = "Train a LoRA of the inpainter; the same command again continues an interrupted run."
TARGETS = ("to_k", "to_q", "to_v", "to_out.0")


@dataclass(frozen=True)
class LoraOptions(CheckedSettings):
    """The adapter. Its scale is 1 (alpha = rank), as the released format assumes."""

    rank: int = setting(16, low=1, help="rank of the update of each layer")
    dropout: float = setting(0.05, low=0, high=1, help="dropout in front of the adapter")
    targets: tuple[str, ...] = setting(TARGETS, help="layers, by the end of their names")


@dataclass(frozen=True)
class TrainLoraConfig:
    project_dir: Path = setting(help="run folder: checkpoints, metrics, resolved settings, the best LoRA")
    pretrained: Path = setting(Path("models/stable-diffusion-2-inpainting"), help="folder to start from")
    resume_from: Path | None = setting(None, help="LoRA to train on from: file, or folder that holds it")
    rca: bool = setting(True, help="rectified cross-attention; off: prompts joined by periods")
    layout: str = setting("coverage", choices=LAYOUTS, help="which cells a region owns; nearest = published")
    encoding: str = setting("joint", choices=ENCODINGS, help="one sequence for all prompts, or one for each")
    data: PaintingOptions = setting(PaintingOptions(), help="images and regions")
    lora: LoraOptions = setting(LoraOptions(), help="the adapter")
    fit: FitConfig = setting(FitConfig(), help="the training loop")
    noise_offset: float = setting(0.0, low=0, help="extra noise per channel")
    min_snr: float = setting(0.0, low=0, help="limit of the loss weight by signal-to-noise ratio; 0 = none")
    gradient_checkpointing: bool = setting(False, help="less memory, about a third slower")
    train_samples: int = setting(0, low=0, help="use only the first images; 0 = all")
    val_samples: int = setting(0, low=0, help="use only the first validation images; 0 = all")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.encoding == "separate" and not self.rca:
            raise ValueError("encoding=separate needs rca: without region maps there is one sequence")


build_app = config_app("Train a LoRA of the inpainter.", "main", TrainLoraConfig, WORK, HELP)

if __name__ == "__main__":
    run_module(build_app)
