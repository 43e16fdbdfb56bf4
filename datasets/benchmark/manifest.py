"""An open benchmark of composites: objects of DreamBooth in images of COCO, as a list of cases.

The manifest names files and says where each object goes, relative to a named thing in the image. It has
no images and no depth: how far follows from the relation and from the depth map of whatever is evaluated
(`depth_of`). The same settings and annotation file give the same bytes on every machine.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from datasets.geometry import Box01, check_box01
from datasets.sources.annotations import json_entry, segment_mask
from ldm.files import file_sha256, read_json

FORMAT = 1
RELATIONS = ("left of", "right of", "in front of", "behind")
DEPTH_STEP = 0.1  # how much nearer or farther than its anchor an object goes that stands before or behind it
ANCHOR_AREA = (0.03, 0.35)  # share of the image
RIVAL_AREA = 0.01  # another thing of the anchor's name that is at least so large makes the name ambiguous


@dataclass(frozen=True)
class Anchor:
    """The thing that the object stands beside. annotation: its id in the instances file."""

    name: str
    annotation: int
    box01_xyxy: Box01


@dataclass(frozen=True)
class BenchmarkCase:
    """One composite to make. box01_xyxy: where the object goes, as fractions of the background."""

    id: str
    background: str
    object: str
    view: str
    relation: str
    anchor: Anchor
    box01_xyxy: Box01
    instruction: str


@dataclass(frozen=True)
class Manifest:
    """All cases. files: path below `images/` or `objects/` -> SHA-256, "" when absent at building."""

    name: str
    seed: int
    files: dict[str, str]
    cases: tuple[BenchmarkCase, ...]


class Instances:
    """A COCO instances file, for its images, names, boxes and outlines."""

    def __init__(self, path: Path) -> None:
        document = read_json(path)
        self.path = path
        self.names = {one["id"]: str(one["name"]) for one in json_entry(document, "categories", path)}
        self.images = {one["id"]: one for one in json_entry(document, "images", path)}
        self.annotations = {one["id"]: one for one in json_entry(document, "annotations", path)}
        self.of_image: dict[int, list[dict[str, Any]]] = {}
        for one in self.annotations.values():
            self.of_image.setdefault(one["image_id"], []).append(one)

    def mask(self, annotation: int) -> np.ndarray:
        """(h, w) bool outline of an annotation."""
        if annotation not in self.annotations:
            raise ValueError(f"{self.path} has no annotation {annotation}: is it the file of the manifest?")
        one = self.annotations[annotation]
        image = self.images[one["image_id"]]
        where = f"{self.path}: annotation {annotation}"
        return segment_mask(one["segmentation"], (image["height"], image["width"]), where)

    def anchors(self, image: int) -> list[Anchor]:
        """Things of a middle size, the only ones of their name, in the order of their ids."""
        known = self.images[image]
        things = sorted(self.of_image.get(image, []), key=lambda one: one["id"])
        area = known["width"] * known["height"]
        rivals = Counter(one["category_id"] for one in things if _share(one, area) >= RIVAL_AREA)
        return [
            Anchor(self.names[one["category_id"]], one["id"], _box01(one, known))
            for one in things
            if not one.get("iscrowd")
            and ANCHOR_AREA[0] <= _share(one, area) <= ANCHOR_AREA[1]
            and rivals[one["category_id"]] == 1
        ]


def _share(annotation: dict[str, Any], area: float) -> float:
    """Share of the image that the annotation's box covers."""
    return float(annotation["bbox"][2] * annotation["bbox"][3] / area)


def _box01(annotation: dict[str, Any], image: dict[str, Any]) -> Box01:
    x, y, w, h = annotation["bbox"]
    edges = (
        x / image["width"],
        y / image["height"],
        (x + w) / image["width"],
        (y + h) / image["height"],
    )
    return check_box01([round(min(max(edge, 0.0), 1.0), 4) for edge in edges])


def depth_of(case: BenchmarkCase, anchor_mask: np.ndarray, depth_01: np.ndarray) -> float:
    """How far the object goes: the median depth of its anchor, a step nearer or farther where asked.

    anchor_mask (h, w) bool, depth_01 (h, w) of the background, 1 = nearest.
    """
    if anchor_mask.shape != depth_01.shape:
        raise ValueError(
            f"case {case.id}: mask {anchor_mask.shape} and depth {depth_01.shape} differ in size"
        )
    steps = {"in front of": DEPTH_STEP, "behind": -DEPTH_STEP}
    depth = float(np.median(depth_01[anchor_mask])) + steps.get(case.relation, 0.0)
    return round(min(max(depth, 0.0), 1.0), 4)


def files_of(cases: Sequence[BenchmarkCase]) -> tuple[str, ...]:
    """Every file that the cases read: "pictures/..." and "objects/..."."""
    images = {f"pictures/{case.background}" for case in cases}
    return tuple(sorted(images | {f"objects/{case.object}/{case.view}" for case in cases}))


def file_hashes(files: Sequence[str], roots: Mapping[str, Path]) -> dict[str, str]:
    """Path such as "pictures/1.jpg" -> SHA-256 of the file below that root, "" when it is absent."""
    return {name: file_sha256(path) if (path := file_path(name, roots)).is_file() else "" for name in files}


def file_path(name: str, roots: Mapping[str, Path]) -> Path:
    """Where a file of the manifest is."""
    root, _, rest = name.partition("/")
    return roots[root] / rest


def differing_files(manifest: Manifest, roots: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """(file, "missing" | "differs" | "not hashed") of everything that is not as in the manifest."""
    found = file_hashes(tuple(manifest.files), roots)
    for name, expected in manifest.files.items():
        if not found[name]:
            yield name, "missing"
        elif not expected:
            yield name, "not hashed"
        elif found[name] != expected:
            yield name, "differs"


def benchmark_bytes(manifest: Manifest) -> bytes:
    """The file: JSON, one case a line."""
    head = {"format": FORMAT, "name": manifest.name, "seed": manifest.seed, "files": manifest.files}
    text = json.dumps(head, indent=1)
    cases = ",\n".join(f"  {json.dumps(_plain(case))}" for case in manifest.cases)
    return f'{text[:-2]},\n "cases": [\n{cases}\n ]\n}}\n'.encode()


def _plain(case: BenchmarkCase) -> dict[str, Any]:
    return {**vars(case), "anchor": vars(case.anchor)}


def read_benchmark(path: Path) -> Manifest:
    """A manifest; ValueError names the file and what is wrong."""
    document = read_json(path)
    if json_entry(document, "format", path) != FORMAT:
        raise ValueError(f"{path} has format {document['format']}, this code reads format {FORMAT}")
    try:
        cases = tuple(_case(one) for one in document["cases"])
        manifest = Manifest(document["name"], int(document["seed"]), dict(document["files"]), cases)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a benchmark manifest: {error}") from error
    if len({case.id for case in cases}) != len(cases):
        raise ValueError(f"{path}: two cases have the same id")
    return manifest


def _case(plain: dict[str, Any]) -> BenchmarkCase:
    anchor, box = plain["anchor"], check_box01(plain["box01_xyxy"])
    beside = Anchor(anchor["name"], anchor["annotation"], check_box01(anchor["box01_xyxy"]))
    values = {field.name: plain[field.name] for field in fields(BenchmarkCase)}
    return BenchmarkCase(**{**values, "anchor": beside, "box01_xyxy": box})
