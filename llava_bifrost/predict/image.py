"""Which locator is asked, and the places that it proposes for one image."""

from __future__ import annotations

import json as json_format
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ldm.device import DEVICES, DTYPES
from ldm.experts.depth import DepthEstimator
from ldm.images import read_depth, read_image, write_png
from ldm.registry.models import resolve_model_path
from ldm.settings.config import CheckedSettings, setting
from llava_bifrost.draw import draw_candidates
from llava_bifrost.language.answer import Candidate
from llava_bifrost.locator import FULL, TINY, Locator, load_locator
from llava_bifrost.placement.anchors import read_anchors

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LocatorSettings(CheckedSettings):
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
    dtype: str = setting("auto", choices=("auto", *DTYPES), help="precision of the locator")

    def load(self) -> Locator:
        """The locator that these settings name."""
        full = resolve_model_path(FULL)
        default = full if (full / "config.json").is_file() else TINY
        return load_locator(default if self.model is None else self.model, self.device, self.dtype)

    def load_depth(self) -> DepthEstimator | None:
        """The depth network that ranks several places, if one is named."""
        if self.depth_model is None or self.candidates == 1:
            return None
        return DepthEstimator.load(self.depth_model)


@dataclass(frozen=True, kw_only=True)
class PredictImage(LocatorSettings):
    """One image and one sentence."""

    image: Path = setting(help="image of the background")
    instruction: str = setting(help='what to place where: "Place the dog behind the sofa"')
    depth: Path | None = setting(None, help="depth map of the image, bright = near, to rank several places")
    anchors: Path | None = setting(
        None, help="JSON file of known objects (name, box, depth); without it the locator looks for them"
    )
    out: Path | None = setting(None, help="PNG to write, with the places drawn on the image")
    json: bool = setting(False, help="print one JSON object instead of lines")


def predict_image(settings: PredictImage) -> None:
    """Propose places for an object in one image."""
    image = read_image(settings.image)
    anchors = None if settings.anchors is None else read_anchors(settings.anchors)
    depth_01 = None if settings.depth is None else read_depth(settings.depth, size=image.size)
    estimator = settings.load_depth()
    if depth_01 is None and estimator is not None:
        depth_01 = estimator.estimate(image.rgb_u8)
    candidates = settings.load().locate(
        image.rgb_u8,
        settings.instruction,
        settings.candidates,
        settings.seed,
        depth_01=depth_01,
        anchors=anchors,
        temperature=settings.temperature,
    )
    if settings.out is not None:
        write_png(settings.out, draw_candidates(image.rgb_u8, candidates, anchors))
    if settings.json:
        reports = [candidate_report(candidate) for candidate in candidates]
        typer.echo(json_format.dumps({"instruction": settings.instruction, "candidates": reports}))
        return
    for candidate in candidates:
        score = "" if candidate.score is None else f"   score {candidate.score:.2f}"
        box = ",".join(f"{value:.3f}" for value in candidate.location.box01_xyxy)
        place = f"box {box}   depth {candidate.location.depth:.3f}{score}"
        typer.echo(f"{place}   log-probability {candidate.log_probability:.2f}")
    if settings.out is not None:
        log.info("wrote %s", settings.out)


def candidate_report(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON."""
    where = candidate.location
    return {
        "box01_xyxy": [round(value, 4) for value in where.box01_xyxy],
        "depth": round(where.depth, 4),
        "far": where.far,
        "near": where.near,
        "answer": candidate.text,
        "log_probability": candidate.log_probability,
        "score": candidate.score,
    }
