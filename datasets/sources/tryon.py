"""Garments on persons: VITON-HD, DressCode, FashionTryon.

The reference is a garment, the target a person who wears it. A garment may fill the image, so the target's
size is not limited. Layouts, addresses and licences: docs/datasets.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from datasets.base import Rejected
from datasets.inputs import Inputs
from datasets.sources.annotations import id_mask, shrink
from datasets.sources.readers import (
    Rules,
    Tree,
    View,
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

WHITE = 240  # red values from here on are the paper behind a DressCode garment
SEAM = 3  # erosions of a FashionTryon segment


@dataclass(frozen=True, kw_only=True)
class TryOnConfig:
    """What garment sources have in common."""

    images: Path = setting(was=("pictures",), help="persons")
    depth: Path = setting(help="depth maps of the persons")
    dynamics: int = setting(2, low=0, high=2, help="0: still, 1: video, 2: new view")
    rules: Rules = setting(Rules(max_side=1.0, sides="both"), help="which objects are refused")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class VitonHdConfig(TryOnConfig):
    """VITON-HD: one folder per kind of image, the same names in all."""

    cloth: Path = setting(help="garments on white")
    cloth_masks: Path = setting(help="their masks")
    parses: Path = setting(help="image-parse-v3, palette images of body parts")
    label: int = setting(5, low=1, help="id of the upper garment")


class VitonHd:
    """A garment and the person who wears it, by name."""

    def __init__(self, config: VitonHdConfig) -> None:
        self.config, self.rules, self.dynamics = config, config.rules, config.dynamics
        self.tree = depth_tree(config.images, config.depth)
        self.items = require(images_in(folder(config.cloth, "cloth")), f"garments in {config.cloth}")

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index].stem

    def views(self, index: int) -> Iterator[View]:
        cloth, config = self.items[index], self.config
        parse = config.parses / f"{cloth.stem}.png"
        yield View(cloth, partial(file_mask, config.cloth_masks / cloth.name))
        yield View(config.images / cloth.name, partial(id_mask, parse, config.label), self.tree)

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        garment, person = self.views(index)
        return make_inputs(garment, person, self.rules)


@dataclass(frozen=True, kw_only=True)
class DressCodeConfig(TryOnConfig):
    """One category of DressCode: images N_0.jpg (person) and N_1.jpg (garment), label maps N_4.png."""

    label_maps: Path = setting(help="label maps N_4.png")
    label: int = setting(4, low=1, help="id of the garment: 4 upper clothes")


class DressCode:
    """A garment photographed on white and its wearer."""

    def __init__(self, config: DressCodeConfig) -> None:
        self.rules, self.dynamics, self.label = config.rules, config.dynamics, config.label
        self.tree = depth_tree(config.images, config.depth)
        maps = images_in(folder(config.label_maps, "label_maps"), (".png",))
        self.items = require(
            [path for path in maps if path.stem.endswith("_4")], f"label maps N_4.png in {config.label_maps}"
        )

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index].stem.removesuffix("_4")

    def views(self, index: int) -> Iterator[View]:
        name = self.name(index)
        garment = self.tree.images / f"{name}_1.jpg"
        yield View(garment, partial(_not_white, garment))
        person = self.tree.images / f"{name}_0.jpg"
        yield View(person, partial(id_mask, self.items[index], self.label), self.tree)

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        garment, person = self.views(index)
        return make_inputs(garment, person, self.rules)


def _not_white(path: Path) -> np.ndarray:
    """(h, w) bool: what is not the white behind a garment."""
    mask = read_image(path).rgb_u8[..., 0] < WHITE
    if not mask.any():
        raise Rejected(f"object absent: {path} is white")
    return mask


@dataclass(frozen=True, kw_only=True)
class FashionTryonConfig(TryOnConfig):
    """FashionTryon: a folder per garment with target.jpg, mask.jpg, and P.jpg, P/segment.png per person."""

    label: int = setting(7, low=1, help="id of the upper garment in segment.png")
    rules: Rules = setting(Rules(max_side=1.0), help="which objects are refused")


class FashionTryon:
    """A garment and one of the persons who wear it."""

    def __init__(self, config: FashionTryonConfig) -> None:
        self.rules, self.dynamics, self.label = config.rules, config.dynamics, config.label
        self.tree: Tree = depth_tree(config.images, config.depth)
        self.items = require(subfolders(config.images), f"folders in {config.images}")

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index].name

    def views(self, index: int) -> Iterator[View]:
        """The garment, then every person."""
        home = self.items[index]
        yield View(home / "target.jpg", partial(file_mask, home / "mask.jpg"))
        for person in subfolders(home):
            segment = partial(_worn, person / "segment.png", self.label)
            yield View(home / f"{person.name}.jpg", segment, self.tree)

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        garment, *persons = self.views(index)
        if not persons:
            raise Rejected(f"no person: {self.items[index]}")
        return make_inputs(garment, persons[int(rng.integers(len(persons)))], self.rules)


def _worn(path: Path, label: int) -> np.ndarray:
    """(h, w) bool of a segment without its ragged seam."""
    mask = shrink(id_mask(path, label), SEAM)
    if not mask.any():
        raise Rejected(f"object absent: nothing of id {label} is left in {path} inside its seam")
    return mask
