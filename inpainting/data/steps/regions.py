"""Grounded captions -> the folders `masks` and `entities` of the painting data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.data.boxes import Region, read_grounded, region_crop, region_mask, regions_of
from inpainting.data.paintings import (
    ANNOTATIONS,
    MAKE_ENTITIES,
    MAKE_MASKS,
    checked_name,
    encode_object,
    image_map,
    read_object,
    read_source,
    set_aside,
)
from inpainting.data.steps.captions import plain_text
from ldm.files import file_sha256, write_all_atomic
from ldm.images import encode_png, read_image
from ldm.journal import Journal, run_items, stamp_path

Writer = Callable[[Path, np.ndarray, list[Region]], None]


def make_masks(annotations: Path, image_dir: Path, out_dir: Path, workers: int, redo: bool = True) -> Journal:
    """One mask_j.png per entity with a box of the right size."""
    return _make(MAKE_MASKS, write_masks, annotations, image_dir, out_dir, workers, redo)


def make_entities(
    annotations: Path, image_dir: Path, out_dir: Path, workers: int, redo: bool = True
) -> Journal:
    """One crop or collage per entity, and annotations.json, whose later fields are kept."""
    return _make(MAKE_ENTITIES, write_entities, annotations, image_dir, out_dir, workers, redo)


def _make(
    step: str, write: Writer, annotations: Path, image_dir: Path, out_dir: Path, workers: int, redo: bool
) -> Journal:
    entries = read_source(annotations)
    images = image_map(image_dir)

    def work(name: str) -> Mapping[str, Any]:
        path = images.get(checked_name(name))
        grounded = read_grounded(entries[name])
        if path is None:
            raise ValueError(f"no such image in {image_dir}")
        image = read_image(path)
        regions = regions_of(grounded, image.size)
        folder = out_dir / Path(name).stem
        if regions:
            write(folder, image.rgb_u8, regions)
        elif folder.is_dir():  # of an earlier annotation
            clear(folder)
        return {"regions": len(regions)}

    inputs = {"annotations_sha256": file_sha256(annotations)}
    journal = Journal(stamp_path(out_dir, step), inputs, redo=redo)
    run_items(journal, list(entries), work, workers)
    return journal


def write_masks(folder: Path, rgb_u8: np.ndarray, regions: list[Region]) -> None:
    """mask_j.png of every region; masks of an earlier annotation go."""
    size = (rgb_u8.shape[0], rgb_u8.shape[1])
    masks = {one.name: region_mask(one.boxes_xyxy, size) for one in regions}
    write_all_atomic({folder / f"{name}.png": _png(mask) for name, mask in masks.items()})
    remove_others(folder, masks)


def write_entities(folder: Path, rgb_u8: np.ndarray, regions: list[Region]) -> None:
    """mask_j.png of every object, and annotations.json."""
    crops = {one.name: encode_png(region_crop(rgb_u8, one.boxes_xyxy)) for one in regions}
    fresh = {one.name: {"concept": one.concept} for one in regions}
    files = {folder / f"{name}.png": data for name, data in crops.items()}
    files[folder / ANNOTATIONS] = encode_object(merged(folder / ANNOTATIONS, fresh))
    write_all_atomic(files)
    remove_others(folder, crops)


def merged(path: Path, fresh: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The new entries with the further fields of the old file, where the concept is still the same.

    Concepts that differ in case or punctuation alone are the same.
    """
    old: dict[str, Any] = {}
    if path.is_file():
        try:
            old = read_object(path)
        except ValueError:
            set_aside(path)
    result: dict[str, dict[str, Any]] = {}
    for name, entry in fresh.items():
        before = old.get(name)
        known = str(before.get("concept")) if isinstance(before, dict) else ""
        same = plain_text(known) == plain_text(entry["concept"])
        result[name] = {**before, **entry} if same and isinstance(before, dict) else dict(entry)
    return result


def remove_others(folder: Path, names: Iterable[str]) -> None:
    """Delete the region images that the annotation does not have (any more)."""
    keep = {f"{name}.png" for name in names}
    for path in folder.glob("mask_*.png"):
        if path.name not in keep:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def clear(folder: Path) -> None:
    """Delete what the steps here made for an image, and the folder if nothing else is in it."""
    remove_others(folder, ())
    (folder / ANNOTATIONS).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _png(mask: np.ndarray) -> bytes:
    return encode_png(mask.astype(np.uint8) * 255)
