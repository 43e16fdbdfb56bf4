"""How well the built-in detector finds named things in photographs, and what the placer answers with them.

    BIFROST_TEST_DATA=FOLDER python -m benchmarks.builtin_detector [--out FILE]

Boxes and sentences are those of placer_photographs.yaml, drawn by hand. A box is right when it overlaps the
drawn one with an IoU of 0.5, roughly right when its middle lies in the drawn one and the IoU is 0.25. The
control asks every photograph for things that none of them shows: there only a refusal is right.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

from benchmarks.harness import RESULTS, Out, Photographs, fraction, photographs, write_results
from benchmarks.placer_photographs import PARTS, SENTENCES, judge
from datasets.geometry import iou
from ldm.files import read_text
from ldm.images import Box01, read_depth, read_image
from ldm.settings.cli import run_module, single_app

RIGHT, ROUGH = 0.5, 0.25  # IoU (chosen)
ABSENT = ("microwave", "violin", "horse", "airplane", "pineapple", "tractor", "telescope", "parachute",
          "washing machine", "snowmobile", "shark", "cowboy hat", "strawberry", "canoe", "sewing machine",
          "penguin", "hammock", "harp", "tank", "lighthouse")  # fmt: skip


def compared(found: Box01, drawn: Box01) -> dict[str, Any]:
    """A found box beside the drawn one; `foot` is how far their lower edges lie apart."""
    overlap, foot = iou(found, drawn), found[3] - drawn[3]
    inside = all(drawn[i] < (found[i] + found[i + 2]) / 2 < drawn[i + 2] for i in (0, 1))
    row = {"box": [round(edge, 3) for edge in found], "iou": round(overlap, 3), "foot": round(foot, 3)}
    return row | {"right": overlap >= RIGHT, "rough": overlap >= ROUGH and inside}


def placed(sentence: Mapping[str, Any], rgb_u8: np.ndarray, depth_01: np.ndarray, given: Any) -> dict:
    """The placer's answer with the detector's anchors, judged by the drawn ones; or its error."""
    from llava_bifrost.placement.placer import Item
    from llava_bifrost.propose import propose
    from llava_bifrost.settings import GEOMETRIC

    options: Any = SimpleNamespace(locator_name=GEOMETRIC, detector=Path("builtin"), candidates=1)
    networks = SimpleNamespace(detector=lambda _: given.detector)
    try:
        item = Item(sentence["aspect"])
        place = propose(options, sentence["text"], rgb_u8, depth_01, None, item, networks)[2][0].location
    except ValueError as error:
        return {"error": str(error).split(";")[0]}
    return judge(sentence, place, given.places) | {"box": [round(edge, 3) for edge in place.box01_xyxy]}


def measure_builtin_detector(data: Photographs = None, out: Out = RESULTS / "builtin_detector.json") -> None:
    """Find what photographs show and what they do not, and place things beside what is found."""
    folder = photographs(data)
    from ldm.experts.depth import DepthEstimator
    from ldm.experts.detect import Detector
    from ldm.registry.models import depth_for_photographs
    from llava_bifrost.propose import read_anchors

    detector, network = Detector.load("builtin"), DepthEstimator.load(depth_for_photographs(None))
    table = yaml.safe_load(read_text(SENTENCES))
    named, control, answers = (list[dict[str, Any]]() for _ in range(3))
    for photograph, entry in table["photographs"].items():
        rgb_u8 = read_image(folder / entry["image"]).rgb_u8
        drawn = {name: {"box": box} for name, box in entry["anchors"].items()}
        for name, rows in (*((name, named) for name in drawn), *((name, control) for name in ABSENT)):
            row: dict[str, Any] = {"photograph": photograph, "name": name}
            for detection in detector.find_all(rgb_u8, name):
                row["score"] = round(detection.score, 3)
                row |= compared(detection.box01_xyxy, drawn[name]["box"]) if rows is named else {}
            rows.append(row)
        file, size = entry.get("depth"), rgb_u8.shape[:2]
        depth_01 = read_depth(folder / file, size=size) if file else network.estimate(rgb_u8)
        given = SimpleNamespace(detector=detector, places=read_anchors(drawn, depth_01))
        for part in PARTS:
            for sentence in (each for each in table[part] if each["photograph"] == photograph):
                row = {"photograph": photograph, "part": part, "text": sentence["text"]}
                answers.append(row | placed(sentence, rgb_u8, depth_01, given))
    found, answered = ([row for row in rows if "box" in row] for rows in (named, answers))
    summary = {
        "named things found": fraction(["box" in row for row in named]),
        "right of these": fraction([row["right"] for row in found]),
        "roughly right of these": fraction([row["rough"] for row in found]),
        "median IoU of these": float(np.median([row["iou"] for row in found])),
        "median error of the foot": float(np.median([abs(row["foot"]) for row in found])),
        "absent things found": fraction(["score" in row for row in control]),
        "sentences answered": fraction(["box" in row for row in answers]),
        "right of these answers": fraction([row["region"] and row["relations"] for row in answered]),
    }
    wrong = [row for row in control if "score" in row]
    write_results(out, {**summary, "named": named, "absent and found": wrong, "answers": answers})


build_app = single_app(measure_builtin_detector)

if __name__ == "__main__":
    run_module(build_app)
