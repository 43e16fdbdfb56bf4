"""Folders of locators are written: an adapter merged into its base."""

import logging
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoints import folder_written_whole
from ldm.device import DTYPES
from ldm.mllm.llava_original import merge_into
from ldm.mllm.load import load_model, load_processor
from ldm.mllm.training import load_adapter, merged
from ldm.settings.config import write_config
from llava_bifrost.locator import CONFIG, LocatorConfig, read_locator_config
from llava_bifrost.model import ConvertLocator, MergeLocator

log = logging.getLogger(__name__)


RELEASED = "Converted from the released Bifrost MLLM; its training format is not documented."


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
