"""Composites of photographs from two images and a sentence, or a box: what can be measured of them.

    BIFROST_TEST_DATA=FOLDER python -m benchmarks.photographs [--report FILE] [--out FILE]

photographs.yaml says what the 11 cases of the test data must show; the rest is in their cases.json. No mask
is given. By sentence the depth is estimated; by box the case's depth map and range are given if it has them.
Without and with U2-Netp. Whether a viewer accepts an image is judged by eye, on the sheet.
"""

import json
import os
import tempfile
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import cv2
import numpy as np
import typer
import yaml

from benchmarks.harness import RESULTS, Out, photographs, write_results
from benchmarks.placer_photographs import PARTS, SENTENCES, judge
from compose.settings import ComposeSettings
from datasets.relations import Place
from ldm.files import read_json, read_text
from ldm.images import encode_png, read_mask
from ldm.result import write_result
from ldm.settings.cli import run_module, single_app
from ldm.sheet import grid

EXPECTED = Path(__file__).with_suffix(".yaml")
CELL = 512  # pixels of the sheet
Sheet = Annotated[Path | None, typer.Option(help="also write all images into one PNG", metavar="PATH")]


def measure_composites(report: Sheet = None, out: Out = RESULTS / "photographs.json") -> None:
    """Compose the cases of the test data by sentence and by box, without and with U2-Netp."""
    from compose import compose, load_models

    folder, table = photographs(), yaml.safe_load(read_text(SENTENCES))
    sentences = {(row["photograph"], row["text"]): row for part in PARTS for row in table[part]}
    ways = list(product(("sentence", "box"), ("grabcut", "u2netp")))
    images = dict[str, list[np.ndarray | None]]()
    rows = list[dict[str, Any]]()
    expected = yaml.safe_load(read_text(EXPECTED))
    with tempfile.TemporaryDirectory() as empty:
        for case in read_json(folder / "composite" / "cases.json")["cases"]:
            about = expected[case["id"]]
            sentence = sentences.get((about["photograph"], about["text"]), {})
            about = {**table["photographs"][about["photograph"]], **sentence, **about}
            images[case["id"]] = []
            for by, cutout in ways:
                found, image_u8 = None, None
                with patch.dict(os.environ, {} if cutout == "u2netp" else {"BIFROST_MODELS": empty}):
                    given = {key: folder / case[key] for key in ("background", "object")}
                    if by == "sentence":
                        known, anchors = about["anchors"].items(), Path(empty) / "anchors.json"
                        anchors.write_text(json.dumps({name: {"box": box} for name, box in known}))
                        settings = ComposeSettings(**given, instruction=about["text"], anchors=anchors)
                    else:
                        depth, mode = {}, "place" if case["mode"] == "place" else "replace"
                        if (file := case["background_depth"]) is not None:
                            depth = {"background_depth": folder / file, "depth": tuple(case["depth_range"])}
                        box = tuple(case["box_xyxy"])
                        settings = ComposeSettings(**given, **depth, mode=mode, box=box)
                    started = time.process_time()
                    try:
                        result = compose(settings, load_models(settings), progress=False)
                        seconds = {"cpu_s": round(time.process_time() - started, 1)}
                        found, image_u8 = measures(result, case, about, folder) | seconds, result.images_u8[0]
                    except ValueError as error:
                        found = {"error": str(error)}
                rows.append({"case": case["id"], "by": by, "cutout": cutout, **found})
                images[case["id"]].append(image_u8)
    if report is not None:
        titles = [", ".join(way) for way in ways]
        write_result({report: encode_png(grid(list(images.values()), titles, list(images), CELL))}, True)
    write_results(out, {"rows": rows})


def measures(result: Any, case: Mapping[str, Any], about: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What can be counted of a composite."""
    from compose.benchmark.score import seam_contrast
    from llava_bifrost.propose import read_anchors

    (h, w), geometry, report = result.edit_mask.shape, result.geometry, result.report
    cut, true = geometry.inputs.reference_mask, read_mask(folder / case["object_mask"])
    changed = (result.images_u8[0] != result.background.own_u8).any(axis=2)
    found = {
        "box": [round(value, 3) for value in report["box"]],
        "depth": [round(report["depth"][end], 3) for end in ("far", "near")],
        "visible": round(report["visible_fraction"], 3),
        "cutout_iou": round(float((cut & true).sum() / (cut | true).sum()), 3),
        "drift": result.changed_outside,
        "seam": round(seam_contrast(result.background.own_u8, result.images_u8[0]), 2),
    }
    if "placement" in report:
        place = Place.of(report["box"], sum(found["depth"]) / 2)
        places = read_anchors(report["placement"]["anchors"])
        found |= judge({"at": (), "height": place.y1 - place.y0, **about}, place, places)
    for name in ("front", "old"):
        if name in about:
            part = np.zeros((h, w), np.uint8)
            cv2.fillPoly(part, [np.rint(np.multiply(about[name], (w, h))).astype(np.int32)], 1)
            still = part.astype(bool) & ~(result.edit_mask if name == "old" else changed)
            found[f"{name}_untouched"] = round(float(still.sum() / part.sum()), 3)
    return found


build_app = single_app(measure_composites)

if __name__ == "__main__":
    run_module(build_app)
