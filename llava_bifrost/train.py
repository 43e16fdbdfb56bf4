"""Train a locator: LoRA on any image-and-text model, its projector at a rate of its own (paper appendix A).

    python -m llava_bifrost.train configs/llava_bifrost/train.yaml [key=value ...]
    accelerate launch -m llava_bifrost.train configs/llava_bifrost/train.yaml

The run folder holds metrics.csv, validation.csv, checkpoints whose adapter/ peft reads, and at the end
adapter/, model/ (merged, ready to ask) and check.json. The same command again continues.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ldm.device import DTYPES
from ldm.files import write_atomic, write_json
from ldm.mllm.load import Mllm, load_model, load_processor
from ldm.mllm.templates import TEMPLATES
from ldm.mllm.training import (
    LoraSettings,
    adapter_layout,
    answer_loss,
    make_trainable,
    merged,
    prepared,
    rate_of,
    tensors_of,
)
from ldm.settings.cli import run_module, trainer
from ldm.settings.config import check_settings, dump_yaml, setting, write_config
from ldm.training.fit import FitConfig, Task, fit, make_accelerator
from llava_bifrost.check import check_answers, measure_free_answers
from llava_bifrost.dataset import LocatorData, LocatorRecord, read_records
from llava_bifrost.language.codec import CODECS
from llava_bifrost.language.instruction import FORMATS
from llava_bifrost.locator import CONFIG, Locator, LocatorConfig, read_locator_config
from llava_bifrost.model import save_locator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """A training run of the locator."""

    model: Path = setting(help="folder of the model to start from, such as models/llava-1.5-7b-hf")
    data: Path = setting(help="dataset.json of `python -m llava_bifrost.build_dataset`")
    out: Path = setting(help="run folder")
    validation: Path | None = setting(None, help="dataset.json of held-out examples")
    validation_samples: int = setting(200, low=1, help="held-out examples of the validation loss")
    measured: int = setting(
        32, low=0, help="held-out examples that are answered at each validation; 0 = none"
    )
    checked: int = setting(8, low=0, help="examples that are answered after training")
    format: str = setting("center", choices=FORMATS, help="one depth (centre) or three (max, median, min)")
    codec: str = setting("auto", choices=("auto", *CODECS), help="how boxes are written; auto: by family")
    decimals: int = setting(3, low=2, high=4, help="digits of fractions and depths")
    template: str = setting(
        "auto",
        choices=("auto", *TEMPLATES),
        help="chat template; auto: vicuna_v1 for llava, else the model's",
    )
    dtype: str = setting("bf16", choices=tuple(DTYPES), help="precision of the weights that do not train")
    gradient_checkpointing: bool = setting(True, help="recompute activations instead of keeping them")
    projector_lr: float = setting(2e-5, low=0.0, help="learning rate of the projector")
    lora: LoraSettings = setting(LoraSettings(), help="what is trained")
    fit: FitConfig = setting(FitConfig(), help="the loop")
    merge: bool = setting(True, help="write model/ at the end: the weights merged, ready to ask")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.dtype not in ("fp32", self.fit.precision):
            raise ValueError(f"dtype={self.dtype} needs fit.precision={self.dtype}, got {self.fit.precision}")


def train(config: TrainConfig) -> None:
    """Train a locator from a vision-language model, check its answers; the same command again continues."""
    accelerator = make_accelerator(config.fit, config.out)
    records = read_records(config.data)
    held_out = [] if config.validation is None else read_records(config.validation)
    processor = load_processor(config.model)
    base: Any = load_model(config.model, DTYPES[config.dtype]).to(accelerator.device)
    answers = locator_config(config, str(base.config.model_type))
    model = make_trainable(prepared(base, config.gradient_checkpointing), config.lora, config.fit.seed)
    if accelerator.is_main_process:
        write_atomic(config.out / "config.yaml", dump_yaml(config).encode())
        count = sum(value.numel() for value in model.parameters() if value.requires_grad)
        log.info("%d examples, %d trained weights, codec %s", len(records), count, answers.codec)
    codec = answers.make_codec()
    validation, measured = held_out[: config.validation_samples], held_out[: config.measured]

    def measure(model: nn.Module) -> dict[str, float]:
        with accelerator.autocast():
            return measure_free_answers(Locator(Mllm(model, processor, config.model), answers), measured)

    task = Task(
        answer_loss,
        LocatorData(records, codec, processor),
        partial(tensors_of, answers.make_chat(processor)),
        held_out=LocatorData(validation, codec, processor) if validation else None,
        measure=measure if measured else None,
        layout=adapter_layout(model, lambda folder: write_config(folder / CONFIG, answers)),
        rates=rate_of(config.fit.lr, config.projector_lr),
    )
    fit(config.fit, config.out, model, task, accelerator)
    if accelerator.is_main_process:
        finish(config, model, processor, answers, held_out or records)


def finish(
    config: TrainConfig,
    model: nn.Module,
    processor: Any,
    answers: LocatorConfig,
    records: list[LocatorRecord],
) -> None:
    """Write adapter/ and model/, then ask the locator that was written."""
    if config.lora.rank:
        model.save_pretrained(str(config.out / "adapter"))  # type: ignore[operator]
        write_config(config.out / "adapter" / CONFIG, answers)
    whole = merged(model).to(DTYPES[config.dtype]).eval()
    if config.merge or not config.lora.rank:
        whole.config.use_cache = True
        save_locator(whole, processor, answers, config.out / "model")
        log.info("wrote %s", config.out / "model")
    if config.checked:
        locator = Locator(Mllm(whole, processor, config.out), answers)
        write_json(config.out / "check.json", check_answers(locator, records[: config.checked]))


def locator_config(config: TrainConfig, family: str) -> LocatorConfig:
    """How the trained locator is asked and answers; `auto` follows the locator.json of the start."""
    known = read_locator_config(config.model, family)
    template: str | None = config.template
    if template == "auto":
        original = family == "llava" and not (config.model / CONFIG).is_file()
        template = "vicuna_v1" if original else known.template
    codec = known.codec if config.codec == "auto" else config.codec
    return LocatorConfig(config.format, codec, config.decimals, template, known.names, known.notice)


build_app = trainer(TrainConfig, train)

if __name__ == "__main__":
    run_module(build_app)
