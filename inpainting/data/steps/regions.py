"""Boxes of grounded captions -> the folders `masks` and `entities` of the painting data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.data.boxes import ObjectRegion, grounded_regions, read_grounded, region_crop, region_mask
from inpainting.data.paintings import (
    ANNOTATIONS,
    MAKE_ENTITIES,
    MAKE_MASKS,
    checked_name,
    encode_object,
    image_map,
    read_intact,
    read_source,
)
from inpainting.data.steps.captions import plain_text
from ldm.files import file_sha256, write_all_atomic
from ldm.images import encode_png, read_image
from ldm.journal import Journal, run_items, stamp_path
from ldm.settings.config import CheckedSettings, setting

RegionFinder = Callable[[tuple[int, int]], list[ObjectRegion]]  # (h, w) of the image -> its regions


@dataclass(frozen=True)
class RegionSettings(CheckedSettings):
    """Annotations and images -> a folder."""

    annotations_path: Path = setting(help="JSON file of descriptions with boxes")
    image_dir: Path = setting(help="folder of images, split or not")
    out_dir: Path = setting(help="folder that gets one folder per image")
    workers: int = setting(0, low=0, help="threads; 0: one per core")


@dataclass(frozen=True)
class RegionSource:
    """Annotated items. read: item -> name of its image file, and what finds the regions in it."""

    items: Sequence[str]
    inputs: Mapping[str, Any]  # the journal begins with them
    read: Callable[[str], tuple[str, RegionFinder]]


def make_masks(settings: RegionSettings, redo: bool = True) -> Journal:
    """One mask per entity: the union of its boxes that cover 1 % to 65 % of the image."""
    source = grounded_source(settings.annotations_path)
    return make_regions(MAKE_MASKS, source, settings.image_dir, settings.out_dir, settings.workers, redo)


def make_entities(settings: RegionSettings, redo: bool = True) -> Journal:
    """One crop or collage per entity, and annotations.json; what later steps wrote into it stays."""
    source = grounded_source(settings.annotations_path)
    return make_regions(MAKE_ENTITIES, source, settings.image_dir, settings.out_dir, settings.workers, redo)


def grounded_source(annotations: Path) -> RegionSource:
    """The images of annotations.json with the boxes of their phrases."""
    entries = read_source(annotations)

    def read(name: str) -> tuple[str, RegionFinder]:
        entities = read_grounded(entries[name])
        return name, lambda size_hw: grounded_regions(entities, size_hw)

    return RegionSource(list(entries), {"annotations_sha256": file_sha256(annotations)}, read)


def make_regions(
    step: str, source: RegionSource, image_dir: Path, out_dir: Path, workers: int, redo: bool = True
) -> Journal:
    """Write the folder of every image, for the step `MAKE_MASKS` or `MAKE_ENTITIES`."""
    images = image_map(image_dir)
    files_of = mask_files if step == MAKE_MASKS else entity_files

    def work(item: str) -> Mapping[str, Any]:
        file_name, find_regions = source.read(item)
        path = images.get(checked_name(file_name))
        if path is None:
            raise ValueError(f"no such image in {image_dir}: {file_name}")
        image = read_image(path)
        regions = find_regions(image.size)
        folder = out_dir / path.stem
        if regions:
            write_all_atomic(files_of(folder, image.rgb_u8, regions))
            remove_others(folder, [region.name for region in regions])
        elif folder.is_dir():  # of an earlier annotation
            remove_others(folder, ())
            (folder / ANNOTATIONS).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
        return {"regions": len(regions)}

    journal = Journal(stamp_path(out_dir, step), source.inputs, redo=redo)
    run_items(journal, source.items, work, workers)
    return journal


def mask_files(folder: Path, rgb_u8: np.ndarray, regions: Sequence[ObjectRegion]) -> dict[Path, bytes]:
    """mask_j.png of every region."""
    size = (rgb_u8.shape[0], rgb_u8.shape[1])
    masks = {region.name: region_mask(region.boxes_xyxy, size) for region in regions}
    return {folder / f"{name}.png": encode_png(mask.astype(np.uint8) * 255) for name, mask in masks.items()}


def entity_files(folder: Path, rgb_u8: np.ndarray, regions: Sequence[ObjectRegion]) -> dict[Path, bytes]:
    """mask_j.png of every object, and annotations.json.

    Entries keep the further fields of the old file where the concept is the same but for case or punctuation.
    """
    files, old, entries = {}, read_intact(folder / ANNOTATIONS), {}
    for region in regions:
        files[folder / f"{region.name}.png"] = encode_png(region_crop(rgb_u8, region.boxes_xyxy))
        new = {"concept": region.concept}
        new |= {} if region.caption is None else {"caption": region.caption}
        before = old.get(region.name)
        if isinstance(before, dict) and plain_text(str(before.get("concept"))) == plain_text(region.concept):
            new = {**before, **new}
        entries[region.name] = new
    return {**files, folder / ANNOTATIONS: encode_object(entries)}


def remove_others(folder: Path, names: Iterable[str]) -> None:
    """Delete the region images that the annotation does not have (any more)."""
    keep = {f"{name}.png" for name in names}
    for path in folder.glob("mask_*.png"):
        if path.name not in keep:
            path.unlink(missing_ok=True)
