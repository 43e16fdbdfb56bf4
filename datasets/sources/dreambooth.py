"""The DreamBooth test set in both published layouts: objects to put into prepared backgrounds.

cut-outs  OBJECTS/CONCEPT/*.png with transparency, BACKGROUNDS/NAME_GT.png, NAME_mask.png (white = to fill)
masks     OBJECTS/CONCEPT.jpg, OBJECT_MASKS/CONCEPT.jpg, BACKGROUNDS/NAME.jpg, NAME_mask.jpg (black = to fill)

The second layout is read where `object_masks` is set. The backgrounds show something else where the object
goes, so nothing here is a truth to train on: the source serves tests and evaluation.
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
    Rules,
    View,
    alpha_mask,
    depth_tree,
    file_mask,
    folder,
    images_in,
    make_inputs,
    require,
    subfolders,
)
from ldm.images import read_image
from ldm.settings.config import check_settings, setting

ANY_SIZE = Rules(whole=0.0, area=(0.0, 1.0), min_side=0.0, max_side=1.0)


@dataclass(frozen=True, kw_only=True)
class DreamBoothConfig:
    """Objects, backgrounds and the depth of the backgrounds."""

    objects: Path = setting(help="cut-outs CONCEPT/*.png, or images CONCEPT.jpg with `object_masks`")
    backgrounds: Path = setting(help="NAME_GT.png with NAME_mask.png, or NAME.jpg with NAME_mask.jpg")
    depth: Path = setting(help="depth maps of the backgrounds")
    object_masks: Path | None = setting(None, help="masks CONCEPT.jpg of the second layout")
    dynamics: int = setting(1, low=0, high=2, help="0: still, 1: video, 2: new view")
    rules: Rules = setting(ANY_SIZE, help="which objects are refused; by default none")

    def __post_init__(self) -> None:
        check_settings(self)


class DreamBooth:
    """An item is a concept; its background is drawn. `pair` gives a chosen one."""

    def __init__(self, config: DreamBoothConfig) -> None:
        self.rules, self.dynamics = config.rules, config.dynamics
        self.tree = depth_tree(config.backgrounds, config.depth)
        folder(config.objects, "objects")
        masks = config.object_masks
        self.objects = _cutouts(config.objects) if masks is None else _masked(config.objects, masks)
        require(self.objects, f"objects in {config.objects}")
        ending, read = ("_GT", file_mask) if masks is None else ("", _black)
        self.backgrounds = {
            mask.stem.removesuffix("_mask"): View(
                mask.with_name(mask.stem.removesuffix("_mask") + ending + mask.suffix),
                partial(read, mask),
                self.tree,
            )
            for mask in images_in(config.backgrounds)
            if mask.stem.endswith("_mask")
        }
        self.places = require(sorted(self.backgrounds), f"masks NAME_mask in {config.backgrounds}")

    def __len__(self) -> int:
        return len(self.objects)

    def name(self, index: int) -> str:
        return self.objects[index][0]

    def views(self, index: int) -> Iterator[View]:
        """The object, then every background."""
        yield self.objects[index][1]
        yield from self.backgrounds.values()

    def pair(self, index: int, background: str) -> Inputs:
        """Concept `index` in the background of a name."""
        return make_inputs(self.objects[index][1], self.backgrounds[background], self.rules)

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        return self.pair(index, self.places[int(rng.integers(len(self.places)))])


def _cutouts(objects: Path) -> list[tuple[str, View]]:
    """The first cut-out of every concept."""
    found = ((concept.name, images_in(concept, (".png",))) for concept in subfolders(objects))
    return [(name, View(files[0], partial(alpha_mask, files[0]))) for name, files in found if files]


def _masked(objects: Path, masks: Path) -> list[tuple[str, View]]:
    """Images with the masks of the same name."""
    folder(masks, "object_masks")
    return [(one.stem, View(one, partial(file_mask, masks / one.name))) for one in images_in(objects)]


def _black(path: Path) -> np.ndarray:
    """(h, w) bool: the black part of a mask file."""
    mask = read_image(path).rgb_u8.max(axis=2) <= 127
    if not mask.any():
        raise Rejected(f"nothing to fill: mask {path} has no black pixel")
    return mask
