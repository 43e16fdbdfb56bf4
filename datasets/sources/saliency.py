"""Saliency sets, MSRA, DUTS and HFlickr: folders of pictures with one black and white mask each.

Reference and target are the same picture. Layouts, addresses and licences: docs/datasets.md.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np

from datasets.inputs import Inputs
from datasets.sources.readers import (
    PICTURES,
    Rules,
    View,
    depth_tree,
    file_mask,
    folder,
    make_inputs,
    pictures_in,
    require,
)
from ldm.settings.config import check_settings, setting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskedFolder:
    """A folder of pictures and one of masks; a mask NAME.png or NAME_1.png belongs to NAME.jpg."""

    pictures: Path = setting(help="pictures")
    masks: Path = setting(help="masks, white = object; may be the same folder when the pictures are no PNG")
    depth: Path = setting(help="depth maps of the pictures")


@dataclass(frozen=True, kw_only=True)
class SaliencyConfig:
    """The parts of the saliency mixture; a part that is not set is left out."""

    msra: MaskedFolder | None = setting(None, help="MSRA10K")
    duts_train: MaskedFolder | None = setting(None, help="DUTS-TR")
    duts_test: MaskedFolder | None = setting(None, help="DUTS-TE")
    hflickr: MaskedFolder | None = setting(None, help="HFlickr of iHarmony4")
    dynamics: int = setting(0, low=0, high=2, help="0: still, 1: video, 2: new view")
    rules: Rules = setting(Rules(), help="which objects are refused")

    def __post_init__(self) -> None:
        check_settings(self)


class Saliency:
    """Pictures with one salient object each."""

    def __init__(self, config: SaliencyConfig) -> None:
        self.rules, self.dynamics = config.rules, config.dynamics
        parts = [getattr(config, one.name) for one in fields(config)]
        self.items = [
            (depth_tree(part.pictures, part.depth), picture, mask)
            for part in parts
            if isinstance(part, MaskedFolder)
            for picture, mask in masked_pictures(part.pictures, part.masks)
        ]
        require(self.items, "part of the saliency source is set: msra, duts_train, duts_test or hflickr")

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        mask = self.items[index][2]
        return f"{mask.parent.name}/{mask.name}"

    def views(self, index: int) -> Iterator[View]:
        tree, picture, mask = self.items[index]
        yield View(picture, partial(file_mask, mask), tree)

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        view = next(self.views(index))
        return make_inputs(view, view, self.rules)


def masked_pictures(pictures: Path, masks: Path) -> list[tuple[Path, Path]]:
    """(picture, mask) for every mask of a folder, sorted; masks without a picture are named and left out."""
    suffixes = tuple(one for one in PICTURES if one != ".png" or masks != pictures)
    by_stem = {one.stem: one for one in pictures_in(folder(pictures, "pictures"), suffixes)}
    found, alone = [], []
    for mask in pictures_in(folder(masks, "masks"), (".png",)):
        picture = by_stem.get(mask.stem) or by_stem.get(mask.stem.rpartition("_")[0])
        if picture is None:
            alone.append(mask)
        else:
            found.append((picture, mask))
    if alone:
        log.warning("%d masks in %s have no picture, such as %s", len(alone), masks, alone[0].name)
    return found
