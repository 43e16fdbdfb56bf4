"""Annotated objects of a photograph, and what each is called so that its name fits no other one.

Legend: h w pixels. share: area of an object's box over the image's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.geometry import Box01, Size, bbox_of_mask, box_to_01
from datasets.sources.annotations import section, segment_mask
from llava_bifrost.language.instruction import Request

APART = 0.12  # two middles this far apart, in widths of the image, are left and right of each other
LARGER = 1.5  # a thing is the largest when its box is so many times that of the next


@dataclass(frozen=True, eq=False)
class Annotated:
    """One annotation. box01_xyxy is the annotated box, clipped to the image.

    segmentation: run lengths, or polygons as flat arrays, which take a fraction of the memory of lists
    """

    category: str
    segmentation: Any
    box01_xyxy: Box01
    crowd: bool
    size_hw: Size
    where: str  # what an error names

    @property
    def share(self) -> float:
        x0, y0, x1, y1 = self.box01_xyxy
        return max(0.0, x1 - x0) * max(0.0, y1 - y0)

    @property
    def middle(self) -> float:
        return (self.box01_xyxy[0] + self.box01_xyxy[2]) / 2

    def mask(self) -> np.ndarray:
        """Bool (h, w); ValueError when the segmentation cannot be decoded."""
        polygons = isinstance(self.segmentation, tuple)
        listed = [one.tolist() for one in self.segmentation] if polygons else self.segmentation
        return segment_mask(listed, self.size_hw, self.where)

    def tight_box(self, mask: np.ndarray) -> Box01:
        """Box of the mask in fractions."""
        return box_to_01(bbox_of_mask(mask), self.size_hw)


@dataclass(frozen=True)
class Photograph:
    """One record of an instances file with its objects."""

    name: str  # of the item: the file name without folders' slashes and ending
    file: str
    id: int
    size_hw: Size
    objects: tuple[Annotated, ...]


def read_instances(document: Any, path: Any) -> list[Photograph]:
    """Photographs of a COCO instances document, sorted by name; ValueError names what is missing."""
    categories = {one["id"]: plain_name(one["name"]) for one in section(document, "categories", path)}
    objects: dict[int, list[dict]] = defaultdict(list)
    for one in section(document, "annotations", path):
        objects[one["image_id"]].append(one)
    found = [_photograph(record, objects[record["id"]], categories, path)
             for record in section(document, "images", path)]  # fmt: skip
    found.sort(key=lambda one: one.name)
    twice = [one.name for one, other in zip(found, found[1:], strict=False) if one.name == other.name]
    if twice:
        raise ValueError(f"{path}: two images are called {twice[0]}")
    if not found:
        raise ValueError(f"{path} lists no images")
    return found


def _photograph(
    record: Mapping[str, Any], annotations: Sequence[Mapping], categories: Mapping, path: Any
) -> Photograph:
    try:
        size = int(record["height"]), int(record["width"])
        file = str(record.get("file_name") or str(record["coco_url"]).rpartition("/")[2])
        where = f"{path}, image {file}"
        objects = tuple(
            Annotated(categories[one["category_id"]], _packed(one["segmentation"]),
                      _box(one["bbox"], size), bool(one.get("iscrowd", 0)), size, where)
            for one in annotations)  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: image {record.get('id')} is incomplete: {error}") from None
    name = file.rpartition(".")[0].replace("\\", "/").replace("/", "-")
    return Photograph(name, file, int(record["id"]), size, objects)


def _packed(segmentation: Any) -> Any:
    return tuple(map(np.asarray, segmentation)) if isinstance(segmentation, list) else segmentation


def _box(bbox_xywh: Sequence[float], size_hw: Size) -> Box01:
    """COCO's x, y, width, height in pixels -> clipped corners in fractions."""
    (h, w), (x, y, width, height) = size_hw, (float(value) for value in bbox_xywh)
    corners = x / w, y / h, (x + width) / w, (y + height) / h
    x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in corners)
    return x0, y0, x1, y1


def plain_name(category: str) -> str:
    """ "Milk_bottle" -> "milk bottle"."""
    return " ".join(category.lower().replace("_", " ").split())


def can_be_said(name: str) -> bool:
    """Whether an instruction can hold the name."""
    try:
        Request(name, replace=True)
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
    for index, one in enumerate(objects):
        if one.share >= rival and can_be_said(one.category):
            groups[one.category].append(index)
    found: dict[int, str] = {}
    for category, members in groups.items():
        if any(objects[index].crowd for index in members):
            continue
        if len(members) == 1:
            found[members[0]] = category
            continue
        across = sorted(members, key=lambda index: objects[index].middle)
        middles = [objects[index].middle for index in across]
        words = {2: ("left", "right"), 3: ("left", "middle", "right")}.get(len(across))
        if words and min(np.diff(middles)) > APART:
            found.update({index: f"{word} {category}" for index, word in zip(across, words, strict=True)})
            continue
        first, second = sorted(members, key=lambda index: -objects[index].share)[:2]
        if objects[first].share >= LARGER * objects[second].share:
            found[first] = f"largest {category}"
    return dict(sorted(found.items()))
