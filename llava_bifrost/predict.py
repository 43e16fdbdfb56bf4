"""Ask a locator where an object goes: a picture and a sentence in, boxes and depths out.

    python -m llava_bifrost.predict image --image F --instruction "Place the dog behind the sofa"
    python -m llava_bifrost.predict jsonl JOBS.jsonl --out ANSWERS.jsonl

Answers always have a valid form. With `--candidates K` several places are proposed, ranked by geometry and
drawn on the picture.
"""

from __future__ import annotations

import json as json_format
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from datasets.relations import Place
from ldm.config import check_settings, setting
from ldm.device import DEVICES, DTYPES
from ldm.experts import DepthEstimator
from ldm.images import read_depth, read_picture, write_png
from ldm.logs import start_logging
from ldm.options import command, new_app, run_app
from llava_bifrost.anchors import read_anchors
from llava_bifrost.card import FULL, TINY, default_folder
from llava_bifrost.draw import draw_candidates
from llava_bifrost.location import Candidate
from llava_bifrost.locator import Locator, UnknownWord, load_locator
from llava_bifrost.predict_jobs import answer_jobs

__all__ = ["Locator", "UnknownWord", "load_locator"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LocatorSettings:
    """Which locator, and how it is asked."""

    model: Path | None = setting(
        None,
        help=f"locator folder; without it {FULL.as_posix()} if it is there, else {TINY.as_posix()}",
    )
    candidates: int = setting(1, low=1, high=64, help="how many different places to propose, best first")
    temperature: float = setting(1.0, low=0.05, high=5, help="of the draws after the first, greedy answer")
    seed: int = setting(0, low=0, help="seed of the draws")
    depth_model: Path | None = setting(
        None, help="depth network folder, to rank several places by where the ground is"
    )
    device: str = setting("auto", choices=DEVICES, help="where the locator runs")
    dtype: str = setting("auto", choices=("auto", *DTYPES), help="number type of the locator")

    def __post_init__(self) -> None:
        check_settings(self)

    def load(self) -> Locator:
        """The locator that these settings name."""
        return load_locator(default_folder() if self.model is None else self.model, self.device, self.dtype)

    def load_depth(self) -> DepthEstimator | None:
        """The depth network, if one is named."""
        return None if self.depth_model is None else DepthEstimator.load(self.depth_model)


@dataclass(frozen=True, kw_only=True)
class ImageSettings(LocatorSettings):
    """One picture and one sentence."""

    image: Path = setting(help="picture of the background")
    instruction: str = setting(help='what to place where: "Place the dog behind the sofa"')
    depth: Path | None = setting(None, help="depth map of the picture, bright = near, to rank several places")
    anchors: Path | None = setting(
        None, help="JSON file of known things (name, box, depth); without it the locator looks for them"
    )
    out: Path | None = setting(None, help="PNG to write, with the places drawn on the picture")
    json: bool = setting(False, help="print one JSON object instead of lines")


@dataclass(frozen=True, kw_only=True)
class JobSettings(LocatorSettings):
    """Many pictures."""

    jobs: Path = setting(help="JSONL file: {id, image, instruction} a line; image relative to the file")
    out: Path | None = setting(None, help="JSONL file to append answers to; without it JOBS.answers.jsonl")
    batch: int = setting(8, low=1, help="greedy answers computed together")
    shard: str = setting("0/1", help="i/n: this machine answers every n-th job from the i-th")


def run_image(settings: ImageSettings) -> None:
    """Propose places for an object in one picture."""
    image_u8 = read_picture(settings.image).rgb_u8
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
    app = new_app("Where does an object go? Boxes and depths from a picture and a sentence.")
    app.command("image")(command(ImageSettings, run_image))
    app.command("jsonl")(command(JobSettings, run_jobs))
    return app


if __name__ == "__main__":
    start_logging()
    sys.exit(run_app(build_app, sys.argv[1:]))
