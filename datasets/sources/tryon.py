"""Garments on persons: VITON-HD, DressCode, FashionTryon.

The reference is a garment, the target a person who wears it. A garment may fill the image, so the target's
size is not limited.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from datasets.sources.annotations import id_mask
from datasets.sources.image_source import ImagesConfig, Item, first_and_another, motion
from datasets.sources.readers import ObjectView, Rules, folder, images_in, require, require_mask, subfolders
from ldm.images import read_image, read_mask
from ldm.settings.config import setting

WHITE = 240  # red values from here on are the paper behind a DressCode garment (published)
SEAM = 3  # erosions of a FashionTryon segment (published)


@dataclass(frozen=True, kw_only=True)
class TryOnConfig(ImagesConfig):
    """What garment sources have in common: the garment is the first view of an item, then come persons."""

    dynamics: int = motion(2)
    rules: Rules = setting(Rules(max_side=1.0, sides="both"), help="which objects are rejected")

    def draw(self, item: Item, rng: np.random.Generator) -> tuple[ObjectView, ObjectView]:
        return first_and_another(list(self.views(item)), rng)


@dataclass(frozen=True, kw_only=True)
class VitonHdConfig(TryOnConfig):
    """VITON-HD: one folder per kind of image, the same names in all."""

    cloth: Path = setting(help="garments on white")
    cloth_masks: Path = setting(help="their masks")
    parses: Path = setting(help="image-parse-v3, palette images of body parts")
    label: int = setting(5, low=1, help="id of the upper garment")

    def read(self) -> list[Item]:
        garments = images_in(folder(self.cloth, "cloth"))
        return require([(garment.stem, garment) for garment in garments], f"garments in {self.cloth}")

    def views(self, item: Item) -> Iterator[ObjectView]:
        name, garment = item
        yield ObjectView(garment, partial(read_mask, self.cloth_masks / garment.name))
        person = partial(id_mask, self.parses / f"{name}.png", self.label)
        yield ObjectView(self.images / garment.name, person, self.tree)


@dataclass(frozen=True, kw_only=True)
class DressCodeConfig(TryOnConfig):
    """One category of DressCode: person N_0.jpg, garment on white N_1.jpg, label map N_4.png."""

    label_maps: Path = setting(help="label maps N_4.png")
    label: int = setting(4, low=1, help="id of the garment: 4 upper clothes")

    def read(self) -> list[Item]:
        maps = images_in(folder(self.label_maps, "label_maps"), (".png",))
        items = [(path.stem.removesuffix("_4"), path) for path in maps if path.stem.endswith("_4")]
        return require(items, f"label maps N_4.png in {self.label_maps}")

    def views(self, item: Item) -> Iterator[ObjectView]:
        name, label_map = item
        garment = self.images / f"{name}_1.jpg"
        yield ObjectView(garment, partial(_not_white, garment))
        yield ObjectView(self.images / f"{name}_0.jpg", partial(id_mask, label_map, self.label), self.tree)


def _not_white(path: Path) -> np.ndarray:
    """(h, w) bool: what is not the white behind a garment."""
    return require_mask(read_image(path).rgb_u8[..., 0] < WHITE, f"object absent: {path} is white")


@dataclass(frozen=True, kw_only=True)
class FashionTryonConfig(TryOnConfig):
    """FashionTryon: a folder per garment with target.jpg, mask.jpg, and P.jpg, P/segment.png per person."""

    label: int = setting(7, low=1, help="id of the upper garment in segment.png")
    rules: Rules = setting(Rules(max_side=1.0), help="which objects are rejected")

    def read(self) -> list[Item]:
        garments = subfolders(self.images)
        return require([(garment.name, garment) for garment in garments], f"folders in {self.images}")

    def views(self, item: Item) -> Iterator[ObjectView]:
        home = item[1]
        yield ObjectView(home / "target.jpg", partial(read_mask, home / "mask.jpg"))
        for person in subfolders(home):
            segment = partial(self._worn, person / "segment.png")
            yield ObjectView(home / f"{person.name}.jpg", segment, self.tree)

    def _worn(self, path: Path) -> np.ndarray:
        """(h, w) bool of the garment's segment without its ragged seam."""
        segment = id_mask(path, self.label).astype(np.uint8)
        inside = cv2.erode(segment, np.ones((3, 3), np.uint8), iterations=SEAM) > 0
        message = f"object absent: nothing of id {self.label} is left in {path} inside its seam"
        return require_mask(inside, message)
