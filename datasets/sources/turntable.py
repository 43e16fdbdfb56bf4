"""Turntable views of objects: MVImgNet.

Reference and target are two views of one object, which is an item. Layout, address and licence:
docs/datasets.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from datasets.base import Rejected
from datasets.inputs import Inputs
from datasets.sources.readers import (
    View,
    alpha_mask,
    depth_tree,
    folder,
    images_in,
    make_inputs,
    require,
    two_frames,
)
from datasets.sources.video import VideoConfig
from ldm.settings.config import setting


@dataclass(frozen=True, kw_only=True)
class MvImgNetConfig(VideoConfig):
    """MVImgNet: views round an object, with cut-outs beside the images."""

    listing: Path = setting(help="list of folders MVDir/CLASS/OBJECT/images")
    interval: int = setting(8, low=1, help="two views are at least 1/interval of the turn apart")
    dynamics: int = setting(2, low=0, high=2, help="0: still, 1: video, 2: new view")


class MvImgNet:
    """Turntable views NNN.jpg with cut-outs NNN_*.png."""

    def __init__(self, config: MvImgNetConfig) -> None:
        self.rules, self.dynamics, self.interval = config.rules, config.dynamics, config.interval
        self.tree = depth_tree(config.images, config.depth)
        if not config.listing.is_file():
            raise ValueError(f"listing: there is no file {config.listing}")
        lines = config.listing.read_text(encoding="utf-8").split()
        self.items = require(sorted(line.removeprefix("MVDir/") for line in lines), str(config.listing))

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index]

    def views(self, index: int) -> Iterator[View]:
        for cutout in images_in(folder(self.tree.images / self.items[index], "listing"), (".png",)):
            image = cutout.with_name(f"{cutout.stem.partition('_')[0]}.jpg")
            yield View(image, partial(alpha_mask, cutout), self.tree)

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        views = list(self.views(index))
        if not views:
            raise Rejected(f"no frame: {self.items[index]} holds no cut-outs")
        first, second = two_frames(len(views), self.interval, rng)
        return make_inputs(views[first], views[second], self.rules)
