"""Boxes of objects -> the folders `masks` and `entities` of the painting data (published rules).

Legend: h w pixels. A box counts when it covers 1 % to 65 % of the image; an entity without such a box is
dropped, the others are numbered in order.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.data import paintings
from inpainting.data.steps.texts import plain_text
from ldm.files import excerpt, file_sha256, nfc, read_json, write_all_atomic
from ldm.images import encode_png, read_image
from ldm.journal import Journal, run_step, stamp_path
from ldm.settings.config import CheckedSettings, setting

Box = tuple[int, int, int, int]

MIN_AREA, MAX_AREA = 1 / 100, 65 / 100  # fractions of the image (published)
PADDING = 127  # gray level between the parts of a collage (published)


@dataclass(frozen=True)
class ObjectRegion:
    """One object that is large enough, mask_j of its image."""

    name: str
    concept: str
    boxes_xyxy: tuple[Box, ...]
    caption: str | None = None


Reader = Callable[[str], tuple[str, Any]]  # item -> name of its image file, and its annotation


@dataclass(frozen=True, kw_only=True)
class RegionOutput(CheckedSettings):
    """Annotated images -> a folder; how they are annotated is up to the subclass."""

    image_dir: Path = setting(help="folder of images, split or not")
    out_dir: Path = setting(help="folder that gets one folder per image")
    workers: int = setting(0, low=0, help="threads; 0: one per core")

    def source(self) -> tuple[list[str], dict[str, Any], Reader]:
        """The annotated items, what the journal begins with, and what reads an item."""
        raise NotImplementedError

    def regions(self, annotation: Any, size_hw: tuple[int, int]) -> list[ObjectRegion]:
        """The objects of an image of (h, w) that are large enough; ValueError: malformed."""
        raise NotImplementedError


@dataclass(frozen=True)
class RegionSettings(RegionOutput):
    annotations_path: Path = setting(help="JSON file of descriptions with boxes")

    def source(self) -> tuple[list[str], dict[str, Any], Reader]:
        entries = read_json(paintings.source_file(self.annotations_path))
        inputs = {"annotations_sha256": file_sha256(self.annotations_path)}
        return list(entries), inputs, lambda name: (name, entries[name])

    def regions(self, annotation: Any, size_hw: tuple[int, int]) -> list[ObjectRegion]:
        """The phrases with at least one box of the right size, numbered, in lower case."""
        entities = annotation.get("entities") if isinstance(annotation, Mapping) else None
        if not isinstance(entities, Mapping):
            raise ValueError("its annotation has no object `entities`")
        h, w = size_hw
        regions: list[ObjectRegion] = []
        for phrase, value in entities.items():
            boxes = value.get("bboxes") if isinstance(value, Mapping) else None
            if not isinstance(boxes, list):
                raise ValueError(f"entity {phrase!r} has no list `bboxes`")
            for box in boxes:
                numbers = isinstance(box, list) and all(type(value) in (int, float) for value in box)
                if not numbers or len(box) != 4 or not all(0 <= value <= 1 for value in box):
                    raise ValueError(f"entity {phrase!r}: a box is not 4 numbers in [0, 1]: {excerpt(box)}")
            pixels = [pixel_box((x0 * w, y0 * h, x1 * w, y1 * h), size_hw) for x0, y0, x1, y1 in boxes]
            if usable := tuple(box for box in pixels if box is not None):
                regions.append(ObjectRegion(f"mask_{len(regions)}", phrase.lower(), usable))
        return regions


def make_masks(settings: RegionOutput, redo: bool = True) -> Journal:
    """One mask per object: the union of its boxes. Objects cover 1 % to 65 % of their image."""
    return make_regions(paintings.MAKE_MASKS, settings, redo)


def make_entities(settings: RegionOutput, redo: bool = True) -> Journal:
    """One crop or collage per object, and annotations.json; what later steps wrote into it stays."""
    return make_regions(paintings.MAKE_ENTITIES, settings, redo)


def make_regions(step: str, settings: RegionOutput, redo: bool) -> Journal:
    """Write the folder of every image, for the step `MAKE_MASKS` or `MAKE_ENTITIES`."""
    (items, inputs, read), images = settings.source(), paintings.image_map(settings.image_dir)
    stems = Counter(nfc(path.stem) for path in images.values())

    def work(item: str) -> Mapping[str, Any]:
        file_name, annotation = read(item)
        path = images.get(nfc(paintings.checked_name(file_name)))
        if path is None:
            raise ValueError(f"no such image in {settings.image_dir}: {file_name}")
        if (count := stems[nfc(path.stem)]) > 1:
            raise ValueError(f"{count} images are called {path.stem}, which names its folder; rename one")
        image = read_image(path)
        regions = settings.regions(annotation, image.size)
        folder = settings.out_dir / path.stem
        if regions:
            write_all_atomic(region_files(step, folder, image.rgb_u8, regions))
        names = {f"{region.name}.png" for region in regions}
        for other in folder.glob("mask_*.png"):  # of an earlier annotation
            if other.name not in names:
                other.unlink(missing_ok=True)
        if not regions and folder.is_dir():
            (folder / paintings.ANNOTATIONS).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
        return {"regions": len(regions)}

    def is_whole(item: str, record: Mapping[str, Any]) -> bool:
        folder, counts = settings.out_dir / Path(read(item)[0]).stem, {record["regions"]}
        if step == paintings.MAKE_ENTITIES and counts != {0}:
            counts.add(len(paintings.read_intact(folder / paintings.ANNOTATIONS)))
        return counts == {sum(path.stat().st_size > 0 for path in folder.glob("mask_*.png"))}

    stamp = stamp_path(settings.out_dir, step)
    return run_step(stamp, inputs, items, work, redo, settings.workers, is_whole)


def region_files(step: str, folder: Path, rgb_u8: np.ndarray, found: list[ObjectRegion]) -> dict[Path, bytes]:
    """mask_j.png of each object: 255 in the union of its boxes; or its crops in a grid, and annotations.json.

    Entries keep the further fields of the old file where the concept differs by case or punctuation at most.
    """
    files, entries = {}, {}
    old = paintings.read_intact(folder / paintings.ANNOTATIONS) if step == paintings.MAKE_ENTITIES else {}
    for region in found:
        if step == paintings.MAKE_MASKS:
            image_u8 = np.zeros(rgb_u8.shape[:2], np.uint8)
            for x0, y0, x1, y1 in region.boxes_xyxy:
                image_u8[y0:y1, x0:x1] = 255
        else:
            crops = [rgb_u8[y0:y1, x0:x1] for x0, y0, x1, y1 in region.boxes_xyxy]
            columns = math.ceil(math.sqrt(len(crops)))
            cell_h, cell_w = max(crop.shape[0] for crop in crops), max(crop.shape[1] for crop in crops)
            rows = math.ceil(len(crops) / columns)
            image_u8 = np.full((rows * cell_h, columns * cell_w, 3), PADDING, np.uint8)
            for number, crop in enumerate(crops):
                top, left = number // columns * cell_h, number % columns * cell_w
                image_u8[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        files[folder / f"{region.name}.png"] = encode_png(image_u8)
        entry = {"concept": region.concept}
        entry |= {} if region.caption is None else {"caption": region.caption}
        before = old.get(region.name)
        if isinstance(before, dict) and plain_text(str(before.get("concept"))) == plain_text(region.concept):
            entry = {**before, **entry}
        entries[region.name] = entry
    annotations = {folder / paintings.ANNOTATIONS: paintings.encode_object(entries)}
    return files if step == paintings.MAKE_MASKS else files | annotations


def pixel_box(box_xyxy: tuple[float, float, float, float], size_hw: tuple[int, int]) -> Box | None:
    """Whole pixels of a box, cut to the image; None for a box of the wrong size or without pixels.

    The limits apply to the area before it is rounded to pixels, as published.
    """
    h, w = size_hw
    x0, y0, x1, y1 = box_xyxy
    box = max(0, int(x0)), max(0, int(y0)), min(w, int(x1)), min(h, int(y1))
    right_size = MIN_AREA * (h * w) <= (x1 - x0) * (y1 - y0) <= MAX_AREA * (h * w)
    return box if right_size and box[2] > box[0] and box[3] > box[1] else None
