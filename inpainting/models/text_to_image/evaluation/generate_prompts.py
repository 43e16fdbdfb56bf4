"""Prompts for the masked regions of every test image, written by a language model that sees the image.

The regions are painted in solid colours, large ones first; the model names what could be behind each colour.
"""

from __future__ import annotations

import json
from pathlib import Path

from tqdm.auto import tqdm

from inpainting.models.image_to_text.writer import Decoding, PromptWriter
from inpainting.models.text_to_image.evaluation.generate import image
from inpainting.models.text_to_image.evaluation.settings import (
    GENERATED_WITH,
    PaintingsConfig,
    in_batches,
    open_paintings,
    record,
)
from inpainting.models.text_to_image.load import load_tokenizer
from ldm.files import write_atomic
from ldm.settings.config import to_plain


def open_writer(config: PaintingsConfig) -> PromptWriter:
    """The prompt writer that the settings name."""
    if not config.llava_model_id:
        raise ValueError(
            "llava_model_id: name the prompt writer, a model folder or the folder of its adapter"
        )
    named = config.llava_model_id
    folder, adapter = (config.llava_base, Path(named)) if config.llava_base else (named, None)
    return PromptWriter.load(folder, adapter, config.device, config.dtype, config.llava_precision)


def decoding_of(config: PaintingsConfig, regions: int) -> Decoding:
    """How prompts of up to `regions` masks are decoded: max_new_tokens is shared among them."""
    if not config.llava_constrained:
        return Decoding(constrained=False, longest=config.max_new_tokens)
    return Decoding(longest=max(1, config.max_new_tokens // regions))


def generate_prompts(config: PaintingsConfig, shard: tuple[int, int] = (0, 1)) -> None:
    """OUT/<name>.json, a list of prompts in the order of the regions; the same call again continues."""
    if config.llava_output_dir is None:
        raise ValueError("llava_output_dir: name the folder that gets the prompts")
    out, (index, count) = config.llava_output_dir, shard
    tokenizer = load_tokenizer(config.pretrained / "tokenizer")
    dataset = open_paintings(config, tokenizer, out, None)
    share = list(range(len(dataset)))[index::count]
    todo = [k for k in share if not (out / f"{dataset.stems[k]}.json").is_file()]
    writer = open_writer(config)
    decoding = decoding_of(config, config.data.max_concepts or len(writer.config.colors))
    record(out / GENERATED_WITH, {"weights": writer.weights(), "decoding": to_plain(decoding)})
    with tqdm(total=len(share), initial=len(share) - len(todo), desc="prompts", disable=None) as bar:
        for items in in_batches(dataset, todo, config.batch, config.workers):
            masks = [[mask[0].numpy() > 0 for mask in item["all_masks"]] for item in items]
            found = writer.write([image(item) for item in items], masks, decoding, config.batch)
            for item, texts in zip(items, found, strict=True):
                write_atomic(out / f"{item['image_stems']}.json", json.dumps(texts).encode())
            bar.update(len(items))
