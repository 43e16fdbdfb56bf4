"""Where an object goes, by a language model or by rules, and where the objects are that a sentence names.

The known objects of an image come from a JSON file, names in lower case after reading; a detector finds the
others. Boxes are fractions of the image, depths 1 = nearest, one number or far and near. The second form is
that of a dataset's `anchors`.

    [{"name": "sofa", "box": [0.1, 0.4, 0.6, 0.9], "depth": 0.62}, ...]
    {"sofa": {"box01_xyxy": [0.1, 0.4, 0.6, 0.9], "d": 0.62, "far": 0.5, "near": 0.7}, ...}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datasets.geometry import check_box01
from datasets.relations import Place
from ldm.experts.detect import depth_in_box
from ldm.experts.segment import sam_mask
from ldm.files import excerpt, read_json
from llava_bifrost.language.answer import Candidate
from llava_bifrost.language.instruction import GROUND_NAMES, InstructionError, Request
from llava_bifrost.language.reading import parse_instruction, with_known_names
from llava_bifrost.placement.ground import fit_ground
from llava_bifrost.placement.placer import Item, place_object
from llava_bifrost.settings import GEOMETRIC, LocatorOptions

FORM = '{"sofa": {"box": [x1, y1, x2, y2], "depth": d}}, the depth may be left out'


def propose(
    options: LocatorOptions,
    instruction: str,
    rgb_u8: np.ndarray,
    depth_01: np.ndarray | None,
    anchors: Any,
    item: Item,
    networks: Any,
) -> tuple[Request | None, dict[str, Place], list[Candidate]]:
    """The sentence taken apart (None: only a model understood it), the known places, the candidates.

    rgb_u8, depth_01: image (h, w, 3) and its depth (h, w), which only a model without a detector can lack
    anchors: path of a file, its parsed JSON, or None
    networks: its functions `locator` and `detector` load the network of a folder
    ValueError where the geometric locator cannot take the sentence apart or does not know where an object is.
    """
    name, sam = options.locator_name, getattr(options, "sam", None)
    try:
        request = parse_instruction(instruction)
    except InstructionError:
        if name == GEOMETRIC:
            raise
        request = None
    places = read_anchors(anchors, depth_01) if anchors else {}
    request = request and with_known_names(request, places)
    if name == GEOMETRIC and request is not None and depth_01 is not None:  # "on the floor" needs no box
        ground = fit_ground(depth_01, [place.box01_xyxy for place in places.values()])
        places |= {other: ground.as_place() for other in request.named if other in GROUND_NAMES} | places
    missing = [] if request is None else [other for other in request.named if other not in places]
    if options.detector is not None and missing and depth_01 is not None:
        for other, detection in networks.detector(options.detector).find_names(rgb_u8, missing).items():
            box01 = detection.box01_xyxy
            how = (getattr(options, name, "auto") for name in ("device", "dtype"))
            mask = None if sam is None else sam_mask(rgb_u8, sam, box01, *how)  # else the box's middle counts
            places[other] = Place(box01, *depth_in_box(depth_01, box01, mask))
        if sam is None:
            places = at_their_feet(places, missing, depth_01)
    if name == GEOMETRIC and request is not None and depth_01 is not None:
        found = place_object(request, places, depth_01, item=item, candidates=options.candidates)
        return request, places, found
    known = request is not None and set(request.anchors) <= places.keys()
    more = {"depth_01": depth_01, "anchors": places if known else None}
    more |= {name: getattr(options, name) for name in ("seed", "temperature") if hasattr(options, name)}
    locator = networks.locator(Path(name))
    return request, places, locator.locate(rgb_u8, instruction, options.candidates, **more)


def read_anchors(source: Any, depth_01: np.ndarray | None = None, where: str = "anchors") -> dict[str, Place]:
    """The objects of an anchors file (a Path) or of parsed JSON, which errors call `where`; lower-case names.

    depth_01: (h, w) of the image, for entries without a depth; without it every entry needs one
    Raises ValueError naming the file, the object and what is wrong with it.
    """
    values = source
    if isinstance(source, Path):
        where = str(source)
        try:
            values = read_json(source, object)
        except ValueError as error:
            raise ValueError(f"{error}; the form is {FORM}") from error
        if not values:
            raise ValueError(f"{source}: it names nothing; the form is {FORM}")
    if isinstance(values, Mapping):
        entries = list(values.items())
    elif isinstance(values, list) and all(isinstance(entry, Mapping) for entry in values):
        entries = [(entry.get("name"), entry) for entry in values]
    else:
        raise ValueError(f"{where}: must be a list of objects or a mapping of names, got {excerpt(values)}")
    anchors: dict[str, Place] = {}
    measured: list[str] = []
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
                measured.append(name)
            else:
                raise ValueError("depth is missing")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {name}: {error}; the form is {FORM}") from None
    return at_their_feet(anchors, measured, depth_01) if depth_01 is not None else anchors


def at_their_feet(places: Mapping[str, Place], names: list[str], depth_01: np.ndarray) -> dict[str, Place]:
    """Places with the depth of their foot on the ground for those of `names`; see `Ground.standing`."""
    ground = fit_ground(depth_01, [place.box01_xyxy for place in places.values()])
    return {name: ground.standing(place) if name in names else place for name, place in places.items()}


def as_json(anchors: Mapping[str, Place]) -> dict[str, Any]:
    """What `read_anchors` reads."""
    entries = {}
    for name, place in anchors.items():
        depths = {"depth": place.d, "far": place.far, "near": place.near}
        box = [round(value, 4) for value in place.box01_xyxy]
        entries[name] = {"box": box, **{key: round(value, 4) for key, value in depths.items()}}
    return entries
