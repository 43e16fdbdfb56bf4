"""Images with annotated objects: LVIS, COCO panoptic, SA-1B.

Reference and target are the same image; augmentation alone changes the reference. An item is an image, and
one of its objects is drawn.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from datasets.sources.annotations import id_mask, json_entry, segment_mask
from datasets.sources.image_source import ImagesConfig, Item
from datasets.sources.readers import ObjectView, folder, require, subfolders
from ldm.files import read_json
from ldm.settings.config import setting


@dataclass(frozen=True, kw_only=True)
class LvisConfig(ImagesConfig):
    """LVIS, or another COCO-like JSON file of instances. LVIS names no file, so the address gives it."""

    annotations: Path = setting(help="lvis_v1_train.json, or an instances file of COCO")
    min_pixels: int = setting(3600, low=1, help="least area of an object")

    def read(self) -> list[Item]:
        document, path = read_json(self.annotations), self.annotations
        records = {record["id"]: record for record in json_entry(document, "images", path)}
        objects: dict[str, list[tuple]] = defaultdict(list)
        for entry in json_entry(document, "annotations", path):
            if entry["area"] > self.min_pixels and not entry.get("iscrowd", 0):
                record, shape = records[entry["image_id"]], entry["segmentation"]
                address = record.get("coco_url") or record["file_name"]
                # Arrays take a fraction of the memory of lists of numbers.
                packed = tuple(map(np.asarray, shape)) if isinstance(shape, list) else shape
                objects[PurePosixPath(address).name].append((packed, (record["height"], record["width"])))
        return require(sorted(objects.items()), f"objects above {self.min_pixels} pixels in {path}")

    def views(self, item: Item) -> Iterator[ObjectView]:
        image = self.images / item[0]
        for shape, size in item[1]:
            yield ObjectView(image, partial(segment_mask, shape, size, str(image)), self.tree)


@dataclass(frozen=True, kw_only=True)
class PanopticConfig(ImagesConfig):
    """COCO panoptic, a JSON file and images of ids; sky, grass and other stuff is left out."""

    annotations: Path = setting(help="panoptic_train2017.json")
    masks: Path = setting(help="folder panoptic_train2017 of id images")
    min_pixels: int = setting(3600, low=1, help="least area of an object")

    def read(self) -> list[Item]:
        folder(self.masks, "masks")
        document, path = read_json(self.annotations), self.annotations
        countable = {entry["id"] for entry in json_entry(document, "categories", path) if entry["isthing"]}
        names = {record["id"]: record["file_name"] for record in json_entry(document, "images", path)}
        items = []
        for record in json_entry(document, "annotations", path):
            ids = [
                entry["id"]
                for entry in record["segments_info"]
                if entry["category_id"] in countable
                and entry["area"] > self.min_pixels
                and not entry["iscrowd"]
            ]
            if ids:
                items.append((names[record["image_id"]], record["file_name"], ids))
        return require(sorted(items), f"objects above {self.min_pixels} pixels in {path}")

    def views(self, item: Item) -> Iterator[ObjectView]:
        name, mask, ids = item
        for label in ids:
            yield ObjectView(self.images / name, partial(id_mask, self.masks / mask, label), self.tree)


@dataclass(frozen=True, kw_only=True)
class SamConfig(ImagesConfig):
    """SA-1B: folders of images with a JSON file each. Segments have no class; many are parts of objects."""

    parts: tuple[str, ...] = setting((), help="parts to use (0000, 0001 ...); empty: all")
    min_pixels: int = setting(50000, low=1, help="least area of an object")

    def read(self) -> list[Item]:
        parts = [folder(self.images / part, "parts") for part in self.parts] or subfolders(self.images)
        files = sorted(path for part in parts for path in part.glob("*.json"))
        items = [(path.relative_to(self.images).as_posix(), path) for path in files]
        return require(items, f"JSON files in the folders of {self.images}")

    def views(self, item: Item) -> Iterator[ObjectView]:
        path = item[1]
        document = read_json(path)
        image, annotations = json_entry(document, "image", path), json_entry(document, "annotations", path)
        try:
            size = image["height"], image["width"]
            segments = [entry["segmentation"] for entry in annotations if entry["area"] > self.min_pixels]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not an annotation file of SA-1B: {error} is missing") from None
        for segment in segments:
            yield ObjectView(
                path.with_suffix(".jpg"), partial(segment_mask, segment, size, str(path)), self.tree
            )
