"""Images with annotated or masked objects: LVIS, COCO panoptic, SA-1B, saliency sets, one's own images.

Reference and target are the same image; augmentation alone changes the reference. An item of an annotated set
is an image, and one of its acceptable objects is drawn. The layout of one's own images: docs/datasets.md.
"""

import csv
import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datasets.sources import coco, readers
from datasets.sources.image_source import ImagesConfig, Item, SourceConfig
from ldm.files import nfc, numbered_lines, read_json, same_file, visible_files
from ldm.images import read_mask
from ldm.settings.config import setting

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LvisConfig(ImagesConfig):
    annotations: Path = setting(help="lvis_v1_train.json, or an instances file of COCO")
    min_pixels: int = setting(3600, low=1, help="least area of an object")

    def read(self) -> list[Item]:
        def large_shape(entry: dict[str, Any]) -> Any:
            large = coco.is_large(entry, self.min_pixels)
            return coco.packed_segmentation(entry["segmentation"]) if large else None

        path, objects = self.annotations, defaultdict[str, list[tuple]](list)
        document = read_json(path, hook=coco.with_packed_segmentation)
        for image in coco.annotated_images(document, path, self.images, large_shape):
            shapes = (shape for shape in image.annotations if shape is not None)
            objects[image.file] += [(shape, image.size_hw) for shape in shapes]
        items = sorted(item for item in objects.items() if item[1])
        return readers.require(items, f"objects above {self.min_pixels} pixels in {path}")

    def views(self, item: Item) -> Iterator[readers.ObjectView]:
        image = self.images / item[0]
        for shape, size in item[1]:
            yield readers.ObjectView(image, partial(coco.segment_mask, shape, size, str(image)), self.tree)


@dataclass(frozen=True, kw_only=True)
class PanopticConfig(ImagesConfig):
    """COCO panoptic, a JSON file and images of ids; sky, grass and other stuff is left out."""

    annotations: Path = setting(help="panoptic_train2017.json")
    masks: Path = setting(help="folder panoptic_train2017 of id images")
    min_pixels: int = setting(3600, low=1, help="least area of an object")

    def read(self) -> list[Item]:
        readers.folder(self.masks, "masks")
        document, path = read_json(self.annotations), self.annotations
        categories, images = (coco.records_by_id(document, key, path) for key in ("categories", "images"))

        def segments(record: dict[str, Any]) -> Item:
            ids = []
            for entry in record["segments_info"]:
                category = coco.lookup(categories, entry["category_id"], "category")
                if coco.is_set(category, "isthing", True) and coco.is_large(entry, self.min_pixels):
                    ids.append(int(entry["id"]))
            image = coco.lookup(images, record["image_id"], "image")
            return coco.image_file(image, self.images), coco.posix_name(record["file_name"]), ids

        annotations = coco.records_by_id(document, "annotations", path, "image_id").values()
        items = [item for item in coco.usable(annotations, segments, path, "annotations") if item[2]]
        return readers.require(sorted(items), f"objects above {self.min_pixels} pixels in {path}")

    def views(self, item: Item) -> Iterator[readers.ObjectView]:
        name, mask, ids = item
        for label in ids:
            with_id = partial(readers.id_mask, self.masks / mask, label)
            yield readers.ObjectView(self.images / name, with_id, self.tree)


@dataclass(frozen=True, kw_only=True)
class SamConfig(ImagesConfig):
    """SA-1B: folders of images with a JSON file each. Segments have no class; many are parts of objects."""

    parts: tuple[str, ...] = setting((), help="parts to use (0000, 0001 ...); empty: all")
    min_pixels: int = setting(50000, low=1, help="least area of an object")

    def read(self) -> list[Item]:
        parts = [readers.folder(self.images / part, "parts") for part in self.parts]
        parts = parts or readers.subfolders(self.images)
        files = sorted(path for part in parts for path in visible_files(part, "*.json"))
        items = [(path.relative_to(self.images).as_posix(), path) for path in files]
        return readers.require(items, f"JSON files in the folders of {self.images}")

    def views(self, item: Item) -> Iterator[readers.ObjectView]:
        path, document = item[1], read_json(item[1])
        try:
            image, shapes = (coco.json_entry(document, key, path) for key in ("image", "annotations"))
            size = image["height"], image["width"]
            segments = [each["segmentation"] for each in shapes if coco.is_large(each, self.min_pixels)]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not an annotation file of SA-1B: {error} is missing") from None
        for segment in segments:
            mask = partial(coco.segment_mask, segment, size, str(path))
            yield readers.ObjectView(path.with_suffix(".jpg"), mask, self.tree)


@dataclass(frozen=True)
class MaskedFolder:
    """A folder of images and one of masks; a mask NAME.png or NAME_1.png belongs to NAME.jpg."""

    images: Path = setting(was=("pictures",), help="images")
    masks: Path = setting(help="masks, white = object; may be the same folder when the images are no PNG")
    depth: Path = setting(help="depth maps of the images")


@dataclass(frozen=True, kw_only=True)
class SaliencyConfig(SourceConfig):
    """The parts of the saliency mixture; a part that is not set is left out."""

    msra: MaskedFolder | None = setting(None, help="MSRA10K")
    duts_train: MaskedFolder | None = setting(None, help="DUTS-TR")
    duts_test: MaskedFolder | None = setting(None, help="DUTS-TE")
    hflickr: MaskedFolder | None = setting(None, help="HFlickr of iHarmony4")

    def read(self) -> list[Item]:
        items = []
        for part in filter(None, (self.msra, self.duts_train, self.duts_test, self.hflickr)):
            tree = readers.Tree(part.images, part.depth)
            tree.check()
            masked = masked_images(tree, part.masks)
            items += [(f"{mask.parent.name}/{mask.name}", view) for mask, view in masked]
        parts = "msra, duts_train, duts_test or hflickr"
        return readers.require(items, f"part of the saliency source is set: {parts}")

    def views(self, item: Item) -> Iterator[readers.ObjectView]:
        yield item[1]


@dataclass(frozen=True, kw_only=True)
class FolderConfig(SourceConfig):
    """Where one's own images are. An item is an object, or a pair of the list."""

    root: Path = setting(help="folder that holds images/ and masks/")
    depth: Path | None = setting(
        None, help="depth maps of images/; not set: ROOT/depth, and without that folder a constant depth"
    )
    pairs: Path | None = setting(None, help="list of pairs; not set: ROOT/pairs.txt where it exists")

    def read(self) -> list[Item]:
        depth: Path | None = self.depth or self.root / "depth"
        if depth is not None and not depth.is_dir():
            if self.depth is not None:
                raise ValueError(f"depth: there is no folder {depth}")
            log.warning("%s has no folder depth: a constant depth is shown to the model", self.root)
            depth = None
        tree = readers.Tree(self.root / "images", depth)
        masked = masked_images(tree, self.root / "masks")
        readers.require(masked, f"masks with images in {self.root}")
        objects = {nfc(mask.stem): view for mask, view in masked}
        listing = self.pairs or self.root / "pairs.txt"
        if not same_file(listing).is_file():
            if self.pairs is not None:
                raise ValueError(f"pairs: there is no file {listing}")
            return [(name, view, view) for name, view in objects.items()]
        items = []
        for number, line in numbered_lines(listing):
            fields = csv.reader([line], delimiter="\t" if "\t" in line else " ", skipinitialspace=True)
            names = [nfc(name.strip()) for name in next(fields) if name.strip()]
            unknown = [name for name in names if name not in objects]
            if len(names) != 2 or unknown:
                wrong = f"there is no mask {unknown[0]}" if unknown else f"{len(names)} names"
                rule = "a line is REFERENCE TARGET, two masks, with quotes or a tab for names with blanks"
                raise ValueError(f"{listing}, line {number}: {wrong}; {rule}")
            reference, target = names
            name = target if reference == target else f"{reference} in {target}"
            items.append((name, objects[reference], objects[target]))
        return readers.require(items, f"pairs in {listing}")

    def views(self, item: Item) -> Iterator[readers.ObjectView]:
        yield from dict.fromkeys(item[1:])

    def draws(self, item: Item, rng: np.random.Generator) -> Iterator[readers.ViewPair]:
        yield item[1], item[2]


def masked_images(tree: readers.Tree, masks: Path) -> list[tuple[Path, readers.ObjectView]]:
    """(mask, view) for every mask of a folder, sorted; masks without an image are named and left out."""
    suffixes = tuple(suffix for suffix in readers.IMAGES if suffix != ".png" or masks != tree.images)
    images = readers.images_in(readers.folder(tree.images, "images"), suffixes)
    by_stem, views, alone = {nfc(image.stem): image for image in images}, [], []
    for mask in readers.images_in(readers.folder(masks, "masks"), (".png",)):
        image = by_stem.get(nfc(mask.stem)) or by_stem.get(nfc(mask.stem).rpartition("_")[0])
        if image is None:
            alone.append(mask)
        else:
            views.append((mask, readers.ObjectView(image, partial(read_mask, mask), tree)))
    if alone:
        log.warning("%d masks in %s have no image, such as %s", len(alone), masks, alone[0].name)
    return views
