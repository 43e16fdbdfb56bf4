"""Where an object goes, by a language model or by rules: what every command that reads a sentence shares."""

from pathlib import Path
from typing import Any

import numpy as np

from datasets.relations import Place
from ldm.experts.detect import depth_in_box
from ldm.experts.segment import sam_mask
from llava_bifrost.choice import GEOMETRIC, LocatorOptions
from llava_bifrost.language.answer import Candidate
from llava_bifrost.language.instruction import InstructionError, Request, parse_instruction
from llava_bifrost.placement.anchors import parse_anchors, read_anchors
from llava_bifrost.placement.placer import Item, place_object


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
    read = read_anchors if isinstance(anchors, Path) else parse_anchors
    places = read(anchors, depth_01=depth_01) if anchors else {}
    missing = [] if request is None else [other for other in request.named if other not in places]
    if options.detector is not None and missing and depth_01 is not None:
        for other, detection in networks.detector(options.detector).find_names(rgb_u8, missing).items():
            box01 = detection.box01_xyxy
            mask = None if sam is None else sam_mask(rgb_u8, sam, box01)  # else the middle of the box counts
            places[other] = Place(box01, *depth_in_box(depth_01, box01, mask))
    if name == GEOMETRIC and request is not None and depth_01 is not None:
        found = place_object(request, places, depth_01, item=item, candidates=options.candidates)
        return request, places, found
    known = request is not None and set(request.anchors) <= places.keys()
    more = {"depth_01": depth_01, "anchors": places if known else None}
    more |= {name: getattr(options, name) for name in ("seed", "temperature") if hasattr(options, name)}
    locator = networks.locator(Path(name))
    return request, places, locator.locate(rgb_u8, instruction, options.candidates, **more)
