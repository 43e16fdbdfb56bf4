"""Fill the masked regions of every test image: all regions in one pass, or one after the other.

Each image's noise follows from the seed and its name, so shards, batches and interruptions change nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from inpainting.models.text_to_image.card import PaintOptions
from inpainting.models.text_to_image.evaluation.settings import (
    GENERATED_WITH,
    PaintingsConfig,
    in_batches,
    open_paintings,
    options_of,
    record,
)
from inpainting.models.text_to_image.load import Inpainter, load_inpainter
from inpainting.models.text_to_image.pipeline import Job, options_for, paint_all
from inpainting.models.text_to_image.recipe import weights_of
from ldm.device import pick_device, pick_dtype
from ldm.images import from_pm1, write_png
from ldm.seeds import seed_of
from ldm.settings.config import to_plain

log = logging.getLogger(__name__)

Item = dict[str, Any]
Painter = Callable[[Sequence[Item]], list[np.ndarray]]


def open_model(config: PaintingsConfig) -> Inpainter:
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    return load_inpainter(config.pretrained, config.lora, device=device, dtype=dtype)


def generate(config: PaintingsConfig, shard: tuple[int, int] = (0, 1)) -> None:
    """OUT/<name>.png for each image of this shard that is not there; the same call again continues."""
    model, options = open_model(config), options_of(config)

    def paint(items: Sequence[Item]) -> list[np.ndarray]:
        jobs = [
            Job(image(item), regions(item, config.fixed_prompt), [seed_for(item, config.seed)])
            for item in items
        ]
        return [one.image_u8 for one in paint_all(jobs, model, options, progress=False)]

    fill_all(config, model, options, "at once", paint, shard)


def generate_repeated(config: PaintingsConfig, shard: tuple[int, int] = (0, 1)) -> None:
    """The same with one region after the other, each in the result of those before it (baseline)."""
    model, options = open_model(config), options_of(config)

    def paint(items: Sequence[Item]) -> list[np.ndarray]:
        images = [image(item) for item in items]
        for turn in range(max(len(item["texts"]) for item in items)):
            some = [k for k, item in enumerate(items) if turn < len(item["texts"])]
            jobs = [turn_job(images[k], items[k], turn, config.seed) for k in some]
            for k, one in zip(some, paint_all(jobs, model, options, progress=False), strict=True):
                images[k] = one.image_u8
        return images

    fill_all(config, model, options, "one after the other", paint, shard)


def turn_job(image_u8: np.ndarray, item: Item, turn: int, seed: int) -> Job:
    """Region `turn` of an image alone."""
    region = regions(item, None)[turn]
    return Job(image_u8, [region], [seed_for(item, seed, turn)])


def seed_for(item: Item, *parts: int) -> int:
    """Of an image's noise: follows from its name and `parts`."""
    return seed_of(item["image_stems"], *parts)


def fill_all(
    config: PaintingsConfig,
    model: Inpainter,
    options: PaintOptions,
    order: str,
    paint: Painter,
    shard: tuple[int, int],
) -> None:
    """Paint what is missing of this shard's images."""
    out, (index, count) = config.output_dir, shard
    dataset = open_paintings(config, model.tokenizer, out, config.texts_dir)
    facts = {
        "seed": config.seed,
        "regions": order,
        "weights": weights_of(model),
        "paint": to_plain(options_for(model, options)),
        "fixed_prompt": config.fixed_prompt,
        "texts_dir": to_plain(config.texts_dir),
    }
    record(out / GENERATED_WITH, facts)
    share = list(range(len(dataset)))[index::count]
    todo = [k for k in share if not image_path(out, dataset.stems[k]).is_file()]
    log.info("%d images of %d are there", len(share) - len(todo), len(share))
    with tqdm(total=len(share), initial=len(share) - len(todo), desc="images", disable=None) as bar:
        for items in in_batches(dataset, todo, config.batch, config.workers):
            for item, image_u8 in zip(items, paint(items), strict=True):
                write_png(image_path(out, item["image_stems"]), image_u8)
            bar.update(len(items))


def image_path(out: Path, stem: str) -> Path:
    return out / f"{stem}.png"


def image(item: Item) -> np.ndarray:
    """RGB (s, s, 3) uint8 of a dataset's item."""
    return from_pm1(item["pixel_values"])


def regions(item: Item, fixed_prompt: str | None) -> list[tuple[np.ndarray, str]]:
    """(mask (s, s) bool, prompt) of every region; a fixed prompt is said once, for all regions together."""
    masks = [mask[0].numpy() > 0 for mask in item["all_masks"]]
    if fixed_prompt is not None:
        return [(np.any(masks, axis=0), fixed_prompt)]
    return list(zip(masks, item["texts"], strict=True))
