"""Which locator is asked, and what."""

from dataclasses import dataclass, fields
from pathlib import Path

from ldm.result import overwrite_setting
from ldm.settings.choices import DEVICES, FLOAT_TYPES
from ldm.settings.config import CheckedSettings, setting
from llava_bifrost.choice import LocatorOptions


@dataclass(frozen=True, kw_only=True)
class LocatorSettings(LocatorOptions):
    """Which locator, and how it is asked."""

    locator: str | None = setting(None, was=("model",), help=fields(LocatorOptions)[0].metadata["help"])
    sam: Path | None = setting(None, help="SAM folder: its mask of a detected object decides the depth")
    aspect: float = setting(1.0, low=0.02, high=50, help="geometric locator: width / height of the object")
    temperature: float = setting(1.0, low=0.05, high=5, help="of the draws after the first, greedy answer")
    seed: int = setting(0, low=0, help="seed of the draws")
    depth_model: Path | None = setting(
        None, help="depth network folder, to rank several places by where the ground is, and for anchors"
    )
    device: str = setting("auto", choices=DEVICES, help="where the locator runs")
    dtype: str = setting("auto", choices=("auto", *FLOAT_TYPES), help="precision of the locator")


@dataclass(frozen=True, kw_only=True)
class PredictImage(LocatorSettings):
    """One image and one sentence."""

    image: Path = setting(help="image of the background")
    instruction: str = setting(help='what to place where: "Place the dog behind the sofa"')
    depth: Path | None = setting(None, help="depth map of the image, bright = near, to rank several places")
    out: Path | None = setting(None, help="PNG to write, with the places drawn on the image")
    overwrite: bool = overwrite_setting()


@dataclass(frozen=True, kw_only=True)
class PredictJobs(LocatorSettings):
    """Many images."""

    jobs: Path = setting(help="JSONL file: {id, image, instruction} a line; image relative to the file")
    out: Path | None = setting(None, help="JSONL file to append answers to; without it JOBS.answers.jsonl")
    batch: int = setting(8, low=1, help="greedy answers computed together")
    shard: str = setting("0/1", help="i/n: this machine answers every n-th job from the i-th")


@dataclass(frozen=True, kw_only=True)
class NamedBoxes(CheckedSettings):
    """Objects of an image, as a person sees them."""

    objects: tuple[str, ...] = setting(
        aliases=("NAME=X1,Y1,X2,Y2[,DEPTH]...",),
        help="name, box and, where known, depth (1 = nearest); fractions of the image, or pixels as in 120px",
    )
    image: Path = setting(help="image of the background")
    out: Path = setting(help="JSON file to write, for --anchors; OUT_boxes.png shows the boxes on the image")
