"""The DreamBooth test set in both published layouts: objects to put into prepared backgrounds.

cut-outs  OBJECTS/CONCEPT/*.png with transparency, BACKGROUNDS/NAME_GT.png, NAME_mask.png (white = to fill)
masks     OBJECTS/CONCEPT.jpg, OBJECT_MASKS/CONCEPT.jpg, BACKGROUNDS/NAME.jpg, NAME_mask.jpg (black = to fill)

The second layout is read where `object_masks` is set. The backgrounds show something else where the object
goes, so there is no ground truth to train on: the source serves tests and evaluation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from datasets.sources.image_source import Item, SourceConfig, first_and_another, motion
from datasets.sources.readers import (
    ObjectView,
    Rules,
    Tree,
    alpha_mask,
    folder,
    images_in,
    require,
    require_mask,
    subfolders,
)
from ldm.images import read_image, read_mask
from ldm.settings.config import setting

ANY_SIZE = Rules(whole=0.0, area=(0.0, 1.0), min_side=0.0, max_side=1.0)


@dataclass(frozen=True, kw_only=True)
class DreamBoothConfig(SourceConfig):
    """Objects, backgrounds and the depth of the backgrounds. An item is a concept; a background is drawn."""

    objects: Path = setting(help="cut-outs CONCEPT/*.png, or images CONCEPT.jpg with `object_masks`")
    backgrounds: Path = setting(help="NAME_GT.png with NAME_mask.png, or NAME.jpg with NAME_mask.jpg")
    depth: Path = setting(help="depth maps of the backgrounds")
    object_masks: Path | None = setting(None, help="masks CONCEPT.jpg of the second layout")
    dynamics: int = motion(1)
    rules: Rules = setting(ANY_SIZE, help="which objects are rejected; by default none")

    def read(self) -> list[Item]:
        Tree(self.backgrounds, self.depth).check()
        folder(self.objects, "objects")
        objects = require(self._objects(), f"objects in {self.objects}")
        places = require(self._places(), f"masks NAME_mask in {self.backgrounds}")
        return [(name, view, places) for name, view in objects]

    def _objects(self) -> list[tuple[str, ObjectView]]:
        """(concept, its only or first image)"""
        if self.object_masks is not None:
            masks, images = folder(self.object_masks, "object_masks"), images_in(self.objects)
            return [
                (image.stem, ObjectView(image, partial(read_mask, masks / image.name))) for image in images
            ]
        files = [(concept.name, images_in(concept, (".png",))) for concept in subfolders(self.objects)]
        return [
            (name, ObjectView(images[0], partial(alpha_mask, images[0]))) for name, images in files if images
        ]

    def _places(self) -> list[ObjectView]:
        """The backgrounds by name."""
        tree = Tree(self.backgrounds, self.depth)
        ending, read = ("_GT", read_mask) if self.object_masks is None else ("", _black)
        masks = {mask.stem.removesuffix("_mask"): mask for mask in images_in(self.backgrounds)}
        return [
            ObjectView(mask.with_name(name + ending + mask.suffix), partial(read, mask), tree)
            for name, mask in sorted(masks.items())
            if mask.stem.endswith("_mask")
        ]

    def views(self, item: Item) -> Iterator[ObjectView]:
        """The object, then every background."""
        yield item[1]
        yield from item[2]

    def draw(self, item: Item, rng: np.random.Generator) -> tuple[ObjectView, ObjectView]:
        return first_and_another(list(self.views(item)), rng)


def _black(path: Path) -> np.ndarray:
    """(h, w) bool: the black part of a mask file."""
    return require_mask(
        read_image(path).rgb_u8.max(axis=2) <= 127, f"nothing to fill: mask {path} has no black pixel"
    )
