"""How often reader and geometric placer answer sentences about photographs, and how often rightly.

    BIFROST_TEST_DATA=FOLDER python -m benchmarks.placer_photographs [--depth-model FOLDER] [--out FILE]

placer_photographs.yaml holds boxes, sentences and the right answers, drawn by hand. An answer is right when
its contact point lies in the region drawn for its sentence and the plain meaning of every relation is true of
it (`agrees`; none of the placer's thresholds is used). The size is judged apart.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
import yaml

from benchmarks.harness import RESULTS, Out, fraction, photographs, write_results
from datasets.relations import Place
from ldm.files import read_text
from ldm.images import read_depth, read_image
from ldm.registry.models import depth_folder, depth_for_photographs
from ldm.settings.cli import run_module, single_app
from llava_bifrost.language.reading import parse_instruction, with_known_names
from llava_bifrost.placement.placer import Item, place_object

SENTENCES = Path(__file__).with_suffix(".yaml")
PARTS = ("first", "second", "later")
SIZE_FACTOR = 2.0  # a height within this factor of the likely one counts as right
EDGE = 0.01  # of the image, by which a contact point may miss the region


def agrees(word: str, place: Place, anchors: Sequence[Place]) -> bool:
    """The plain meaning of a relation in 2.5D. What carries the object ("on") is the region's matter."""
    first, last = anchors[0], anchors[-1]
    across = max(place.x0, first.x0) - min(place.x1, first.x1)  # negative: the boxes share columns
    middles = sorted((first.middle, last.middle))
    return {
        "left of": place.middle < first.middle,
        "right of": place.middle > first.middle,
        "in front of": place.d > first.d,
        "behind": place.d < first.d,
        "next to": across < max(place.width, first.width) / 2,
        "on": across < 0,
        "under": across < 0,
        "between": middles[0] < place.middle < middles[1],
    }[word]


def judge(sentence: Mapping[str, Any], place: Place, places: Mapping[str, Place]) -> dict[str, bool]:
    """Whether region, relations and size of an answer are right."""
    region, foot = np.array(sentence["region"], np.float32), (float(place.middle), float(place.y1))
    relations = (agrees(word, place, [places[name] for name in names]) for word, *names in sentence["at"])
    likely = 1 / SIZE_FACTOR < (place.y1 - place.y0) / sentence["height"] < SIZE_FACTOR
    inside = cv2.pointPolygonTest(region, foot, True) > -EDGE
    return {"region": inside, "relations": all(relations), "size": likely}


def answer(sentence: Mapping[str, Any], places: Mapping[str, Place], depth_01: np.ndarray) -> dict[str, Any]:
    """The first answer to a sentence with what is right about it, or its error."""
    try:
        request = with_known_names(parse_instruction(sentence["text"]), places)
        place = place_object(request, places, depth_01, item=Item(sentence["aspect"]))[0].location
    except ValueError as error:
        return {"error": str(error).split(";")[0]}
    box = [round(edge, 3) for edge in place.box01_xyxy]
    return {"box": box, "at": round(place.d, 3), **judge(sentence, place, places)}


def measure_photographs(
    depth_model: Annotated[Path | None, typer.Option(help="depth network", metavar="FOLDER")] = None,
    out: Out = RESULTS / "placer_photographs.json",
) -> None:
    """Ask for a place for every sentence, with given and with estimated depth."""
    folder = photographs()
    from ldm.experts.depth import DepthEstimator
    from llava_bifrost.propose import read_anchors

    table = yaml.safe_load(read_text(SENTENCES))
    network = DepthEstimator.load(depth_for_photographs(depth_model))
    answers: list[dict[str, Any]] = []
    for name, photograph in table["photographs"].items():
        rgb_u8 = read_image(folder / photograph["image"]).rgb_u8
        depths = {"estimated": network.estimate(rgb_u8)}
        if "depth" in photograph:
            depths["given"] = read_depth(folder / photograph["depth"], size=rgb_u8.shape[:2])
        boxes = {anchor: {"box": box} for anchor, box in photograph["anchors"].items()}
        sentences = [(part, each) for part in PARTS for each in table[part] if each["photograph"] == name]
        for kind, depth_01 in depths.items():
            places = read_anchors(boxes, depth_01)
            for part, sentence in sentences:
                row = {"photograph": name, "depth": kind, "part": part, "text": sentence["text"]}
                answers.append(row | answer(sentence, places, depth_01))
    rows: dict[str, Any] = {}
    groups = {**{part: (part,) for part in PARTS}, "first and second": PARTS[:2]}
    for kind, (name, parts) in product(("given", "estimated"), groups.items()):
        asked = [row for row in answers if row["depth"] == kind and row["part"] in parts]
        if given := [row for row in asked if "box" in row]:
            rows[f"{kind} depth, {name}"] = {
                "answered": fraction(["box" in row for row in asked]),
                "right of these": fraction([row["region"] and row["relations"] for row in given]),
                "size of these": fraction([row["size"] for row in given]),
            }
    write_results(out, {"depth network": depth_folder(depth_model).as_posix(), **rows, "answers": answers})


build_app = single_app(measure_photographs)

if __name__ == "__main__":
    run_module(build_app)
