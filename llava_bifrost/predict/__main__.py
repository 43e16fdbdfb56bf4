"""Ask a locator where an object goes: an image and a sentence in, boxes and depths out.

    python -m llava_bifrost.predict image --image F --instruction "Place the dog behind the sofa"
    python -m llava_bifrost.predict jsonl JOBS.jsonl --out ANSWERS.jsonl

Answers always have a valid form. With `--candidates K` several places are proposed, ranked by geometry and
drawn on the image.
"""

from __future__ import annotations

import json as json_format
import logging
from typing import Any

import numpy as np
import typer

from datasets.relations import Place
from ldm.images import read_depth, read_image, write_png
from ldm.settings.cli import command, new_app, run_module
from llava_bifrost.draw import draw_candidates
from llava_bifrost.language.answer import Candidate
from llava_bifrost.placement.anchors import read_anchors
from llava_bifrost.predict.jobs import answer_jobs
from llava_bifrost.predict.settings import ImageSettings, JobSettings

log = logging.getLogger(__name__)


def run_image(settings: ImageSettings) -> None:
    """Propose places for an object in one image."""
    image_u8 = read_image(settings.image).rgb_u8
    size_hw = (image_u8.shape[0], image_u8.shape[1])
    anchors = None if settings.anchors is None else read_anchors(settings.anchors)
    depth_01 = None if settings.depth is None else read_depth(settings.depth, size=size_hw)
    network = settings.load_depth()
    if depth_01 is None and network is not None and settings.candidates > 1:
        depth_01 = network.estimate(image_u8)
    found = settings.load().locate(
        image_u8,
        settings.instruction,
        settings.candidates,
        settings.seed,
        depth_01=depth_01,
        anchors=anchors,
        temperature=settings.temperature,
    )
    if settings.out is not None:
        write_png(settings.out, draw_candidates(image_u8, found, anchors))
    tell(settings, image_u8, found, anchors)


def tell(
    settings: ImageSettings, image_u8: np.ndarray, found: list[Candidate], anchors: dict[str, Place] | None
) -> None:
    """Print the answers, best first."""
    if settings.json:
        report = {"instruction": settings.instruction, "candidates": [report_of(one) for one in found]}
        typer.echo(json_format.dumps(report))
        return
    for one in found:
        score = "" if one.score is None else f"   score {one.score:.2f}"
        box = ",".join(f"{value:.3f}" for value in one.location.box01_xyxy)
        told = f"box {box}   depth {one.location.depth:.3f}{score}"
        typer.echo(f"{told}   log-probability {one.log_probability:.2f}")
    if settings.out is not None:
        log.info("wrote %s", settings.out)


def report_of(one: Candidate) -> dict[str, Any]:
    """A candidate as JSON."""
    where = one.location
    report: dict[str, Any] = {"box01_xyxy": [round(value, 4) for value in where.box01_xyxy]}
    report |= {"depth": round(where.depth, 4), "far": where.far, "near": where.near, "answer": one.text}
    return report | {"log_probability": one.log_probability, "score": one.score}


def run_jobs(settings: JobSettings) -> None:
    """Answer a JSONL file of jobs. Run again to continue; answers that are there stay."""
    answer_jobs(settings, report_of)


def build_app() -> typer.Typer:
    """The command line."""
    app = new_app("Where does an object go? Boxes and depths from an image and a sentence.")
    app.command("image")(command(ImageSettings, run_image))
    app.command("jsonl")(command(JobSettings, run_jobs))
    return app


if __name__ == "__main__":
    run_module(build_app)
