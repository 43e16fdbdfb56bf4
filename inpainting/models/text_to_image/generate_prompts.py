"""Prompts for the masked regions of every test picture, written by a language model that sees the picture.

The regions are painted in solid colours, large ones first; the model names what could be behind each colour.
Legend: s side of the crop.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from inpainting.data.describe import continuation, open_model
from inpainting.models.image_to_text.adapter import base_of, is_adapter, load_adapter
from inpainting.models.text_to_image.generate import picture
from inpainting.models.text_to_image.load import load_tokenizer
from inpainting.models.text_to_image.settings import (
    GENERATED_WITH,
    PaintingsConfig,
    in_batches,
    open_paintings,
    record,
)
from inpainting.prompts import colors_of, discover_prompt, paint_masks, read_prompt
from ldm.files import write_atomic
from ldm.metrics.weights import hash_of
from ldm.mllm_load import Mllm


def open_writer(config: PaintingsConfig) -> tuple[Mllm, dict[str, Any]]:
    """The prompt writer and the hashes of its weights."""
    if not config.llava_model_id:
        raise ValueError(
            "llava_model_id: name the prompt writer, a model folder or the folder of its adapter"
        )
    folder = Path(config.llava_model_id)
    if not is_adapter(folder):
        writer = open_model(config.llava_model_id, config.llava_precision)
        return writer, {"model": hash_of(Path(writer.folder))}
    base = open_model(config.llava_base or base_of(folder), config.llava_precision)
    adapted = replace(base, model=load_adapter(base.model, folder))
    return adapted, {"model": hash_of(Path(base.folder)), "adapter": hash_of(folder)}


def generate_prompts(config: PaintingsConfig, shard: tuple[int, int] = (0, 1)) -> None:
    """OUT/<name>.json, a list of prompts in the order of the regions; the same call again continues."""
    if config.llava_output_dir is None:
        raise ValueError("llava_output_dir: name the folder that gets the prompts")
    out, (index, count) = config.llava_output_dir, shard
    tokenizer = load_tokenizer(config.pretrained / "tokenizer")
    dataset = open_paintings(config, tokenizer, out, None)
    share = list(range(len(dataset)))[index::count]
    todo = [k for k in share if not (out / f"{dataset.stems[k]}.json").is_file()]
    writer, hashes = open_writer(config)
    record(out / GENERATED_WITH, {"weights": hashes, "max_new_tokens": config.max_new_tokens})
    with tqdm(total=len(share), initial=len(share) - len(todo), desc="prompts", disable=None) as bar:
        for items in in_batches(dataset, todo, config.batch, config.workers):
            masks = [[mask[0].numpy() > 0 for mask in item["all_masks"]] for item in items]
            found = write_prompts(writer, [picture(item) for item in items], masks, config.max_new_tokens)
            for item, texts in zip(items, found, strict=True):
                write_atomic(out / f"{item['image_stems']}.json", json.dumps(texts).encode())
            bar.update(len(items))


def write_prompts(
    writer: Mllm,
    images_u8: Sequence[np.ndarray],
    masks: Sequence[Sequence[np.ndarray]],
    max_new_tokens: int = 512,
) -> list[list[str]]:
    """A prompt for each region of each picture (s, s, 3); greedy decoding. masks: bool (s, s)."""
    names = [colors_of(len(one)) for one in masks]
    painted = [paint_masks(*one) for one in zip(images_u8, masks, names, strict=True)]
    processor = writer.processor
    processor.tokenizer.padding_side = "left"
    inputs = processor(
        text=[discover_prompt(one) for one in names],
        images=[Image.fromarray(one) for one in painted],
        padding=True,
        return_tensors="pt",
    )
    kind = next(p.dtype for p in writer.model.parameters() if p.is_floating_point())
    placed = {
        key: value.to(writer.device, kind if value.is_floating_point() else None)
        for key, value in inputs.items()
    }
    with torch.inference_mode():
        written = writer.model.generate(
            **placed,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            stop_strings=["</red>"],  # the last region is red
            tokenizer=processor.tokenizer,
        )
    asked = inputs["input_ids"].shape[1]
    answers = [continuation(processor.tokenizer, row, asked) for row in written.cpu()]
    return [[read_prompt(text, color) for color in one] for text, one in zip(answers, names, strict=True)]
