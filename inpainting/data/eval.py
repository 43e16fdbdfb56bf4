"""How well the annotations fit their images: mean cosine between image and text in CLIP's space.

    python -m inpainting.data.eval evaluate-global --annotations-path data/annotations.json \
        --images-dir data/mm_inp_dataset/images
    python -m inpainting.data.eval evaluate-local --entities-dir data/mm_inp_dataset/entities
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import typer
from tqdm.auto import tqdm

from inpainting.data.paintings import (
    ANNOTATIONS,
    SPLITS,
    entity_folders,
    painting_description,
    read_entities,
    read_source,
)
from ldm.device import pick_device
from ldm.files import write_atomic
from ldm.images import read_image
from ldm.metrics.clip import Clip
from ldm.metrics.intervals import WIDTH
from ldm.registry.models import OTHER_FRAMEWORKS, model_folder
from ldm.settings.cli import command, new_app, run_module
from ldm.settings.config import CheckedSettings, setting

log = logging.getLogger(__name__)

CLIP = "openai/clip-vit-base-patch32"

Pairs = Iterator[tuple[str, Callable[[], tuple[np.ndarray, str]]]]


@dataclass(frozen=True, kw_only=True)
class ClipSettings(CheckedSettings):
    """What measures, and where the result goes."""

    batch_size: int = setting(32, low=1, help="images at once")
    clip: str = setting(CLIP, help="CLIP, folder or hub name")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    out: Path | None = setting(None, help="JSON file for the result with its interval")


@dataclass(frozen=True, kw_only=True)
class GlobalSettings(ClipSettings):
    """Images and their descriptions."""

    annotations_path: Path = setting(help="JSON file of descriptions")
    images_dir: Path = setting(help="folder of images with the folders train, val and test")


@dataclass(frozen=True, kw_only=True)
class LocalSettings(ClipSettings):
    """Crops and their captions."""

    entities_dir: Path = setting(help="folder of entities")


def evaluate_global(settings: GlobalSettings) -> None:
    """Mean cosine between each image of the three splits and its description."""
    measure(settings, global_pairs(settings.annotations_path, settings.images_dir))


def evaluate_local(settings: LocalSettings) -> None:
    """Mean cosine between each object crop and its caption."""
    measure(settings, local_pairs(settings.entities_dir))


def global_pairs(annotations: Path, images_dir: Path) -> Pairs:
    """(name, reader of image and text) of every image that is in a split."""
    entries = read_source(annotations)
    for name in entries:
        places = [images_dir / split / Path(name).name for split in SPLITS]
        path = next((one for one in places if one.is_file()), None)
        if path is not None:
            yield name, partial(global_pair, path, entries)


def global_pair(path: Path, entries: Mapping[str, Any]) -> tuple[np.ndarray, str]:
    """An image and its description."""
    return read_image(path).rgb_u8, painting_description(entries, path.name)


def local_pairs(entities_dir: Path) -> Pairs:
    """(name, reader of crop and caption) of every region."""
    for stem in entity_folders(entities_dir):
        try:
            entities = read_entities(entities_dir / stem / ANNOTATIONS)
        except ValueError as error:
            log.warning("left out: %s", error)
            continue
        for one in entities:
            path, caption = entities_dir / stem / f"{one.name}.png", one.caption
            if caption is None:
                log.warning("left out: %s/%s has no caption", stem, one.name)
            else:
                yield f"{stem}/{one.name}", partial(local_pair, path, caption)


def local_pair(path: Path, caption: str) -> tuple[np.ndarray, str]:
    """A crop and its caption."""
    return read_image(path).rgb_u8, caption


def measure(settings: ClipSettings, pairs: Pairs) -> None:
    """Score all pairs, print the mean as published, and write it with its 95 % interval."""
    folder = model_folder(settings.clip, OTHER_FRAMEWORKS)
    clip = Clip.load(folder, pick_device(settings.device))
    scores: list[float] = []
    left_out: dict[str, str] = {}
    batch: list[tuple[np.ndarray, str]] = []
    for name, read in tqdm(pairs, unit="images"):
        try:
            batch.append(read())
        except ValueError as error:
            log.warning("left out: %s", error)
            left_out[name] = str(error)
        if len(batch) == settings.batch_size:
            scores += cosines(clip, batch)
            batch = []
    scores += cosines(clip, batch)
    if not scores:
        raise ValueError("there is no image with a text to score")
    mean = float(np.mean(scores))
    typer.echo(f"Final score: {mean}")
    if settings.out is not None:
        # A mean over so many pairs is normal; a bootstrap would only cost memory.
        spread = WIDTH * float(np.std(scores, ddof=1)) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
        numbers = {"pairs": len(scores), "mean_cosine": mean, "low": mean - spread, "high": mean + spread}
        result = {**numbers, "backbone": settings.clip, "left_out": left_out}
        write_atomic(settings.out, json.dumps(result, indent=1).encode() + b"\n")


def cosines(clip: Clip, batch: list[tuple[np.ndarray, str]]) -> list[float]:
    """Cosine of each image (h, w, 3) uint8 with its own text."""
    if not batch:
        return []
    images, texts = clip.images([image for image, _ in batch]), clip.texts([text for _, text in batch])
    return [float(value) for value in (images * texts).sum(axis=1)]


def build_app() -> typer.Typer:
    app = new_app("Judge the annotations with CLIP.")
    app.command("evaluate-global")(command(GlobalSettings, evaluate_global))
    app.command("evaluate-local")(command(LocalSettings, evaluate_local))
    return app


if __name__ == "__main__":
    run_module(build_app)
