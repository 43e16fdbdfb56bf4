"""Train the small inpainter on rendered scenes, stage by stage; a stage whose result is there is skipped.

    python -m tiny.inpainter.train configs/tiny/inpainter.yaml

first_stage  AutoencoderTiny with 4 latent channels
painter      UNet and text encoder together: one mask, one prompt, as Stable Diffusion's inpainting model
rca          LoRA on several masks, with rectified cross-attention
joint        the same with all prompts in one token sequence, as published; for the evaluation only
plain        LoRA on the same examples without it: prompts joined with periods
judge        a classifier of colour and shape, for the evaluation only
"""

from dataclasses import dataclass
from pathlib import Path

from inpainting.models.text_to_image.config import PaintOptions
from ldm.settings.cli import run_module, trainer
from ldm.settings.config import CheckedSettings, setting
from tiny.settings import ClassifierConfig, DiffusionStage, InpainterNetworks, LatentsConfig

STAGES = ("first_stage", "painter", "rca", "joint", "plain", "judge")
ADAPTERS = {  # how prompts reach their masks
    "rca": PaintOptions(encoding="separate"),
    "joint": PaintOptions(encoding="joint"),
    "plain": PaintOptions(encoding="separate", rca=False),
}


@dataclass(frozen=True)
class AdapterConfig(CheckedSettings):
    """The LoRAs; as published but for the rank and the length."""

    rank: int = setting(16, low=1, help="rank; alpha is equal to it")
    most_masks: int = setting(5, low=1, help="masks of one image")
    loop: DiffusionStage = setting(
        DiffusionStage(steps=2500, batch=8, lr=1e-3, weight_decay=0.0, ema=0.995), help="how it learns"
    )


@dataclass(frozen=True)
class InpainterTraining(CheckedSettings):
    data: Path = setting(help="folder of shards of whole scenes, training seeds")
    out: Path = setting(help="folder that receives one folder per stage")
    scenes: int | None = setting(None, low=1, help="use only the first scenes")
    stages: tuple[str, ...] = setting(STAGES, help="which stages to run", choices=STAGES)
    first_stage: LatentsConfig = setting(LatentsConfig(), help="autoencoder")
    network: InpainterNetworks = setting(InpainterNetworks(), help="sizes of UNet and text encoder")
    painter: DiffusionStage = setting(DiffusionStage(steps=10000, batch=8, lr=8e-4), help="single masks")
    adapter: AdapterConfig = setting(AdapterConfig(), help="LoRAs")
    classifier: ClassifierConfig = setting(ClassifierConfig(), help="of the evaluation", was=("judge",))


build_app = trainer(InpainterTraining, "tiny.inpainter.training:train_inpainter")

if __name__ == "__main__":
    run_module(build_app)
