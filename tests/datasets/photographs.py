"""A synthetic set of annotated photographs, and data sets built of it, for the tests of the builder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ldm.images import write_png
from llava_bifrost.build_dataset.coco import CocoBuild, CocoSource
from llava_bifrost.build_dataset.files import build_questions
from llava_bifrost.settings import Thresholds

CATEGORIES = ["dog", "cat", "Milk_bottle", "dining table"]
COUNT = 8


def photograph(index: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A floor that comes nearer downwards, with three coloured discs on it, and their annotations."""
    rng = np.random.default_rng(index)
    h, w = 96, 128
    noise = rng.integers(0, 8, (h, w, 3))
    rgb_u8 = (noise + np.linspace(60, 200, h)[:, None, None]).astype(np.uint8)
    objects = []
    for number, middle in enumerate((24, 62, 102)):
        x, y, r = int(middle + rng.integers(-6, 7)), int(rng.integers(30, 74)), int(rng.integers(10, 16))
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        outline = np.stack([x + r * np.cos(angle), y + r * np.sin(angle)], 1)
        colour = [int(one) for one in rng.integers(0, 255, 3)]
        cv2.fillPoly(rgb_u8, [np.round(outline).astype(np.int32)], colour)
        objects.append({
            "category_id": number + 1, "iscrowd": 0, "bbox": [x - r, y - r, 2 * r, 2 * r], "area": 3 * r * r,
            "segmentation": [[round(float(value), 2) for value in outline.ravel()]],
        })  # fmt: skip
    return rgb_u8, objects


def write_coco(root: Path) -> Path:
    """A folder with images and instances.json; image 7 has no object, a crowd blurs image 6."""
    images, annotations = [], []
    for index in range(COUNT):
        rgb_u8, objects = photograph(index)
        write_png(root / "images" / f"p{index}.png", rgb_u8)
        images.append({"id": index + 1, "file_name": f"p{index}.png", "width": 128, "height": 96})
        if index == 6:
            objects[0]["category_id"] = objects[1]["category_id"]
            objects[0]["iscrowd"] = 1
        annotations += [{**one, "image_id": index + 1} for one in objects if index != 7]
    for number, one in enumerate(annotations):
        one["id"] = number
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(CATEGORIES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(document))
    return root


def settings(coco: Path, depth: Path, out: Path, **changes: Any) -> CocoBuild:
    given: dict[str, Any] = {"targets": 2, "replace": 0.6, "batch": 2, "device": "cpu", **changes}
    given.setdefault("thresholds", Thresholds(depth_error=1.0))
    given |= {"images": coco / "images", "annotations": coco / "instances.json", "depth": str(depth)}
    return CocoBuild(out=out, **given)


def run(given: CocoBuild) -> dict[str, Any] | None:
    return build_questions(CocoSource, given)


def contents(out: Path) -> dict[str, bytes]:
    """The final files of a data set, without its parts."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.parent.name != "parts")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def differing(one: Path, other: Path) -> list[str]:
    """Final files that are not the same in both data sets."""
    a, b = contents(one), contents(other)
    return sorted(name for name in {*a, *b} if a.get(name) != b.get(name))


def records(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "dataset.json").read_text())
