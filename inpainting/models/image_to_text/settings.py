"""What a training or a test of the prompt writer is."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inpainting.data.paintings import SPLITS, RegionOptions
from inpainting.prompts import COLORS, RED, SINGLE, PrompterConfig
from ldm.mllm.templates import TEMPLATES
from ldm.settings.choices import BOOTSTRAPS, FLOAT_TYPES
from ldm.settings.config import CheckedSettings, check_settings, setting
from ldm.training.settings import FitConfig, LoraSettings


@dataclass(frozen=True)
class AlphaOptions:
    kind: str = setting(
        "constant", choices=("constant", "random", "curriculum"), help="curriculum: from start to end"
    )
    start: float = setting(1.0, low=0, high=1, help="the constant, least, or first mean opacity")
    end: float = setting(1.0, low=0, high=1, help="largest, or last mean opacity")
    deviation: float = setting(0.1, low=0, help="of the curriculum's normal distribution")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.kind == "random" and self.start > self.end:
            raise ValueError(f"start={self.start} must not be above end={self.end} for kind=random")

    def alphas(self, step: int, steps: int, size: int, rng: np.random.Generator) -> list[float]:
        """`size` opacities in [0, 1] at a step, from 0 on; after `steps` a curriculum stays at its end."""
        if self.kind == "constant":
            return [self.start] * size
        if self.kind == "random":
            return rng.uniform(self.start, self.end, size).tolist()
        if step >= steps:
            return [self.end] * size
        mean = self.start + step / max(steps - 1, 1) * (self.end - self.start)
        low, high = sorted((self.start, self.end))
        return rng.normal(mean, self.deviation, size).clip(low, high).tolist()


@dataclass(frozen=True)
class LlavaOptions(RegionOptions):
    """Which regions of which paintings the prompt writer is asked about, in which colours."""

    remove_intersections: bool = setting(False, help="a mask loses what masks painted later cover")
    only_gray_concept: bool = setting(False, help="one region alone (1Mask)")
    single_color: str = setting(
        "gray", choices=SINGLE, help="its name and paint; published: called gray, painted red (1Pred)"
    )
    bookkeeping: str = setting(
        "fixed",
        choices=("fixed", "published"),
        help="fixed: exactly one red region in held-out images, any region alone; published: see docs",
    )

    @property
    def colors(self) -> int:
        return self.max_concepts or len(COLORS)


@dataclass(frozen=True)
class MetricFolders(CheckedSettings):
    """Where the networks lie. `python -m ldm.registry pull NAME` gets clip and roberta-large."""

    clip: Path = setting(Path("models/clip_vit_base_patch32"), help="CLIP folder of CLIPSim")
    roberta: Path = setting(Path("models/roberta_large"), help="RoBERTa folder of BERTScore")


RECIPE = LoraSettings(rank=16, alpha=16, dropout=0.05, projector=False, init="gaussian")


@dataclass(frozen=True)
class ValidationOptions(CheckedSettings):
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
    metric_models: MetricFolders = setting(MetricFolders(), help="what measures the prompts", was=("judges",))
    resamples: int = setting(BOOTSTRAPS, low=0, help="bootstrap resamples of the intervals; 0 = none")


@dataclass(frozen=True)
class PromptTraining:
    """A training run of the prompt writer, or with only_val a test of one."""

    project_dir: Path = setting(help="run folder: checkpoints, metrics, resolved settings, adapter/")
    model: str = setting(
        "llava-hf/llava-v1.6-vicuna-7b-hf",
        help="model to start from: folder, or hub name, which is looked for in models/ first",
    )
    resume_from: Path | None = setting(
        None, help="adapter to train on from, such as a released one: its folder, or its checkpoint's"
    )
    fine_tuning_type: str = setting(
        "qlora",
        choices=("qlora", "lora", "full", "quantized"),
        help="lora; qlora: on a 4-bit model; full: the language model itself; quantized: 4 bits, test only",
    )
    dtype: str = setting(
        "auto", choices=("auto", *FLOAT_TYPES), help="of what does not train; auto: as fit.precision"
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
        "latest",
        help="only_val: best, latest, a checkpoint's name in project_dir, an adapter's folder, or none",
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
        if self.resume_from is not None and self.fine_tuning_type not in ("lora", "qlora"):
            raise ValueError("resume_from is an adapter; a whole model to train on from is model=FOLDER")

    @property
    def folder(self) -> Path:
        return self.predictions or self.project_dir / ("test" if self.only_val else "validation")

    @property
    def dtype_name(self) -> str:
        if self.dtype != "auto":
            return self.dtype
        return "fp32" if self.fit.precision == "no" else self.fit.precision

    @property
    def prompter(self) -> PrompterConfig:
        """How the trained model is asked; `text_to_image.test` and the dream command read it."""
        alone, gray = self.data.only_gray_concept, self.data.single_color == "gray"
        known = (RED,) if alone and not gray else tuple(COLORS)[: self.data.colors]
        name = f"{'1Mask' if alone else 'MultiMask'} of {self.project_dir.name}"
        question = "gray" if alone and gray else "discover"
        return PrompterConfig(name, colors=known, question=question, template=self.template)


@dataclass(frozen=True)
class Decoding:
    constrained: bool = setting(True, help="one closed, non-empty tag per colour; off: as published")
    temperature: float = setting(0.0, low=0, help="0: the most probable tokens; else drawn, image by image")
    seed: int = setting(0, help="of the draws")
    longest: int | None = setting(
        None,
        low=1,
        help="most tokens of one prompt, by default as the model's config says; decoded as published, of a "
        "whole answer, by default 512",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.temperature and not self.constrained:
            raise ValueError("free decoding takes the most probable tokens; temperature must be 0")


RELEASED = Path("models/llava/multimask/checkpoint-2884/adapter")
TINY = Path("assets/tiny/prompter")
