"""How well the annotations fit their images: mean cosine between image and text in CLIP's space."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import typer
from tqdm.auto import tqdm

from inpainting.data import paintings
from ldm.files import json_bytes, read_json, same_file
from ldm.registry.models import OTHER_FRAMEWORKS, local_or_hub_folder
from ldm.result import overwrite_setting, write_result
from ldm.settings.cli import command, new_app, run_module
from ldm.settings.config import CheckedSettings, setting

log = logging.getLogger(__name__)

CLIP = "openai/clip-vit-base-patch32"

# Name of an image, its file, and what reads its text.
Pairs = Iterator[tuple[str, Path, Callable[[], str]]]


@dataclass(frozen=True, kw_only=True)
class ClipSettings(CheckedSettings):
    """The metric model, and where the result goes; a subclass names the images and their texts."""

    batch_size: int = setting(32, low=1, help="images at once")
    clip: str = setting(CLIP, help="CLIP, folder or hub name")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    out: Path | None = setting(None, help="JSON file for the result with its interval")
    overwrite: bool = overwrite_setting()

    def pairs(self) -> Pairs:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GlobalSettings(ClipSettings):
    annotations_path: Path = setting(help="JSON file of descriptions")
    images_dir: Path = setting(help="folder of images with the folders train, val and test")

    def pairs(self) -> Pairs:
        entries = read_json(paintings.source_file(self.annotations_path))
        for name in entries:
            paths = [same_file(self.images_dir / split / Path(name).name) for split in paintings.SPLITS]
            path = next((path for path in paths if path.is_file()), None)
            if path is not None:
                yield name, path, partial(paintings.painting_description, entries, Path(name).name)


@dataclass(frozen=True, kw_only=True)
class LocalSettings(ClipSettings):
    entities_dir: Path = setting(help="folder of entities")

    def pairs(self) -> Pairs:
        for stem in paintings.entity_folders(self.entities_dir):
            folder = self.entities_dir / stem
            try:
                entities = paintings.read_entities(folder / paintings.ANNOTATIONS)
            except ValueError as error:
                log.warning("left out: %s", error)
                continue
            for entity in entities:
                if entity.caption is None:
                    log.warning("left out: %s/%s has no caption", stem, entity.name)
                else:
                    path = folder / f"{entity.name}.png"
                    yield f"{stem}/{entity.name}", path, partial(str, entity.caption)


def score_pairs(settings: ClipSettings) -> dict[str, Any]:
    """Mean cosine between each image and its text (the description of a painting, the caption of a crop)."""
    from ldm.device import pick_device
    from ldm.images import read_image
    from ldm.metrics.clip import Clip
    from ldm.metrics.numbers import WIDTH

    clip = Clip.load(local_or_hub_folder(settings.clip, OTHER_FRAMEWORKS), pick_device(settings.device))
    scores: list[float] = []
    left_out: dict[str, str] = {}

    def readable() -> Iterator[tuple[np.ndarray, str]]:
        for name, path, read_text in tqdm(settings.pairs(), unit="images"):
            try:
                yield read_image(path).rgb_u8, read_text()
            except ValueError as error:
                log.warning("left out: %s", error)
                left_out[name] = str(error)

    pairs = readable()
    while batch := list(islice(pairs, settings.batch_size)):
        images, texts = zip(*batch, strict=True)
        scores += (clip.images(images) * clip.texts(texts)).sum(axis=1).tolist()
    if not scores:
        raise ValueError("there is no image with a text to score")
    mean = float(np.mean(scores))
    typer.echo(f"Final score: {mean}")
    # A mean over so many pairs is normal; a bootstrap would only cost memory.
    spread = WIDTH * float(np.std(scores, ddof=1)) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
    numbers = {"pairs": len(scores), "mean_cosine": mean, "low": mean - spread, "high": mean + spread}
    report = {**numbers, "backbone": settings.clip, "left_out": left_out}
    if settings.out is not None:
        write_result({settings.out: json_bytes(report)}, settings.overwrite)
    return report


def build_app() -> typer.Typer:
    app = new_app("Measure the annotations with CLIP.")
    app.command("evaluate-global")(command(GlobalSettings, score_pairs))
    app.command("evaluate-local")(command(LocalSettings, score_pairs))
    return app


if __name__ == "__main__":
    run_module(build_app)
