"""An open benchmark of composites: objects of DreamBooth in images of COCO, as a list of cases.

The manifest names files and says where each object goes, relative to a named object in the image. It has
no images and no depth: how far follows from the relation and from the depth map of whatever is evaluated
(`depth_of`). The same settings and annotation file give the same bytes on every machine.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.geometry import Box01, check_box01
from datasets.sources.readers import json_entry, segment_mask
from ldm.files import file_sha256, read_json

FORMAT = 1
RELATIONS = ("left of", "right of", "in front of", "behind")
DEPTH_STEP = 0.1  # depth of an object in front of or behind its anchor, beside that of the anchor; chosen
ANCHOR_AREA = (0.03, 0.35)  # fraction of the image; chosen: clearly seen, and room beside it
RIVAL_AREA = 0.01  # another object of its name that is at least so large makes an anchor ambiguous; chosen


@dataclass(frozen=True)
class Anchor:
    """The object of the image that the new one stands beside. annotation: its id in the instances file."""

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
        self.names = {entry["id"]: str(entry["name"]) for entry in json_entry(document, "categories", path)}
        self.images = {entry["id"]: entry for entry in json_entry(document, "images", path)}
        self.annotations = {entry["id"]: entry for entry in json_entry(document, "annotations", path)}
        self.of_image: dict[int, list[dict[str, Any]]] = {}
        for entry in self.annotations.values():
            self.of_image.setdefault(entry["image_id"], []).append(entry)

    def mask(self, annotation: int) -> np.ndarray:
        """(h, w) bool outline of an annotation."""
        if annotation not in self.annotations:
            raise ValueError(f"{self.path} has no annotation {annotation}: is it the file of the manifest?")
        entry = self.annotations[annotation]
        image = self.images[entry["image_id"]]
        where = f"{self.path}: annotation {annotation}"
        return segment_mask(entry["segmentation"], (image["height"], image["width"]), where)

    def anchors(self, image: int) -> list[Anchor]:
        """Objects of a middle size, the only ones of their name, in the order of their ids."""
        record = self.images[image]
        w, h = record["width"], record["height"]
        entries = sorted(self.of_image.get(image, []), key=lambda entry: entry["id"])
        area = {entry["id"]: entry["bbox"][2] * entry["bbox"][3] / (w * h) for entry in entries}
        rivals = Counter(entry["category_id"] for entry in entries if area[entry["id"]] >= RIVAL_AREA)
        anchors = []
        for entry in entries:
            middle_size = ANCHOR_AREA[0] <= area[entry["id"]] <= ANCHOR_AREA[1]
            if middle_size and rivals[entry["category_id"]] == 1 and not entry.get("iscrowd"):
                x, y, width, height = entry["bbox"]
                edges = (x / w, y / h, (x + width) / w, (y + height) / h)
                box01 = check_box01([round(min(max(edge, 0.0), 1.0), 4) for edge in edges])
                anchors.append(Anchor(self.names[entry["category_id"]], entry["id"], box01))
        return anchors


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


def file_hashes(cases: Sequence[BenchmarkCase], roots: Mapping[str, Path]) -> dict[str, str]:
    """Every file that the cases read, such as "pictures/1.jpg" -> its SHA-256, "" when it is absent."""
    names = {f"pictures/{case.background}" for case in cases}
    names |= {f"objects/{case.object}/{case.view}" for case in cases}
    return {name: _sha256(name, roots) for name in sorted(names)}


def file_path(name: str, roots: Mapping[str, Path]) -> Path:
    """Where a file of the manifest is, below the folder of its first part."""
    root, _, rest = name.partition("/")
    return roots[root] / rest


def _sha256(name: str, roots: Mapping[str, Path]) -> str:
    path = file_path(name, roots)
    return file_sha256(path) if path.is_file() else ""


def differing_files(manifest: Manifest, roots: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """(file, "missing" | "differs" | "not hashed") of everything that is not as in the manifest."""
    for name, expected in manifest.files.items():
        actual = _sha256(name, roots)
        if actual != expected or not actual:
            yield name, "missing" if not actual else "differs" if expected else "not hashed"


def benchmark_bytes(manifest: Manifest) -> bytes:
    """The file: JSON, one case a line."""
    head = {"format": FORMAT, "name": manifest.name, "seed": manifest.seed, "files": manifest.files}
    text = json.dumps(head, indent=1)
    cases = ",\n".join(f"  {json.dumps(asdict(case))}" for case in manifest.cases)
    return f'{text[:-2]},\n "cases": [\n{cases}\n ]\n}}\n'.encode()


def read_benchmark(path: Path) -> Manifest:
    """A manifest; ValueError names the file and what is wrong."""
    document = read_json(path)
    if json_entry(document, "format", path) != FORMAT:
        raise ValueError(f"{path} has format {document['format']}, this code reads format {FORMAT}")
    try:
        cases = []
        for plain in document["cases"]:
            anchor = {**plain["anchor"], "box01_xyxy": check_box01(plain["anchor"]["box01_xyxy"])}
            box01 = check_box01(plain["box01_xyxy"])
            cases.append(BenchmarkCase(**{**plain, "anchor": Anchor(**anchor), "box01_xyxy": box01}))
        manifest = Manifest(document["name"], int(document["seed"]), dict(document["files"]), tuple(cases))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a benchmark manifest: {error}") from error
    if len({case.id for case in cases}) != len(cases):
        raise ValueError(f"{path}: two cases have the same id")
    return manifest
