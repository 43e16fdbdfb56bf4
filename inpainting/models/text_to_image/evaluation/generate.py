"""Fill the masked regions of every test image, and write prompts for them.

Each image's noise follows from the seed and its name, so shards, batches and interruptions change nothing.
For the prompts the regions are painted in solid colours, large ones first; the prompt writer names what could
be behind each colour.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.models.image_to_text.writer import Decoding, PromptWriter
from inpainting.models.text_to_image.evaluation.settings import (
    GENERATED_WITH,
    PaintingsConfig,
    item_masks,
    open_paintings,
    pending_batches,
    record,
)
from inpainting.models.text_to_image.load import load_inpainter, load_tokenizer, weights_of
from inpainting.models.text_to_image.pipeline import PaintJob, paint_all, resolve_options
from ldm.denoise import Monitor
from ldm.device import pick_device, pick_dtype
from ldm.files import write_atomic
from ldm.images import from_pm1, write_png
from ldm.seeds import seed_of
from ldm.settings.config import to_plain

Item = dict[str, Any]


def fill_paintings(
    config: PaintingsConfig, shard: tuple[int, int] = (0, 1), one_by_one: bool = False
) -> None:
    """OUT/<name>.png for each image of this shard that is not there; the same call again continues.

    one_by_one: one region after the other, each in the result of those before it (baseline)
    """
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    model = load_inpainter(config.pretrained, config.lora, device=device, dtype=dtype)
    # At the size of the images, unless the settings name another.
    size = config.paint.resolution or config.data.resolution
    options = resolve_options(model, replace(config.paint, resolution=size))
    out = config.output_dir
    dataset = open_paintings(config, model.tokenizer, out, config.texts_dir)
    facts = {
        "seed": config.seed,
        "regions": "one after the other" if one_by_one else "at once",
        "weights": weights_of(model),
        "paint": to_plain(options),
        "fixed_prompt": config.fixed_prompt,
        "texts_dir": to_plain(config.texts_dir),
    }
    record(out / GENERATED_WITH, facts)
    for items in pending_batches(
        config, dataset, shard, lambda stem: image_path(out, stem).is_file(), "images"
    ):
        jobs = [jobs_of(item, config, one_by_one) for item in items]
        images_u8 = [turns[0].image_u8 for turns in jobs]
        for turn in range(max(map(len, jobs))):  # the second job of an image paints into the first's result
            numbers = [number for number, turns in enumerate(jobs) if turn < len(turns)]
            batch = [replace(jobs[number][turn], image_u8=images_u8[number]) for number in numbers]
            painted = paint_all(batch, model, options, Monitor(progress=False))
            for number, result in zip(numbers, painted, strict=True):
                images_u8[number] = result.image_u8
        for item, image_u8 in zip(items, images_u8, strict=True):
            write_png(image_path(out, item["image_stems"]), image_u8)


def jobs_of(item: Item, config: PaintingsConfig, one_by_one: bool) -> list[PaintJob]:
    """What to paint into one image, in turn. A fixed prompt counts once, for all regions together."""
    image_u8, stem, masks = item_image(item), item["image_stems"], item_masks(item)
    pairs = list(zip(masks, item["texts"], strict=True))
    if one_by_one:
        return [
            PaintJob(image_u8, [pair], [seed_of(stem, config.seed, turn)]) for turn, pair in enumerate(pairs)
        ]
    if config.fixed_prompt is not None:
        pairs = [(np.any(masks, axis=0), config.fixed_prompt)]
    return [PaintJob(image_u8, pairs, [seed_of(stem, config.seed)])]


def image_path(out: Path, stem: str) -> Path:
    return out / f"{stem}.png"


def item_image(item: Item) -> np.ndarray:
    """RGB (s, s, 3) uint8 of a dataset's item."""
    return from_pm1(item["pixel_values"])


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
        images_u8, masks = [item_image(item) for item in items], [item_masks(item) for item in items]
        for item, texts in zip(items, writer.write(images_u8, masks, decoding, config.batch), strict=True):
            write_atomic(out / f"{item['image_stems']}.json", json.dumps(texts).encode())
