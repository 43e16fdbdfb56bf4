"""Where the things that a sentence refers to are: from a file of anchors, or from a detector.

    {"sofa": {"box": [0.05, 0.42, 0.55, 0.93], "depth": 0.62}}

The form of the file is that of anchors.py; here an entry without a depth gets it from the depth map.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.geometry import check_box01
from datasets.relations import Place
from ldm.ground import Detector, depth_in_box
from ldm.segment import sam_mask
from llava_bifrost.anchors import anchors_of

FORM = '{"sofa": {"box": [x1, y1, x2, y2], "depth": d}}, the depth may be left out'
BOXES, DEPTHS = ("box", "box01_xyxy"), ("depth", "d")


def read_anchors(path: Path, depth_01: np.ndarray) -> dict[str, Place]:
    """The things of an anchors file; names in lower case.

    depth_01: (h, w) of the picture, for entries without a depth
    Raises ValueError naming the file, the thing and what is wrong with it.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot be read as JSON: {reason}; the form is {FORM}") from error
    if not values:
        raise ValueError(f"{path}: it names nothing; the form is {FORM}")
    if isinstance(values, Mapping):
        values = {name: _with_depth(entry, depth_01, f"{path}: {name}") for name, entry in values.items()}
    elif isinstance(values, list):
        values = [_with_depth(entry, depth_01, str(path)) for entry in values]
    return anchors_of(values, str(path))


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
    """The named things in a picture (h, w, 3), their depth from its depth map (h, w).

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
