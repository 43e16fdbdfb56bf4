"""Train a locator: LoRA on any image-and-text model, its projector at a rate of its own (paper appendix A).

python -m llava_bifrost.train configs/llava_bifrost/train.yaml [key=value ...]
accelerate launch --quiet -m llava_bifrost.train configs/llava_bifrost/train.yaml
"""

from dataclasses import dataclass
from pathlib import Path

from ldm.mllm.templates import TEMPLATES
from ldm.settings.choices import FLOAT_TYPES
from ldm.settings.cli import run_module, trainer
from ldm.settings.config import check_settings, setting
from ldm.training.settings import FitConfig, LoraSettings
from llava_bifrost.language.instruction import CODECS, FORMATS


@dataclass(frozen=True)
class TrainConfig:
    model: Path = setting(help="folder of the model to start from, such as models/llava-1.5-7b-hf")
    data: Path = setting(help="dataset.json of `python -m llava_bifrost.build_dataset`")
    out: Path = setting(help="run folder")
    validation: Path | None = setting(None, help="dataset.json of held-out examples")
    validation_samples: int = setting(200, low=1, help="held-out examples of the validation loss")
    measured: int = setting(32, low=0, help="held-out examples answered at each validation; 0 = none")
    checked: int = setting(8, low=0, help="examples that are answered after training")
    format: str = setting("center", choices=FORMATS, help="one depth (centre) or three (max, median, min)")
    codec: str = setting("auto", choices=("auto", *CODECS), help="how boxes are written; auto: by family")
    decimals: int = setting(3, low=2, high=4, help="digits of fractions and depths")
    template: str = setting(
        "auto", choices=("auto", *TEMPLATES), help="of the chat; auto: vicuna_v1 for llava, else the model's"
    )
    dtype: str = setting("bf16", choices=FLOAT_TYPES, help="precision of the weights that do not train")
    gradient_checkpointing: bool = setting(True, help="recompute activations instead of keeping them")
    projector_lr: float = setting(2e-5, low=0.0, help="learning rate of the projector")
    lora: LoraSettings = setting(LoraSettings(), help="what is trained")
    fit: FitConfig = setting(FitConfig(), help="the loop")
    merge: bool = setting(True, help="write model/ at the end: the weights merged, ready to ask")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.dtype not in ("fp32", self.fit.precision):
            raise ValueError(f"dtype={self.dtype} needs fit.precision={self.dtype}, got {self.fit.precision}")


build_app = trainer(TrainConfig, "llava_bifrost.training:fine_tune_locator")

if __name__ == "__main__":
    run_module(build_app)
