"""Prompts for the masked regions of every test image, written by a language model that sees the image.

The regions are painted in solid colours, large ones first; the model names what could be behind each colour.
"""

from __future__ import annotations

import json
from pathlib import Path

from inpainting.models.image_to_text.writer import Decoding, PromptWriter
from inpainting.models.text_to_image.evaluation.generate import item_image
from inpainting.models.text_to_image.evaluation.settings import (
    GENERATED_WITH,
    PaintingsConfig,
    masks_of,
    open_paintings,
    pending_batches,
    record,
)
from inpainting.models.text_to_image.load import load_tokenizer
from ldm.files import write_atomic
from ldm.settings.config import to_plain


def generate_prompts(config: PaintingsConfig, shard: tuple[int, int] = (0, 1)) -> None:
    """OUT/<name>.json, a list of prompts in the order of the regions; the same call again continues."""
    out, model = config.llava_output_dir, config.llava_model_id
    if out is None:
        raise ValueError("llava_output_dir: name the folder that gets the prompts")
    if not model:
        raise ValueError(
            "llava_model_id: name the prompt writer, a model folder or the folder of its adapter"
        )
    dataset = open_paintings(config, load_tokenizer(config.pretrained / "tokenizer"), out, None)
    folder, adapter = (config.llava_base, Path(model)) if config.llava_base else (model, None)
    writer = PromptWriter.load(folder, adapter, config.device, config.dtype, config.llava_precision)
    if config.llava_constrained:  # max_new_tokens is divided among the prompts of an image
        regions = config.data.max_concepts or len(writer.config.colors)
        decoding = Decoding(longest=max(1, config.max_new_tokens // regions))
    else:
        decoding = Decoding(constrained=False, longest=config.max_new_tokens)
    record(out / GENERATED_WITH, {"weights": writer.weights(), "decoding": to_plain(decoding)})
    for items in pending_batches(
        config, dataset, shard, lambda stem: (out / f"{stem}.json").is_file(), "prompts"
    ):
        images_u8, masks = [item_image(item) for item in items], [masks_of(item) for item in items]
        for item, texts in zip(items, writer.write(images_u8, masks, decoding, config.batch), strict=True):
            write_atomic(out / f"{item['image_stems']}.json", json.dumps(texts).encode())
