"""Densely Captioned Images in the form of the painting data: whole objects with their label and caption.

An annotation file is {"image": FILE, "mask_data": {ID: {"label", "caption", "parent", "bounds"}}}; the
bounds are {"topLeft": {x, y}, "bottomRight": {x, y}} in pixels. Objects with a label and no parent whose
box covers 1 % to 65 % of the image become mask_ID; the box is the mask, as published.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inpainting.data.paintings import change_annotations, checked_name
from inpainting.data.steps import regions
from inpainting.data.steps.split import TransferSettings, one_split_each, split_images
from inpainting.data.steps.texts import EntitySettings, plain_text
from ldm.files import file_sha256, read_json, visible_files
from ldm.settings.cli import App, command, new_app, run_module
from ldm.settings.config import setting

LOWER_STEP = "to-lowercase"
SPLIT_NAMES = {"valid": "val"}


@dataclass(frozen=True)
class DciSettings(regions.RegionOutput):
    annotations_dir: Path = setting(help="folder of annotation files")

    def source(self) -> tuple[list[str], dict[str, Any], regions.Reader]:
        files = annotation_files(self.annotations_dir)

        def read(name: str) -> tuple[str, Any]:
            document = read_json(files[name])
            return str(document.get("image")), document

        return list(files), {"annotations": len(files)}, read

    def regions(self, annotation: Mapping[str, Any], size_hw: tuple[int, int]) -> list[regions.ObjectRegion]:
        """The labelled objects of an image without a parent, of the right size; ValueError: malformed."""
        entries = annotation.get("mask_data")
        if not isinstance(entries, Mapping):
            raise ValueError("has no object `mask_data`")
        found = []
        for key, entry in entries.items():
            try:
                if not entry["label"] or entry["parent"] != -1:
                    continue
                low, high = entry["bounds"]["topLeft"], entry["bounds"]["bottomRight"]
                x0, y0, x1, y1 = (float(corner[axis]) for corner in (low, high) for axis in "xy")
                box = regions.pixel_box((x0, y0, x1, y1), size_hw)
                label, caption = str(entry["label"]), str(entry["caption"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"object {key!r} is malformed: {error!r}") from None
            if box is not None:
                if not str(key).isalnum():
                    raise ValueError(f"object {key!r}: its id is no part of a file name")
                found.append(regions.ObjectRegion(f"mask_{key}", label, (box,), caption))
        return found


@dataclass(frozen=True)
class DciSplitSettings(TransferSettings):
    annotations_dir: Path = setting(help="folder of annotation files")
    split_path: Path = setting(help="JSON file: split -> annotation files")

    def plan(self, names: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
        files, pairs = annotation_files(self.annotations_dir), list[tuple[str, str]]()
        for split, listed in read_json(self.split_path).items():
            for name in listed:
                if name not in files:
                    raise ValueError(f"{self.split_path}: {split} names {name!r}, no annotation file")
                image = checked_name(str(read_json(files[name]).get("image")))
                pairs.append((image, SPLIT_NAMES.get(split, split)))
        return one_split_each(self.split_path, pairs), {"table": file_sha256(self.split_path)}


def annotation_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} of annotation files")
    files = {path.name: path for path in visible_files(folder, "*.json")}
    if not files:
        raise ValueError(f"{folder} holds no annotation files (*.json)")
    return files


def to_lowercase(settings: EntitySettings) -> None:
    """Every text of annotations.json in lower case, on one line, without special characters."""

    def change(stem: str, document: dict[str, Any]) -> None:
        for entry in document.values():
            texts = {key: value for key, value in entry.items() if isinstance(value, str)}
            entry |= {key: plain_text(text.strip()) for key, text in texts.items()}

    change_annotations(settings.entities_dir, LOWER_STEP, {}, change)


def build_app() -> App:
    app = new_app("Densely Captioned Images in the form of the painting data.")
    app.command("make-masks-dataset")(command(DciSettings, regions.make_masks))
    app.command("make-entities-dataset")(command(DciSettings, regions.make_entities))
    app.command("to-lowercase")(command(EntitySettings, to_lowercase))
    app.command("train-val-test-split")(command(DciSplitSettings, split_images))
    return app


if __name__ == "__main__":
    run_module(build_app)
