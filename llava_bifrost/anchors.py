"""Known things of a picture from a JSON file: names, boxes and depths.

    [{"name": "sofa", "box": [0.1, 0.4, 0.6, 0.9], "depth": 0.62}, ...]
    {"sofa": {"box01_xyxy": [0.1, 0.4, 0.6, 0.9], "d": 0.62, "far": 0.5, "near": 0.7}, ...}

Boxes are fractions of the picture, depths 1 = nearest. `depth` is one number, or far and near. The second
form is that of a dataset's `anchors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.geometry import check_box01
from datasets.relations import Place
from llava_bifrost.location import Location


def read_anchors(path: Path) -> dict[str, Place]:
    """name (lower case) -> place. ValueError names the file, the thing and what is wrong with it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from None
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
