"""Images with annotated objects: LVIS, COCO panoptic, SA-1B.

Reference and target are the same image; the reference is changed by augmentation only. An item is a
image, and one of its objects is drawn. Layouts, addresses and licences: docs/datasets.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from datasets.inputs import Inputs
from datasets.sources.annotations import id_mask, section, segment_mask
from datasets.sources.readers import (
    Rules,
    View,
    depth_tree,
    folder,
    make_inputs,
    picked,
    require,
    subfolders,
)
from ldm.files import read_json
from ldm.settings.config import check_settings, setting


@dataclass(frozen=True, kw_only=True)
class LvisConfig:
    """A COCO-like JSON file of instances."""

    images: Path = setting(was=("pictures",), help="COCO images, train2017")
    depth: Path = setting(help="their depth maps")
    annotations: Path = setting(help="lvis_v1_train.json, or an instances file of COCO")
    min_pixels: int = setting(3600, low=1, help="least area of an object")
    dynamics: int = setting(0, low=0, high=2, help="0: still, 1: video, 2: new view")
    rules: Rules = setting(Rules(), help="which objects are refused")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Instance:
    """One annotated object. shape: polygons as flat arrays, or run lengths."""

    size_hw: tuple[int, int]
    shape: Any

    def mask(self, image: Path) -> np.ndarray:
        polygons = isinstance(self.shape, tuple)
        segmentation = [one.tolist() for one in self.shape] if polygons else self.shape
        return segment_mask(segmentation, self.size_hw, str(image))


class Lvis:
    """Instances of a JSON file, by image. LVIS names no file, so the address gives it."""

    def __init__(self, config: LvisConfig) -> None:
        self.rules, self.dynamics = config.rules, config.dynamics
        self.tree = depth_tree(config.images, config.depth)
        document, path = read_json(config.annotations), config.annotations
        records = {record["id"]: record for record in section(document, "images", path)}
        objects: dict[str, list[Instance]] = defaultdict(list)
        for one in section(document, "annotations", path):
            if one["area"] > config.min_pixels and not one.get("iscrowd", 0):
                record = records[one["image_id"]]
                address = record.get("coco_url") or record["file_name"]
                shape, size = one["segmentation"], (record["height"], record["width"])
                # Arrays take a fraction of the memory of lists of numbers.
                packed = tuple(map(np.asarray, shape)) if isinstance(shape, list) else shape
                objects[PurePosixPath(address).name].append(Instance(size, packed))
        self.items = require(sorted(objects.items()), f"objects above {config.min_pixels} pixels in {path}")

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index][0]

    def views(self, index: int) -> Iterator[View]:
        name, objects = self.items[index]
        image = self.tree.images / name
        for one in objects:
            yield View(image, partial(one.mask, image), self.tree)

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        view = picked(list(self.views(index)), rng)
        return make_inputs(view, view, self.rules)


@dataclass(frozen=True, kw_only=True)
class PanopticConfig(LvisConfig):
    """COCO panoptic: a JSON file and images of ids."""

    annotations: Path = setting(help="panoptic_train2017.json")
    masks: Path = setting(help="folder panoptic_train2017 of id images")


class CocoPanoptic:
    """Things of the panoptic annotation; sky, grass and other stuff is left out."""

    def __init__(self, config: PanopticConfig) -> None:
        self.rules, self.dynamics = config.rules, config.dynamics
        self.tree = depth_tree(config.images, config.depth)
        self.masks = folder(config.masks, "masks")
        document, path = read_json(config.annotations), config.annotations
        things = {one["id"] for one in section(document, "categories", path) if one["isthing"]}
        names = {record["id"]: record["file_name"] for record in section(document, "images", path)}
        found = []
        for record in section(document, "annotations", path):
            ids = [
                one["id"]
                for one in record["segments_info"]
                if one["category_id"] in things and one["area"] > config.min_pixels and not one["iscrowd"]
            ]
            if ids:
                found.append((names[record["image_id"]], record["file_name"], ids))
        self.items = require(sorted(found), f"things above {config.min_pixels} pixels in {path}")

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index][0]

    def views(self, index: int) -> Iterator[View]:
        name, mask, ids = self.items[index]
        for one in ids:
            yield View(self.tree.images / name, partial(id_mask, self.masks / mask, one), self.tree)

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        view = picked(list(self.views(index)), rng)
        return make_inputs(view, view, self.rules)


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """SA-1B: folders of images with a JSON file each."""

    images: Path = setting(was=("pictures",), help="folder of the parts 0000, 0001 ...")
    depth: Path = setting(help="their depth maps, with the same parts")
    parts: tuple[str, ...] = setting((), help="parts to use; empty: all")
    min_pixels: int = setting(50000, low=1, help="least area of an object")
    dynamics: int = setting(0, low=0, high=2, help="0: still, 1: video, 2: new view")
    rules: Rules = setting(Rules(), help="which objects are refused")

    def __post_init__(self) -> None:
        check_settings(self)


class Sam:
    """Segments of SA-1B. They have no class, and many are parts of things or background."""

    def __init__(self, config: SamConfig) -> None:
        self.rules, self.dynamics, self.min_pixels = config.rules, config.dynamics, config.min_pixels
        self.tree = depth_tree(config.images, config.depth)
        parts = [folder(config.images / part, "parts") for part in config.parts]
        files = [path for part in parts or subfolders(config.images) for path in part.glob("*.json")]
        self.items = require(sorted(files), f"JSON files in the folders of {config.images}")

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index].relative_to(self.tree.images).as_posix()

    def views(self, index: int) -> Iterator[View]:
        path = self.items[index]
        document = read_json(path)
        image, listed = section(document, "image", path), section(document, "annotations", path)
        try:
            size = image["height"], image["width"]
            segments = [one["segmentation"] for one in listed if one["area"] > self.min_pixels]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not an annotation file of SA-1B: {error} is missing") from None
        for segment in segments:
            mask = partial(segment_mask, segment, size, str(path))
            yield View(path.with_suffix(".jpg"), mask, self.tree)

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        view = picked(list(self.views(index)), rng)
        return make_inputs(view, view, self.rules)
