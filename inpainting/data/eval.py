"""How well the annotations fit their images: mean cosine between image and text in CLIP's space.

    python -m inpainting.data.eval evaluate-global --annotations-path data/annotations.json \
        --images-dir data/mm_inp_dataset/images
    python -m inpainting.data.eval evaluate-local --entities-dir data/mm_inp_dataset/entities
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import typer

from inpainting.data.paintings import (
    ANNOTATIONS,
    SPLITS,
    entity_folders,
    painting_description,
    read_entities,
    source_file,
)
from ldm.files import read_json, same_file
from ldm.settings.cli import command, new_app, run_module
from ldm.settings.config import CheckedSettings, setting
from ldm.settings.later import later

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

    def pairs(self) -> Pairs:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GlobalSettings(ClipSettings):
    """Images of the three splits and their descriptions."""

    annotations_path: Path = setting(help="JSON file of descriptions")
    images_dir: Path = setting(help="folder of images with the folders train, val and test")

    def pairs(self) -> Pairs:
        entries = read_json(source_file(self.annotations_path))
        for name in entries:
            paths = [same_file(self.images_dir / split / Path(name).name) for split in SPLITS]
            path = next((path for path in paths if path.is_file()), None)
            if path is not None:
                yield name, path, partial(painting_description, entries, Path(name).name)


@dataclass(frozen=True, kw_only=True)
class LocalSettings(ClipSettings):
    """Object crops and their captions."""

    entities_dir: Path = setting(help="folder of entities")

    def pairs(self) -> Pairs:
        for stem in entity_folders(self.entities_dir):
            folder = self.entities_dir / stem
            try:
                entities = read_entities(folder / ANNOTATIONS)
            except ValueError as error:
                log.warning("left out: %s", error)
                continue
            for entity in entities:
                if entity.caption is None:
                    log.warning("left out: %s/%s has no caption", stem, entity.name)
                else:
                    path = folder / f"{entity.name}.png"
                    yield f"{stem}/{entity.name}", path, partial(str, entity.caption)


def build_app() -> typer.Typer:
    score_pairs = later("inpainting.data.clip_scores:score_pairs")
    app = new_app("Measure the annotations with CLIP.")
    app.command("evaluate-global")(command(GlobalSettings, score_pairs))
    app.command("evaluate-local")(command(LocalSettings, score_pairs))
    return app


if __name__ == "__main__":
    run_module(build_app)
