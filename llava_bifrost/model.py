"""Folders of locators: the released adapter merged into LLaVA, a trained adapter merged, both ready to ask.

    python -m llava_bifrost.model convert --adapter models/released/bifrost_mllm \\
        --base models/llava-1.5-7b-hf --out models/locator
    python -m llava_bifrost.model merge --adapter runs/locator/checkpoint-500/adapter \\
        --base models/llava-1.5-7b-hf --out models/locator
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer

from ldm.checkpoints import folder_written_whole
from ldm.device import DTYPES
from ldm.mllm.chat import TEMPLATES
from ldm.mllm.llava_original import merge_into
from ldm.mllm.load import load_model, load_processor
from ldm.mllm.training import load_adapter, merged
from ldm.settings.choices import PRECISIONS
from ldm.settings.cli import command, new_app, run_module
from ldm.settings.config import CheckedSettings, setting, write_config
from llava_bifrost.choice import FULL
from llava_bifrost.language.instruction import FORMATS
from llava_bifrost.locator import CONFIG, LocatorConfig, read_locator_config

log = logging.getLogger(__name__)

RELEASED = "Converted from the released Bifrost MLLM; its training format is not documented."


@dataclass(frozen=True)
class ConvertLocator(CheckedSettings):
    """The released adapter and its base."""

    adapter: Path = setting(
        help="folder in the original LLaVA layout: adapter_model.*, non_lora_trainables.bin"
    )
    base: Path = setting(help="transformers folder of LLaVA-1.5, such as models/llava-1.5-7b-hf")
    out: Path = setting(FULL, help="folder to write")
    format: str = setting("center", choices=FORMATS, help="answers it was trained to give")
    decimals: int = setting(3, low=2, high=4, help="digits of its numbers")
    template: str = setting("vicuna_v1", choices=tuple(TEMPLATES), help="chat template it was trained with")


@dataclass(frozen=True)
class MergeLocator(CheckedSettings):
    """An adapter that was trained here, and its base."""

    adapter: Path = setting(help="adapter folder of a run: OUT/adapter, or CHECKPOINT/adapter")
    base: Path = setting(help="the model folder that the run started from")
    out: Path = setting(FULL, help="folder to write")
    dtype: str = setting("bf16", choices=PRECISIONS, help="precision of the merged weights")


def convert_adapter(settings: ConvertLocator) -> None:
    """Merge the released adapter into LLaVA-1.5; every tensor is used, or nothing is written."""
    report = merge_into(settings.base, settings.adapter, settings.out)
    config = LocatorConfig(settings.format, "bifrost", settings.decimals, settings.template, (), RELEASED)
    write_config(settings.out / CONFIG, config)
    used = f"all {report['adapter_tensors']} tensors of the adapter used"
    pairs, replaced = report["lora_pairs_merged"], ", ".join(report["weights_replaced"])
    log.info("wrote %s: %s, %d LoRA pairs merged, replaced: %s", settings.out, used, pairs, replaced)


def merge_adapter(settings: MergeLocator) -> None:
    """Merge an adapter that was trained here into its base model."""
    model: Any = load_model(settings.base, torch.float32)
    config = read_locator_config(settings.adapter, str(model.config.model_type))
    if not (settings.adapter / CONFIG).is_file():
        log.warning("%s has no %s; the answer format of the family is assumed", settings.adapter, CONFIG)
    whole = merged(load_adapter(model, settings.adapter))
    save_locator(whole.to(DTYPES[settings.dtype]), load_processor(settings.base), config, settings.out)
    log.info("wrote %s", settings.out)


def save_locator(model: Any, processor: Any, config: LocatorConfig, folder: Path) -> None:
    """A locator's folder: model, processor, configuration; whole or not at all."""
    with folder_written_whole(folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        write_config(partial / CONFIG, config)


def build_app() -> typer.Typer:
    """The command line."""
    app = new_app("Folders of locators.")
    app.command("convert")(command(ConvertLocator, convert_adapter))
    app.command("merge")(command(MergeLocator, merge_adapter))
    return app


if __name__ == "__main__":
    run_module(build_app)
