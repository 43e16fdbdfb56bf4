"""Objects with images of their own, and places for them: garments on persons, the DreamBooth test set.

Garments (VITON-HD, DressCode, FashionTryon): the target is a person who wears the garment. A garment may fill
its image, so the target's size is not limited. The backgrounds of the DreamBooth test set show something else
where the object goes, so there is no ground truth to train on: the source serves tests and evaluation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from datasets.base import Rejected
from datasets.sources import readers
from datasets.sources.image_source import ImagesConfig, Item, SourceConfig, motion, rejection
from ldm.images import read_mask
from ldm.settings.config import setting

WHITE = 240  # all channels from here on: the paper behind a DressCode garment (published for red alone)
SEAM = 3  # erosions of a FashionTryon segment (published)
ANY_SIZE = readers.Rules(whole=0.0, area=(0.0, 1.0), min_side=0.0, max_side=1.0)


@dataclass(frozen=True, kw_only=True)
class ObjectConfig(SourceConfig):
    """The first view of an item is the object, the others are places for it."""

    def draws(self, item: Item, rng: np.random.Generator) -> Iterator[readers.ViewPair]:
        first, *places = self.views(item)
        if not places:
            raise Rejected(f"no person: beside {first.image}")
        for k in rng.permutation(len(places)):
            yield first, places[k]


@dataclass(frozen=True, kw_only=True)
class TryOnConfig(ObjectConfig, ImagesConfig):
    dynamics: int = motion(2)
    rules: readers.Rules = rejection(readers.Rules(max_side=1.0, sides="both"))


@dataclass(frozen=True, kw_only=True)
class VitonHdConfig(TryOnConfig):
    """VITON-HD: one folder per kind of image, the same names in all."""

    cloth: Path = setting(help="garments on white")
    cloth_masks: Path = setting(help="their masks")
    parses: Path = setting(help="image-parse-v3, palette images of body parts")
    label: int = setting(5, low=1, help="id of the upper garment")

    def read(self) -> list[Item]:
        garments = readers.images_in(readers.folder(self.cloth, "cloth"))
        return readers.require([(garment.stem, garment) for garment in garments], f"garments in {self.cloth}")

    def views(self, item: Item) -> Iterator[readers.ObjectView]:
        name, garment = item
        yield readers.ObjectView(garment, partial(read_mask, self.cloth_masks / garment.name))
        person = partial(readers.id_mask, self.parses / f"{name}.png", self.label)
        yield readers.ObjectView(self.images / garment.name, person, self.tree)


@dataclass(frozen=True, kw_only=True)
class DressCodeConfig(TryOnConfig):
    """One category of DressCode: person N_0.jpg, garment on white N_1.jpg, label map N_4.png."""

    label_maps: Path = setting(help="label maps N_4.png")
    label: int = setting(4, low=1, help="id of the garment: 4 upper clothes")

    def read(self) -> list[Item]:
        maps = readers.images_in(readers.folder(self.label_maps, "label_maps"), (".png",))
        items = [(path.stem.removesuffix("_4"), path) for path in maps if path.stem.endswith("_4")]
        return readers.require(items, f"label maps N_4.png in {self.label_maps}")

    def views(self, item: Item) -> Iterator[readers.ObjectView]:
        name, label_map = item
        garment = self.images / f"{name}_1.jpg"
        message = f"object absent: {garment} is white"
        yield readers.ObjectView(garment, partial(readers.dark_mask, garment, np.min, WHITE - 1, message))
        person = partial(readers.id_mask, label_map, self.label)
        yield readers.ObjectView(self.images / f"{name}_0.jpg", person, self.tree)


@dataclass(frozen=True, kw_only=True)
class FashionTryonConfig(TryOnConfig):
    """FashionTryon: a folder per garment with target.jpg, mask.jpg, and P.jpg, P/segment.png per person."""

    label: int = setting(7, low=1, help="id of the upper garment in segment.png")
    rules: readers.Rules = rejection(readers.Rules(max_side=1.0))

    def read(self) -> list[Item]:
        garments = readers.subfolders(self.images)
        return readers.require([(garment.name, garment) for garment in garments], f"folders in {self.images}")

    def views(self, item: Item) -> Iterator[readers.ObjectView]:
        home = item[1]
        yield readers.ObjectView(home / "target.jpg", partial(read_mask, home / "mask.jpg"))
        for person in readers.subfolders(home):
            segment = partial(self._worn, person / "segment.png")
            yield readers.ObjectView(home / f"{person.name}.jpg", segment, self.tree)

    def _worn(self, path: Path) -> np.ndarray:
        """(h, w) bool of the garment's segment without its ragged seam."""
        segment = readers.id_mask(path, self.label).astype(np.uint8)
        inside = cv2.erode(segment, np.ones((3, 3), np.uint8), iterations=SEAM) > 0
        message = f"object absent: nothing of id {self.label} is left in {path} inside its seam"
        return readers.require_mask(inside, message)


@dataclass(frozen=True, kw_only=True)
class DreamBoothConfig(ObjectConfig):
    """An item is a concept; a background is drawn. With `object_masks` the second published layout.

    cut-outs  OBJECTS/CONCEPT/*.png, BACKGROUNDS/NAME_GT.png, NAME_mask.png (white = to fill)
    masks     OBJECTS/CONCEPT.jpg, OBJECT_MASKS/CONCEPT.jpg, BACKGROUNDS/NAME.jpg, NAME_mask.jpg (black)
    """

    objects: Path = setting(help="cut-outs CONCEPT/*.png, or images CONCEPT.jpg with `object_masks`")
    backgrounds: Path = setting(help="NAME_GT.png with NAME_mask.png, or NAME.jpg with NAME_mask.jpg")
    depth: Path = setting(help="depth maps of the backgrounds")
    object_masks: Path | None = setting(None, help="masks CONCEPT.jpg of the second layout")
    dynamics: int = motion(1)
    rules: readers.Rules = rejection(ANY_SIZE, "; by default none")

    def read(self) -> list[Item]:
        tree, cut_outs = readers.Tree(self.backgrounds, self.depth), self.object_masks is None
        tree.check()
        readers.folder(self.objects, "objects")
        objects, places = [], []
        if self.object_masks is not None:
            masks = readers.folder(self.object_masks, "object_masks")
            for image in readers.images_in(self.objects):
                view = readers.ObjectView(image, partial(read_mask, masks / image.name))
                objects.append((image.stem, view))
        else:
            for concept in readers.subfolders(self.objects):
                for image in readers.images_in(concept, (".png",))[:1]:  # the first cut-out
                    view = readers.ObjectView(image, partial(readers.alpha_mask, image))
                    objects.append((concept.name, view))
        mask_files = [mask for mask in readers.images_in(self.backgrounds) if mask.stem.endswith("_mask")]
        for name, mask in sorted({mask.stem.removesuffix("_mask"): mask for mask in mask_files}.items()):
            message = f"nothing to fill: mask {mask} has no black pixel"
            black = partial(readers.dark_mask, mask, np.max, 127, message)
            image = mask.with_name(name + ("_GT" if cut_outs else "") + mask.suffix)
            places.append(readers.ObjectView(image, partial(read_mask, mask) if cut_outs else black, tree))
        readers.require(objects, f"objects in {self.objects}")
        readers.require(places, f"masks NAME_mask in {self.backgrounds}")
        return [(name, view, places) for name, view in objects]

    def views(self, item: Item) -> Iterator[readers.ObjectView]:
        yield from (item[1], *item[2])
