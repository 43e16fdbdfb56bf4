"""What `python -m llava_bifrost.predict` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ldm.device import DEVICES, DTYPES
from ldm.experts.depth import DepthEstimator
from ldm.settings.config import CheckedSettings, setting
from llava_bifrost.card import FULL, TINY, default_folder
from llava_bifrost.locator import Locator, load_locator


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
    dtype: str = setting("auto", choices=("auto", *DTYPES), help="number type of the locator")

    def load(self) -> Locator:
        """The locator that these settings name."""
        return load_locator(default_folder() if self.model is None else self.model, self.device, self.dtype)

    def load_depth(self) -> DepthEstimator | None:
        """The depth network, if one is named."""
        return None if self.depth_model is None else DepthEstimator.load(self.depth_model)


@dataclass(frozen=True, kw_only=True)
class ImageSettings(LocatorSettings):
    """One image and one sentence."""

    image: Path = setting(help="image of the background")
    instruction: str = setting(help='what to place where: "Place the dog behind the sofa"')
    depth: Path | None = setting(None, help="depth map of the image, bright = near, to rank several places")
    anchors: Path | None = setting(
        None, help="JSON file of known things (name, box, depth); without it the locator looks for them"
    )
    out: Path | None = setting(None, help="PNG to write, with the places drawn on the image")
    json: bool = setting(False, help="print one JSON object instead of lines")


@dataclass(frozen=True, kw_only=True)
class JobSettings(LocatorSettings):
    """Many images."""

    jobs: Path = setting(help="JSONL file: {id, image, instruction} a line; image relative to the file")
    out: Path | None = setting(None, help="JSONL file to append answers to; without it JOBS.answers.jsonl")
    batch: int = setting(8, low=1, help="greedy answers computed together")
    shard: str = setting("0/1", help="i/n: this machine answers every n-th job from the i-th")
