"""Saliency sets, MSRA, DUTS and HFlickr: folders of images with one black and white mask each.

Reference and target are the same image. Layouts, addresses and licences: docs/datasets.md.
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
    IMAGES,
    Rules,
    View,
    depth_tree,
    file_mask,
    folder,
    images_in,
    make_inputs,
    require,
)
from ldm.settings.config import check_settings, setting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskedFolder:
    """A folder of images and one of masks; a mask NAME.png or NAME_1.png belongs to NAME.jpg."""

    images: Path = setting(was=("pictures",), help="images")
    masks: Path = setting(help="masks, white = object; may be the same folder when the images are no PNG")
    depth: Path = setting(help="depth maps of the images")


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
    """Images with one salient object each."""

    def __init__(self, config: SaliencyConfig) -> None:
        self.rules, self.dynamics = config.rules, config.dynamics
        parts = [getattr(config, one.name) for one in fields(config)]
        self.items = [
            (depth_tree(part.images, part.depth), image, mask)
            for part in parts
            if isinstance(part, MaskedFolder)
            for image, mask in masked_images(part.images, part.masks)
        ]
        require(self.items, "part of the saliency source is set: msra, duts_train, duts_test or hflickr")

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        mask = self.items[index][2]
        return f"{mask.parent.name}/{mask.name}"

    def views(self, index: int) -> Iterator[View]:
        tree, image, mask = self.items[index]
        yield View(image, partial(file_mask, mask), tree)

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        view = next(self.views(index))
        return make_inputs(view, view, self.rules)


def masked_images(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """(image, mask) for every mask of a folder, sorted; masks without an image are named and left out."""
    suffixes = tuple(one for one in IMAGES if one != ".png" or masks != images)
    by_stem = {one.stem: one for one in images_in(folder(images, "images"), suffixes)}
    found, alone = [], []
    for mask in images_in(folder(masks, "masks"), (".png",)):
        image = by_stem.get(mask.stem) or by_stem.get(mask.stem.rpartition("_")[0])
        if image is None:
            alone.append(mask)
        else:
            found.append((image, mask))
    if alone:
        log.warning("%d masks in %s have no image, such as %s", len(alone), masks, alone[0].name)
    return found
