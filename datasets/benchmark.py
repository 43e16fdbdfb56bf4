"""An open benchmark of composites: objects of DreamBooth in images of COCO, as a list of cases.

The manifest names files and says where each object goes, relative to a named object in the image. It has
no images and no depth: how far follows from the relation and from the depth map of whatever is evaluated
(`BenchmarkCase.depth_in`). The same settings and annotation file give the same bytes on every machine.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from datasets.geometry import Box01, bbox_of_mask, box_to_pixels, check_box01, mask_of_box
from datasets.sources import coco
from datasets.sources.readers import alpha_mask, images_in, subfolders
from ldm.files import file_sha256, named_failure, read_json
from ldm.result import write_result

FORMAT = 1
RELATIONS = ("left of", "right of", "in front of", "behind")
DEPTH_STEP = 0.1  # depth of an object in front of or behind its anchor, beside that of the anchor; chosen
ANCHOR_AREA = (0.03, 0.35)  # fraction of the image; chosen: clearly seen, and room beside it
RIVAL_AREA = 0.01  # another object of its name that is at least so large makes an anchor ambiguous; chosen
OBJECT_HEIGHT = (0.15, 0.6)  # of the image; chosen
TRIES = 40  # places tried for an object in an image; chosen
Sentence = Callable[[str, str, str], str]  # (noun, relation, name of the anchor) -> the instruction


@dataclass(frozen=True)
class Anchor:
    """The object of the image that the new one stands beside. annotation: its id in the instances file."""

    name: str
    annotation: int | str
    box01_xyxy: Box01

    def place_beside(self, relation: str, shape: float, rng: np.random.Generator) -> Box01 | None:
        """A box in that relation to the anchor, or None where it would leave the image.

        shape: width over height of the object in fractions of this image. In 2D: beside it on the same foot
        line; in front lower and overlapping; behind higher and overlapping.
        """
        x0, y0, x1, y1 = self.box01_xyxy
        tall = min(max((y1 - y0) * rng.uniform(0.6, 1.0), OBJECT_HEIGHT[0]), OBJECT_HEIGHT[1])
        wide = tall * shape
        gap, shift = rng.uniform(0.01, 0.05), rng.uniform(-0.4, 0.4) * (x1 - x0)
        middle, foot = (x0 + x1) / 2 + shift, y1
        if relation == "left of":
            middle = x0 - gap - wide / 2
        elif relation == "right of":
            middle = x1 + gap + wide / 2
        elif relation == "in front of":
            foot = y1 + rng.uniform(0.05, 0.15)
        else:  # behind
            foot = y1 - rng.uniform(0.2, 0.5) * (y1 - y0)
        edges = middle - wide / 2, foot - tall, middle + wide / 2, foot
        rounded = tuple(round(edge, 4) for edge in edges)
        return check_box01(rounded) if min(rounded) >= 0 and max(rounded) <= 1 else None


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

    def depth_in(self, anchor_mask: np.ndarray, depth_01: np.ndarray) -> float:
        """Median depth of the anchor (mask and depth_01 (h, w)), a step nearer or farther where asked."""
        if (ours := anchor_mask.shape) != depth_01.shape:
            raise ValueError(f"case {self.id}: mask {ours} and depth {depth_01.shape} differ in size")
        step = {"in front of": DEPTH_STEP, "behind": -DEPTH_STEP}.get(self.relation, 0.0)
        return round(min(max(float(np.median(depth_01[anchor_mask])) + step, 0.0), 1.0), 4)


@dataclass(frozen=True)
class Manifest:
    """All cases. files: path below `images/` or `objects/` -> SHA-256, "" when absent at building."""

    name: str
    seed: int
    files: dict[str, str]
    cases: tuple[BenchmarkCase, ...]

    def differing_files(self, roots: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
        """(file, "missing" | "differs" | "not hashed") of everything that is not as in the manifest."""
        for name, expected in self.files.items():
            actual = _sha256(name, roots)
            if actual != expected or not actual:
                yield name, "missing" if not actual else "differs" if expected else "not hashed"


@dataclass(frozen=True)
class Concept:
    """An object of the DreamBooth set. aspect: width over height of its cut-out."""

    name: str
    noun: str
    views: tuple[str, ...]
    aspect: float


class Instances:
    """A COCO instances file. An image with an unusable annotation is left out: it may hide another object."""

    def __init__(self, path: Path) -> None:
        document = read_json(path)
        self.path = path
        self.names = coco.records_by_id(document, "categories", path)
        self.annotations = coco.records_by_id(document, "annotations", path)
        images = coco.annotated_images(document, path, None, lambda entry: entry)
        self.images = {str(image.id): image for image in images}
        self.anchors = dict(coco.usable(images, self._anchors, path, "images"))

    def mask(self, annotation: int | str) -> np.ndarray:
        """(h, w) bool outline of an annotation."""
        if (entry := self.annotations.get(str(annotation))) is None:
            raise ValueError(f"{self.path} has no annotation {annotation}: is it the file of the manifest?")
        size, where = coco.lookup(self.images, entry["image_id"], "image").size_hw, f"{self.path}: annotation"
        return coco.segment_mask(entry["segmentation"], size, f"{where} {annotation}")

    def neighbours(self, annotation: int | str, box01: Box01) -> list[np.ndarray]:
        """Outlines (h, w) bool of the objects of an annotation's image that meet a box; crowds left out."""
        image_id, masks = self.annotations[str(annotation)]["image_id"], []
        for key, entry in self.annotations.items():
            if entry["image_id"] == image_id and not coco.is_set(entry, "iscrowd"):
                mask = self.mask(key)
                if (mask & mask_of_box(box_to_pixels(box01, mask.shape[:2]), mask.shape[:2])).any():
                    masks.append(mask)
        return masks

    def _anchors(self, image: coco.AnnotatedImage) -> tuple[int | str, list[Anchor]]:
        """Its id, and objects of a middle size, the only ones of their name, in the order of their ids."""
        h, w = image.size_hw
        by_id = {str(entry["id"]): entry for entry in image.annotations}
        known = [coco.lookup(self.annotations, key, "usable annotation") for key in by_id]
        entries = sorted(known, key=lambda entry: coco.id_order(entry["id"]))
        area = {entry["id"]: entry["bbox"][2] * entry["bbox"][3] / (w * h) for entry in entries}
        rivals = Counter(entry["category_id"] for entry in entries if area[entry["id"]] >= RIVAL_AREA)
        anchors = []
        for entry in entries:
            middle_size = ANCHOR_AREA[0] <= area[entry["id"]] <= ANCHOR_AREA[1]
            if middle_size and rivals[entry["category_id"]] == 1 and not coco.is_set(entry, "iscrowd"):
                x, y, width, height = entry["bbox"]
                edges = (x / w, y / h, (x + width) / w, (y + height) / h)
                box01 = check_box01([round(min(max(edge, 0.0), 1.0), 4) for edge in edges])
                name = coco.lookup(self.names, entry["category_id"], "category")["name"]
                anchors.append(Anchor(str(name), entry["id"], box01))
        return image.id, anchors

    def draw_cases(
        self, concepts: Sequence[Concept], backgrounds: int, seed: int, sentence: Sentence
    ) -> tuple[BenchmarkCase, ...]:
        """Every object in every one of `backgrounds` images, drawn among those where all objects fit."""
        images = [image for image in sorted(self.anchors, key=coco.id_order) if self.anchors[image]]
        cases, taken = list[BenchmarkCase](), 0
        for position in np.random.default_rng(seed).permutation(len(images)):
            if taken == backgrounds:
                break
            record, anchors = self.images[str(images[position])], self.anchors[images[position]]
            file, fitting = record.file, []
            for concept in concepts:
                text = f"{seed} {file} {concept.name}"
                rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
                shape = concept.aspect * record.size_hw[0] / record.size_hw[1]
                view = concept.views[int(rng.integers(len(concept.views)))]
                for _ in range(TRIES):
                    anchor = anchors[int(rng.integers(len(anchors)))]
                    relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
                    box = anchor.place_beside(relation, shape, rng)
                    if box is not None:
                        name, noun = f"{Path(file).stem}_{concept.name}", concept.noun
                        where = relation, anchor, box, sentence(noun, relation, anchor.name)
                        fitting.append(BenchmarkCase(name, file, concept.name, view, *where))
                        break
                else:  # the object fits nowhere in this image
                    break
            if len(fitting) == len(concepts):
                cases, taken = cases + fitting, taken + 1
        if taken < backgrounds:
            number = f"{taken} images where every object fits beside a named object"
            raise ValueError(f"{self.path} has {number}, {backgrounds} were asked for")
        return tuple(sorted(cases, key=lambda case: case.id))


def read_benchmark_objects(folder: Path, classes: Path | None) -> list[Concept]:
    """Sub-folders of transparent cut-outs. classes: JSON of concept -> noun, else the name without digits."""
    if not folder.is_dir():
        raise ValueError(f"objects: there is no folder {folder}")
    nouns, concepts = dict[str, str](read_json(classes) if classes else {}), []
    for concept in subfolders(folder):
        if views := images_in(concept, (".png",)):
            noun = nouns.get(concept.name) or re.sub(r"\d+", "", concept.name).replace("_", " ").strip()
            x0, y0, x1, y1 = bbox_of_mask(alpha_mask(views[0]))
            names = tuple(view.name for view in views)
            concepts.append(Concept(concept.name, noun, names, (x1 - x0) / (y1 - y0)))
    if not concepts:
        raise ValueError(f"objects: {folder} holds no folders of PNG cut-outs")
    return concepts


def file_path(name: str, roots: Mapping[str, Path]) -> Path:
    """Where a file of the manifest is, below the folder of its first part."""
    root, _, rest = name.partition("/")
    return roots[root] / rest


def _sha256(name: str, roots: Mapping[str, Path]) -> str:
    path = file_path(name, roots)
    return file_sha256(path) if path.is_file() else ""


def write_benchmark(
    path: Path, name: str, seed: int, cases: Sequence[BenchmarkCase], roots: Mapping[str, Path]
) -> Manifest:
    """Write the manifest of the cases, JSON with one case a line; an absent file has no hash."""
    pairs = ((f"pictures/{case.background}", f"objects/{case.object}/{case.view}") for case in cases)
    files = {name: _sha256(name, roots) for name in sorted({name for pair in pairs for name in pair})}
    text = json.dumps({"format": FORMAT, "name": name, "seed": seed, "files": files}, indent=1)
    lines = ",\n".join(f"  {json.dumps(asdict(case))}" for case in cases)
    write_result({path: f'{text[:-2]},\n "cases": [\n{lines}\n ]\n}}\n'.encode()})
    return Manifest(name, seed, files, tuple(cases))


def read_benchmark(path: Path) -> Manifest:
    """A manifest; ValueError names the file and what is wrong."""
    document = read_json(path)
    if coco.json_entry(document, "format", path) != FORMAT:
        raise ValueError(f"{path} has format {document['format']}, this code reads format {FORMAT}")
    with named_failure(f"{path} is not a benchmark manifest", KeyError, TypeError, ValueError):
        cases = []
        for plain in document["cases"]:
            anchor = {**plain["anchor"], "box01_xyxy": check_box01(plain["anchor"]["box01_xyxy"])}
            box01 = check_box01(plain["box01_xyxy"])
            cases.append(BenchmarkCase(**{**plain, "anchor": Anchor(**anchor), "box01_xyxy": box01}))
        manifest = Manifest(document["name"], int(document["seed"]), dict(document["files"]), tuple(cases))
    if len({case.id for case in cases}) != len(cases):
        raise ValueError(f"{path}: two cases have the same id")
    return manifest
