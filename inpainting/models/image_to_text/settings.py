"""What a training or a test of the prompt writer is."""

from dataclasses import dataclass
from pathlib import Path

from inpainting.data.paintings import SPLITS
from inpainting.models.image_to_text.batches import AlphaOptions
from inpainting.models.image_to_text.dataset import LlavaOptions
from inpainting.models.image_to_text.evaluation.metric_models import MetricFolders
from inpainting.prompts import COLORS, RED, PrompterConfig
from ldm.metrics.intervals import BOOTSTRAPS
from ldm.mllm.templates import TEMPLATES
from ldm.settings.choices import PRECISIONS
from ldm.settings.config import CheckedSettings, check_settings, setting
from ldm.training.settings import FitConfig, LoraSettings

RECIPE = LoraSettings(rank=16, alpha=16, dropout=0.05, projector=False, init="gaussian")


@dataclass(frozen=True)
class ValidationOptions(CheckedSettings):
    """How held-out images are answered and measured."""

    split: str = setting("val", choices=SPLITS, help="which images")
    instances: int = setting(64, low=0, help="most images; 0: none, and no validation while training")
    batch: int = setting(8, low=1, help="images that are answered together")
    question: str = setting(
        "colors",
        choices=("colors", "plain"),
        help="colors: as trained; plain: for a model without adapter, its whole answer is the prompt",
    )
    first_sentence: bool = setting(False, help="a plain answer ends at its first full stop")
    constrained: bool = setting(False, help="one closed, non-empty tag per colour; off: as published")
    max_new_tokens: int = setting(512, low=1, help="longest answer, constrained: longest prompt")
    sheet: int = setting(8, low=0, help="images of sheet.png, with masks and answers; 0 = none")
    metric_models: MetricFolders = setting(
        MetricFolders(), help="networks that measure the prompts", was=("judges",)
    )
    resamples: int = setting(BOOTSTRAPS, low=0, help="bootstrap resamples of the intervals; 0 = none")


@dataclass(frozen=True)
class PromptTraining:
    """A training run of the prompt writer, or with only_val a test of one."""

    project_dir: Path = setting(help="run folder: checkpoints, metrics, resolved settings, adapter/")
    model: str = setting(
        "llava-hf/llava-v1.6-vicuna-7b-hf",
        help="model to start from: folder, or hub name, which is looked for in models/ first",
    )
    fine_tuning_type: str = setting(
        "qlora",
        choices=("qlora", "lora", "full", "quantized"),
        help="lora; qlora: on a 4-bit model; full: the language model itself; quantized: 4 bits, test only",
    )
    dtype: str = setting(
        "auto", choices=("auto", *PRECISIONS), help="precision of what does not train; auto: as fit.precision"
    )
    template: str = setting("", choices=("", *TEMPLATES), help="chat template; empty: the published one")
    lora: LoraSettings = setting(RECIPE, help="the adapter")
    data: LlavaOptions = setting(LlavaOptions(), help="images and masks")
    alphas: AlphaOptions = setting(AlphaOptions(), help="opacity of the masks in training")
    val_alphas: AlphaOptions = setting(AlphaOptions(), help="opacity of the masks in held-out images")
    fit: FitConfig = setting(FitConfig(), help="the training loop")
    gradient_checkpointing: bool = setting(True, help="recompute activations instead of keeping them")
    max_length: int = setting(512, low=8, help="most tokens of an answer to learn; images are never cut")
    append_eos: bool = setting(True, help="learn to stop after the last tag; off: as published")
    train_samples: int = setting(0, low=0, help="use only the first images; 0 = all")
    only_val: bool = setting(False, help="no training: answer and measure held-out images")
    checkpoint: str = setting(
        "latest", help="only_val: latest, a checkpoint's name in project_dir, an adapter's folder, or none"
    )
    predictions: Path | None = setting(
        None, help="folder of predictions.jsonl and metrics.json; default: in project_dir"
    )
    val: ValidationOptions = setting(ValidationOptions(), help="held-out images")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.fine_tuning_type == "quantized" and not self.only_val:
            raise ValueError("fine_tuning_type=quantized trains nothing; set only_val=true, or take qlora")
        if self.fine_tuning_type in ("lora", "qlora") and self.lora.rank == 0:
            raise ValueError(f"fine_tuning_type={self.fine_tuning_type} needs lora.rank of at least 1")

    @property
    def folder(self) -> Path:
        """Where predictions and their metrics go."""
        return self.predictions or self.project_dir / ("test" if self.only_val else "validation")

    @property
    def dtype_name(self) -> str:
        """fp32, fp16 or bf16."""
        if self.dtype != "auto":
            return self.dtype
        return "fp32" if self.fit.precision == "no" else self.fit.precision

    @property
    def prompter(self) -> PrompterConfig:
        """How the trained model is asked; `text_to_image.test` and the dream command read it."""
        alone, gray = self.data.only_gray_concept, self.data.single_color == "gray"
        known = (RED,) if alone and not gray else tuple(COLORS)[: self.data.colors]
        return PrompterConfig(
            name=f"{'1Mask' if alone else 'MultiMask'} of {self.project_dir.name}",
            colors=known,
            question="gray" if alone and gray else "discover",
            template=self.template,
        )
