"""Known objects of an image from a JSON file: names, boxes and depths.

    [{"name": "sofa", "box": [0.1, 0.4, 0.6, 0.9], "depth": 0.62}, ...]
    {"sofa": {"box01_xyxy": [0.1, 0.4, 0.6, 0.9], "d": 0.62, "far": 0.5, "near": 0.7}, ...}

Boxes are fractions of the image, depths 1 = nearest. `depth` is one number, or far and near. The second
form is that of a dataset's `anchors`. Without a file a detector finds the named objects.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datasets.geometry import check_box01
from datasets.relations import Place
from ldm.experts.detect import depth_in_box
from ldm.files import excerpt, read_json

FORM = '{"sofa": {"box": [x1, y1, x2, y2], "depth": d}}, the depth may be left out'


def read_anchors(path: Path, depth_01: np.ndarray | None = None) -> dict[str, Place]:
    """The objects of an anchors file; names in lower case.

    depth_01: (h, w) of the image, for entries without a depth; without it every entry needs one
    Raises ValueError naming the file, the object and what is wrong with it.
    """
    try:
        values = read_json(path, object)
    except ValueError as error:
        raise ValueError(f"{error}; the form is {FORM}") from error
    if not values:
        raise ValueError(f"{path}: it names nothing; the form is {FORM}")
    return parse_anchors(values, str(path), depth_01)


def parse_anchors(
    values: Any, where: str = "anchors", depth_01: np.ndarray | None = None
) -> dict[str, Place]:
    """The same from parsed JSON. where: how errors name it."""
    if isinstance(values, Mapping):
        entries = list(values.items())
    elif isinstance(values, list) and all(isinstance(entry, Mapping) for entry in values):
        entries = [(entry.get("name"), entry) for entry in values]
    else:
        raise ValueError(f"{where}: must be a list of objects or a mapping of names, got {excerpt(values)}")
    anchors: dict[str, Place] = {}
    for name, entry in entries:
        if not isinstance(name, str):
            raise ValueError(f"{where}: every object needs a name, a box and a depth, got {excerpt(entry)}")
        name = " ".join(name.lower().split())
        if name in anchors:
            raise ValueError(f"{where}: {name!r} is there twice; give each object a name of its own")
        try:
            if not isinstance(entry, Mapping):
                raise ValueError(f"an object is a mapping, got {excerpt(entry)}")
            box, depth = entry.get("box", entry.get("box01_xyxy")), entry.get("depth", entry.get("d"))
            if not isinstance(box, list):
                raise ValueError(f"box must be a list of four numbers, got {excerpt(box)}")
            box01 = check_box01(box, where="box")
            if isinstance(depth, list):
                far, near = (float(value) for value in depth)
                anchors[name] = Place(box01, (far + near) / 2, far, near)
            elif depth is not None:
                ends = [float(entry[key]) for key in ("far", "near") if entry.get(key) is not None]
                anchors[name] = Place.of(box01, float(depth), *(ends if len(ends) == 2 else ()))
            elif depth_01 is not None:
                anchors[name] = Place(box01, *depth_in_box(depth_01, box01))
            else:
                raise ValueError("depth is missing")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {name}: {error}; the form is {FORM}") from None
    return anchors


def as_json(anchors: Mapping[str, Place]) -> dict[str, Any]:
    """What `read_anchors` reads."""
    entries = {}
    for name, place in anchors.items():
        depths = {"depth": place.d, "far": place.far, "near": place.near}
        box = [round(value, 4) for value in place.box01_xyxy]
        entries[name] = {"box": box, **{key: round(value, 4) for key, value in depths.items()}}
    return entries
