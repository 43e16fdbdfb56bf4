"""Known things of an image from a JSON file: names, boxes and depths.

    [{"name": "sofa", "box": [0.1, 0.4, 0.6, 0.9], "depth": 0.62}, ...]
    {"sofa": {"box01_xyxy": [0.1, 0.4, 0.6, 0.9], "d": 0.62, "far": 0.5, "near": 0.7}, ...}

Boxes are fractions of the image, depths 1 = nearest. `depth` is one number, or far and near. The second
form is that of a dataset's `anchors`. Without a file a detector finds the named things.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.geometry import check_box01
from datasets.relations import Place
from ldm.experts.detect import Detector, depth_in_box
from ldm.experts.segment import sam_mask
from llava_bifrost.language.answer import Location

FORM = '{"sofa": {"box": [x1, y1, x2, y2], "depth": d}}, the depth may be left out'
BOXES, DEPTHS = ("box", "box01_xyxy"), ("depth", "d")


def read_anchors(path: Path, depth_01: np.ndarray | None = None) -> dict[str, Place]:
    """The things of an anchors file; names in lower case.

    depth_01: (h, w) of the image, for entries without a depth; without it every entry needs one
    Raises ValueError naming the file, the thing and what is wrong with it.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot be read as JSON: {reason}; the form is {FORM}") from error
    if not values:
        raise ValueError(f"{path}: it names nothing; the form is {FORM}")
    if depth_01 is not None and isinstance(values, Mapping):
        values = {name: _with_depth(entry, depth_01, f"{path}: {name}") for name, entry in values.items()}
    elif depth_01 is not None and isinstance(values, list):
        values = [_with_depth(entry, depth_01, str(path)) for entry in values]
    return anchors_of(values, str(path))


def anchors_of(values: Any, where: str = "anchors") -> dict[str, Place]:
    """The same from parsed JSON. where: how errors name it."""
    if isinstance(values, Mapping):
        values = [{"name": name, **item} if isinstance(item, Mapping) else item
                  for name, item in values.items()]  # fmt: skip
    if not isinstance(values, list):
        raise ValueError(f"{where}: must be a list of things, or names with things, got {values!r:.60}")
    found: dict[str, Place] = {}
    for item in values:
        name, place = _anchor(item, where)
        if name in found:
            raise ValueError(f"{where}: {name!r} is there twice; give each thing a name of its own")
        found[name] = place
    return found


def _anchor(item: Any, where: str) -> tuple[str, Place]:
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        raise ValueError(f"{where}: every thing needs a name, a box and a depth, got {item!r:.80}")
    name = " ".join(item["name"].lower().split())
    box = item.get("box", item.get("box01_xyxy"))
    depth = item.get("depth", item.get("d"))
    try:
        numbers = [float(value) for value in (depth if isinstance(depth, list) else [depth])]
        box01 = check_box01([float(value) for value in box], where="box")
        if len(numbers) == 1 and item.get("far") is not None and item.get("near") is not None:
            return name, Location(box01, numbers[0], float(item["far"]), float(item["near"])).place
        if len(numbers) == 1:
            return name, Location(box01, numbers[0]).place
        far, near = numbers
        return name, Location(box01, (far + near) / 2, far, near).place
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {name}: {error}") from None


def _with_depth(entry: Any, depth_01: np.ndarray, where: str) -> Any:
    """An entry whose depth is read from the map where it says none; others as they are."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: a thing is a mapping, got {entry!r:.60}; the form is {FORM}")
    box = next((entry[key] for key in BOXES if key in entry), None)
    if not isinstance(box, list) or not all(_number(value) for value in box):
        raise ValueError(f"{where}: box must be a list of four numbers, got {box!r:.60}; the form is {FORM}")
    if any(key in entry for key in DEPTHS):
        return entry
    d, far, near = depth_in_box(depth_01, check_box01(box, where=f"{where}: box"))
    return {**entry, "depth": d, "far": far, "near": near}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def detect_anchors(
    detector: Detector,
    names: Sequence[str],
    rgb_u8: np.ndarray,
    depth_01: np.ndarray,
    sam: Path | None = None,
) -> dict[str, Place]:
    """The named things in an image (h, w, 3), their depth from its depth map (h, w).

    sam: a SAM folder, whose mask of each box then decides which pixels are the thing
    ValueError lists the names that are not found.
    """
    found = {}
    for name, one in detector.find_names(rgb_u8, names).items():
        mask = None if sam is None else sam_mask(rgb_u8, sam, one.box01_xyxy)
        d, far, near = depth_in_box(depth_01, one.box01_xyxy, mask)
        found[name] = Place(one.box01_xyxy, d, far, near)
    return found


def as_json(anchors: Mapping[str, Place]) -> dict[str, Any]:
    """What `read_anchors` reads."""
    found = {}
    for name, place in anchors.items():
        depths = {"depth": place.d, "far": place.far, "near": place.near}
        box = [round(value, 4) for value in place.box01_xyxy]
        found[name] = {"box": box, **{key: round(value, 4) for key, value in depths.items()}}
    return found
