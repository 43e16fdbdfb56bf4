"""Densely Captioned Images in the form of the painting data: whole objects with their label and caption.

An annotation file is {"image": FILE, "mask_data": {ID: {"label", "caption", "parent", "bounds"}}}; the
bounds are {"topLeft": {x, y}, "bottomRight": {x, y}} in pixels. Objects with a label and no parent whose
box covers 1 % to 65 % of the image become mask_ID; the box is the mask, as published. Noun roots are
added afterwards by `ops extract-noun-chunk-roots`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from inpainting.data.boxes import Box, region_crop, region_mask, share_allowed
from inpainting.data.paintings import (
    ANNOTATIONS,
    MAKE_ENTITIES,
    MAKE_MASKS,
    UNANNOTATED,
    checked_name,
    encode_object,
    entity_folders,
    image_map,
    read_object,
    write_object,
)
from inpainting.data.steps.captions import plain_text
from inpainting.data.steps.regions import merged, remove_others
from inpainting.data.steps.roots import sound_annotations
from inpainting.data.steps.split import distribute
from ldm.files import file_sha256, write_all_atomic
from ldm.images import encode_png, read_image
from ldm.journal import Journal, run_items, stamp_path
from ldm.settings.cli import command, new_app, run_module
from ldm.settings.config import check_settings, setting

LOWER_STEP = "to-lowercase"
SPLIT_NAMES = {"valid": "val"}


@dataclass(frozen=True)
class DciSettings:
    """Annotations and images -> a folder."""

    annotations_dir: Path = setting(help="folder of annotation files")
    image_dir: Path = setting(help="folder of images, split or not")
    out_dir: Path = setting(help="folder that gets one folder per image")
    workers: int = setting(0, low=0, help="threads; 0: one per core")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class LowerSettings:
    """Entities whose texts become plain."""

    entities_dir: Path = setting(help="folder of entities")


@dataclass(frozen=True)
class DciSplitSettings:
    """Images -> images/{train,val,test,unannotated}. Copies unless told otherwise."""

    annotations_dir: Path = setting(help="folder of annotation files")
    image_dir: Path = setting(help="folder of images; gets a folder per split")
    split_path: Path = setting(help="JSON file: split -> annotation files")
    move: bool = setting(False, help="move the images, as published")
    symlink: bool = setting(False, help="link to the images")
    dry_run: bool = setting(False, help="only say how many images would go where")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.move and self.symlink:
            raise ValueError("give one of --move and --symlink")


@dataclass(frozen=True)
class Labelled:
    """One whole object of an image."""

    name: str  # mask_ID
    label: str
    caption: str
    box_xyxy: Box


def objects_of(document: Mapping[str, Any], size_hw: tuple[int, int]) -> list[Labelled]:
    """The labelled objects of an image without a parent, of the right size; ValueError: malformed."""
    entries = document.get("mask_data")
    if not isinstance(entries, Mapping):
        raise ValueError("has no object `mask_data`")
    found = []
    for key, entry in entries.items():
        try:
            if not entry["label"] or entry["parent"] != -1:
                continue
            low, high = entry["bounds"]["topLeft"], entry["bounds"]["bottomRight"]
            box = (float(low["x"]), float(low["y"]), float(high["x"]), float(high["y"]))
            label, caption = str(entry["label"]), str(entry["caption"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"object {key!r} is malformed: {error!r}") from None
        pixels = inside(box, size_hw)
        large = share_allowed((box[2] - box[0]) * (box[3] - box[1]), size_hw)
        if large and pixels[2] > pixels[0] and pixels[3] > pixels[1]:
            if not str(key).isalnum():
                raise ValueError(f"object {key!r}: its id is no part of a file name")
            found.append(Labelled(f"mask_{key}", label, caption, pixels))
    return found


def inside(box_xyxy: tuple[float, float, float, float], size_hw: tuple[int, int]) -> Box:
    """Whole pixels of a box, cut to the image."""
    h, w = size_hw
    x0, y0, x1, y1 = box_xyxy
    return max(0, int(x0)), max(0, int(y0)), min(w, int(x1)), min(h, int(y1))


def write_masks(folder: Path, rgb_u8: np.ndarray, objects: list[Labelled]) -> None:
    """mask_ID.png, the box of each object."""
    size = (rgb_u8.shape[0], rgb_u8.shape[1])
    masks = {one.name: region_mask([one.box_xyxy], size) for one in objects}
    write_all_atomic(
        {folder / f"{name}.png": encode_png(mask.astype(np.uint8) * 255) for name, mask in masks.items()}
    )
    remove_others(folder, masks)


def write_entities(folder: Path, rgb_u8: np.ndarray, objects: list[Labelled]) -> None:
    """mask_ID.png, the crop of each object, and annotations.json."""
    fresh = {one.name: {"concept": one.label, "caption": one.caption} for one in objects}
    files = {folder / f"{one.name}.png": encode_png(region_crop(rgb_u8, [one.box_xyxy])) for one in objects}
    files[folder / ANNOTATIONS] = encode_object(merged(folder / ANNOTATIONS, fresh))
    write_all_atomic(files)
    remove_others(folder, fresh)


def make_masks_dataset(settings: DciSettings) -> None:
    """One mask per labelled top-level object: its box."""
    _make(settings, MAKE_MASKS, write_masks)


def make_entities_dataset(settings: DciSettings) -> None:
    """One crop per labelled top-level object, and annotations.json; what other steps added stays."""
    _make(settings, MAKE_ENTITIES, write_entities)


def _make(
    settings: DciSettings, step: str, write: Callable[[Path, np.ndarray, list[Labelled]], None]
) -> None:
    files = annotation_files(settings.annotations_dir)
    images = image_map(settings.image_dir)

    def work(name: str) -> Mapping[str, Any]:
        document = read_object(files[name])
        path = images.get(checked_name(str(document.get("image"))))
        if path is None:
            raise ValueError(f"its image {document.get('image')!r} is not in {settings.image_dir}")
        image = read_image(path)
        objects = objects_of(document, image.size)
        if objects:
            write(settings.out_dir / path.stem, image.rgb_u8, objects)
        return {"regions": len(objects)}

    journal = Journal(stamp_path(settings.out_dir, step), {"annotations": len(files)}, redo=True)
    run_items(journal, list(files), work, settings.workers)


def annotation_files(folder: Path) -> dict[str, Path]:
    """The JSON files in a folder, sorted by name."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} of annotation files")
    found = {path.name: path for path in sorted(folder.glob("*.json")) if not path.name.startswith(".")}
    if not found:
        raise ValueError(f"{folder} holds no annotation files (*.json)")
    return found


def to_lowercase(settings: LowerSettings) -> None:
    """Every text of annotations.json in lower case, on one line, without special characters."""
    entities_dir = settings.entities_dir

    def work(stem: str) -> Mapping[str, Any]:
        path = entities_dir / stem / ANNOTATIONS
        document = sound_annotations(path)
        write_object(
            path,
            {name: {key: lowered(text) for key, text in entry.items()} for name, entry in document.items()},
        )
        return {}

    journal = Journal(stamp_path(entities_dir, LOWER_STEP), {}, redo=True)
    run_items(journal, entity_folders(entities_dir), work, workers=1)


def lowered(value: Any) -> Any:
    """A text without line breaks and outer spaces, lower case, letters, digits and `.,!` only."""
    return plain_text(value.replace("\n", " ").strip()) if isinstance(value, str) else value


def train_val_test_split(settings: DciSplitSettings) -> None:
    """Put the images into the folders of their split; those that the file does not name are unannotated."""
    files = annotation_files(settings.annotations_dir)
    images = image_map(settings.image_dir)
    plan = dict.fromkeys(sorted(images), UNANNOTATED)
    for split, names in read_object(settings.split_path).items():
        for name in names:
            if name not in files:
                raise ValueError(f"{settings.split_path}: {split} names {name!r}, no annotation file")
            image = read_object(files[name]).get("image")
            plan[checked_name(str(image))] = SPLIT_NAMES.get(split, split)
    mode = "move" if settings.move else "symlink" if settings.symlink else "copy"
    inputs = {"table": file_sha256(settings.split_path)}
    distribute(plan, images, settings.image_dir, mode, inputs, dry_run=settings.dry_run)


def build_app() -> typer.Typer:
    app = new_app("Densely Captioned Images in the form of the painting data.")
    app.command("make-masks-dataset")(command(DciSettings, make_masks_dataset))
    app.command("make-entities-dataset")(command(DciSettings, make_entities_dataset))
    app.command("to-lowercase")(command(LowerSettings, to_lowercase))
    app.command("train-val-test-split")(command(DciSplitSettings, train_val_test_split))
    return app


if __name__ == "__main__":
    run_module(build_app)
