"""Annotated objects of a photograph: what each is called so that its name fits no other, and its removal."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from datasets.base import Rejected
from datasets.geometry import Box01, Size, bbox_of_mask, box_to_01
from datasets.sources import coco
from ldm.experts.erase import Eraser
from ldm.seeds import seed_of
from llava_bifrost.language.instruction import Request
from llava_bifrost.settings import Thresholds

APART = 0.12  # middles this far apart, in widths of the image, are left and right of each other; chosen
LARGER = 1.5  # the largest object has a box so many times that of the next; chosen
SAME = 6  # largest change of a channel, of 255, of a pixel that counts as unchanged; chosen, above JPEG noise


@dataclass(frozen=True, eq=False)
class Annotated:
    """One annotation, its box clipped to the image. segmentation: run lengths, or polygons as flat arrays."""

    category: str
    segmentation: Any
    box01_xyxy: Box01
    crowd: bool
    size_hw: Size
    where: str  # what an error names

    @property
    def area(self) -> float:
        """Of the box, as a fraction of the image."""
        x0, y0, x1, y1 = self.box01_xyxy
        return max(0.0, x1 - x0) * max(0.0, y1 - y0)

    @property
    def middle(self) -> float:
        return (self.box01_xyxy[0] + self.box01_xyxy[2]) / 2

    def mask(self) -> np.ndarray:
        """Bool (h, w); ValueError when the segmentation cannot be decoded."""
        return coco.segment_mask(self.segmentation, self.size_hw, self.where)

    def tight_box(self, mask: np.ndarray) -> Box01:
        return box_to_01(bbox_of_mask(mask), self.size_hw)


@dataclass(frozen=True)
class Photograph:
    name: str  # of the item: the file name without ending, its slashes as hyphens
    file: str
    id: int  # seeds its random choices
    size_hw: Size
    objects: tuple[Annotated, ...]


def read_instances(document: Any, path: Path, images: Path | None = None) -> list[Photograph]:
    """Photographs of a COCO instances document, sorted by name; ValueError when there is none.

    One with an unusable annotation is left out, since its names may fit no longer. images: folder of the
    photographs, for documents that name no files
    """
    categories = coco.records_by_id(document, "categories", path)
    records = coco.annotated_images(document, path, images, lambda entry: entry)
    files = [record.file for record in records]
    names = {file: PurePosixPath(file).with_suffix("").as_posix().replace("/", "-") for file in files}
    times = Counter(names[file] for file in files)

    def photograph(record: coco.AnnotatedImage) -> Photograph:
        (h, w), name, objects = record.size_hw, names[record.file], []
        if times[name] > 1:
            raise ValueError(f"{times[name]} images are called {name}")
        for entry in record.annotations:
            x, y, width, height = (float(value) for value in entry["bbox"])
            edges = x / w, y / h, (x + width) / w, (y + height) / h
            box: Any = tuple(min(max(value, 0.0), 1.0) for value in edges)
            shape, crowd = coco.packed_segmentation(entry["segmentation"]), coco.is_set(entry, "iscrowd")
            category = coco.lookup(categories, entry["category_id"], "category")["name"]
            words = " ".join(category.lower().replace("_", " ").split())
            where = f"{path}, image {record.file}"
            objects.append(Annotated(words, shape, box, crowd, record.size_hw, where))
        seed = int(record.id) if str(record.id).isdecimal() else seed_of(record.id)
        return Photograph(name, record.file, seed, record.size_hw, tuple(objects))

    photographs = coco.usable(records, photograph, path, "images")
    if not photographs:
        raise ValueError(f"{path} lists no images")
    return sorted(photographs, key=lambda photograph: photograph.name)


def can_be_named(name: str) -> bool:
    try:
        Request(name, replace=True)
        Request(name, (("on", name),))  # as a target it cannot be described, "cup on the saucer"
    except ValueError:
        return False
    return True


def unique_names(objects: Sequence[Annotated], rival: float) -> dict[int, str]:
    """Index -> name, for the objects that a name picks out.

    An object is ambiguous when another one of its category covers at least `rival` of the image. Two or
    three of a category are told apart by "left", "middle", "right", otherwise only the "largest" by its size.
    A crowd has no name, and nothing of its category beside it.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(objects):
        if item.area >= rival and can_be_named(item.category):
            groups[item.category].append(index)
    names: dict[int, str] = {}
    for category, members in groups.items():
        if any(objects[index].crowd for index in members):
            continue
        if len(members) == 1:
            names[members[0]] = category
            continue
        across = sorted(members, key=lambda index: objects[index].middle)
        words = {2: ("left", "right"), 3: ("left", "middle", "right")}.get(len(across))
        if words and min(np.diff([objects[index].middle for index in across])) > APART:
            names.update({index: f"{word} {category}" for index, word in zip(across, words, strict=True)})
            continue
        first, second = sorted(members, key=lambda index: -objects[index].area)[:2]
        if objects[first].area >= LARGER * objects[second].area:
            names[first] = f"largest {category}"
    return dict(sorted(names.items()))


@dataclass(frozen=True, eq=False)
class Removal:
    index: int  # of the object
    mask: np.ndarray  # (h, w) bool
    hole: np.ndarray  # (h, w) bool, the mask dilated
    filled_u8: np.ndarray  # (h, w, 3)


def remove(
    rgb_u8: np.ndarray, index: int, target: Annotated, rules: Thresholds, eraser: Eraser, seed: int
) -> Removal:
    """Cut object `index` out of RGB (h, w, 3) and fill; Rejected where that would leave a trace of it."""
    mask = target.mask()
    box_area = max(target.area * mask.size, 1.0)
    if not mask.any() or mask.sum() < rules.solid * box_area:
        raise Rejected(f"thin target: its mask covers {mask.sum() / box_area:.0%} of its box")
    hole = grow(mask, rules.dilate)
    if hole.mean() > rules.hole:
        raise Rejected(f"large hole: {hole.mean():.0%} of the image")
    filled_u8 = eraser.erase(rgb_u8, hole, seed)
    change = np.abs(filled_u8[mask].astype(np.int16) - rgb_u8[mask].astype(np.int16)).max(axis=1)
    same = float((change <= SAME).mean())
    if same > rules.leftover:
        raise Rejected(f"object remains: {same:.0%} of its pixels look as before")
    return Removal(index, mask, hole, filled_u8)


def grow(mask: np.ndarray, fraction: float) -> np.ndarray:
    """Mask (h, w) dilated by a fraction of the image's longer side, at least a pixel."""
    reach = max(1, round(fraction * max(mask.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return cv2.dilate(mask.astype(np.uint8), disc) > 0
