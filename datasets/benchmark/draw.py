"""Drawing the cases of the open benchmark: which object goes where in which image."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.benchmark.manifest import RELATIONS, Anchor, BenchmarkCase, Instances
from datasets.geometry import Box01, bbox_of_mask, check_box01
from datasets.sources.readers import alpha_mask, images_in, subfolders
from ldm.files import read_json
from ldm.settings.schema import nearest

OBJECT_HEIGHT = (0.15, 0.6)  # of the image; chosen
TRIES = 40  # places tried for an object in an image; chosen
Sentence = Callable[[str, str, str], str]


@dataclass(frozen=True)
class Concept:
    """An object of the DreamBooth set. aspect: width over height of its cut-out."""

    name: str
    noun: str
    views: tuple[str, ...]
    aspect: float


def read_benchmark_objects(folder: Path, classes: Path | None) -> list[Concept]:
    """Sub-folders of cut-outs with transparency.

    classes: JSON of concept -> noun; without it the noun is the folder's name without digits.
    """
    if not folder.is_dir():
        raise ValueError(f"objects: there is no folder {folder}")
    nouns: dict[str, str] = read_json(classes) if classes else {}
    concepts = []
    for concept in subfolders(folder):
        views = images_in(concept, (".png",))
        if views:
            noun = nouns.get(concept.name) or re.sub(r"\d+", "", concept.name).replace("_", " ").strip()
            x0, y0, x1, y1 = bbox_of_mask(alpha_mask(views[0]))
            names = tuple(view.name for view in views)
            concepts.append(Concept(concept.name, noun, names, (x1 - x0) / (y1 - y0)))
    if not concepts:
        raise ValueError(f"objects: {folder} holds no folders of PNG cut-outs")
    return concepts


def place_beside(anchor: Anchor, relation: str, shape: float, rng: np.random.Generator) -> Box01 | None:
    """A box in that relation to the anchor, or None where it would leave the image.

    shape: width over height of the object in fractions of this image. In 2D: beside it on the same foot
    line; in front lower and overlapping; behind higher and overlapping.
    """
    x0, y0, x1, y1 = anchor.box01_xyxy
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
    elif relation == "behind":
        foot = y1 - rng.uniform(0.2, 0.5) * (y1 - y0)
    else:
        raise ValueError(nearest(relation, RELATIONS, "relation"))
    corners = middle - wide / 2, foot - tall, middle + wide / 2, foot
    rounded = tuple(round(value, 4) for value in corners)
    return check_box01(rounded) if min(rounded) >= 0 and max(rounded) <= 1 else None


def draw_cases(
    instances: Instances, concepts: Sequence[Concept], backgrounds: int, seed: int, sentence: Sentence
) -> tuple[BenchmarkCase, ...]:
    """Every object in every one of `backgrounds` images, drawn among those where all objects fit somewhere.

    sentence: (noun, relation, name of the anchor) -> the instruction.
    """
    images = [image for image in sorted(instances.images) if instances.anchors(image)]
    order = np.random.default_rng(seed).permutation(len(images))
    cases: list[BenchmarkCase] = []
    taken = 0
    for position in order:
        if taken == backgrounds:
            break
        image = images[int(position)]
        drawn = [_draw(instances, image, concept, seed, sentence) for concept in concepts]
        fitting = [case for case in drawn if case is not None]
        if len(fitting) == len(drawn):
            cases += fitting
            taken += 1
    if taken < backgrounds:
        raise ValueError(
            f"{instances.path} has {taken} images where every object fits beside a named object, "
            f"{backgrounds} were asked for"
        )
    return tuple(sorted(cases, key=lambda case: case.id))


def _draw(
    instances: Instances, image: int, concept: Concept, seed: int, sentence: Sentence
) -> BenchmarkCase | None:
    """The case of an object in an image, or None where nothing fits in 40 tries."""
    record, anchors = instances.images[image], instances.anchors(image)
    background = str(record["file_name"])
    text = f"{seed} {background} {concept.name}"
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
    shape = concept.aspect * record["height"] / record["width"]
    view = concept.views[int(rng.integers(len(concept.views)))]
    for _ in range(TRIES):
        anchor = anchors[int(rng.integers(len(anchors)))]
        relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
        box = place_beside(anchor, relation, shape, rng)
        if box is not None:
            name = f"{Path(background).stem}_{concept.name}"
            words = sentence(concept.noun, relation, anchor.name)
            return BenchmarkCase(name, background, concept.name, view, relation, anchor, box, words)
    return None
