"""One's own images: folders `images/`, `masks/`, optional `depth/`, optional list `pairs.txt`.

    images/cup.jpg  masks/cup.png  depth/cup.png
    images/hat.jpg  masks/hat_1.png  masks/hat_2.png  depth/hat.png

A mask is white where the object is. Without pairs.txt the object of a mask is reference and target; with it
every line names the mask of the reference and the mask of the target: `cup_left cup_right`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from datasets.inputs import Inputs
from datasets.sources.readers import (
    Rules,
    Tree,
    View,
    check_reference,
    check_target,
    file_mask,
    make_inputs,
    read_masked,
    require,
)
from datasets.sources.saliency import masked_images
from ldm.settings.config import check_settings, setting

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Where one's own images are."""

    root: Path = setting(help="folder that holds images/ and masks/")
    depth: Path | None = setting(
        None, help="depth maps of images/; not set: ROOT/depth, and without that folder a constant depth"
    )
    pairs: Path | None = setting(None, help="list of pairs; not set: ROOT/pairs.txt where it exists")
    dynamics: int = setting(0, low=0, high=2, help="0: still, 1: video, 2: new view")
    rules: Rules = setting(Rules(), help="which objects are refused")

    def __post_init__(self) -> None:
        check_settings(self)


class OwnFolder:
    """Images and masks with equal names, an object per mask."""

    def __init__(self, config: FolderConfig) -> None:
        self.rules, self.dynamics = config.rules, config.dynamics
        images, root = config.root / "images", config.root
        depth = config.depth or root / "depth"
        if config.depth is not None and not depth.is_dir():
            raise ValueError(f"depth: there is no folder {depth}")
        self.tree = Tree(images, depth) if depth.is_dir() else None
        if self.tree is None:
            log.warning("%s has no folder depth: a constant depth is shown to the model", root)
        found = masked_images(images, root / "masks")
        self.objects = {mask.stem: View(image, partial(file_mask, mask), self.tree) for image, mask in found}
        require(found, f"masks with images in {root}")
        self.items = self._pairs(config)

    def _pairs(self, config: FolderConfig) -> list[tuple[str, str]]:
        """(reference, target) names of masks."""
        listing = config.pairs or config.root / "pairs.txt"
        if config.pairs is None and not listing.is_file():
            return [(name, name) for name in self.objects]
        if not listing.is_file():
            raise ValueError(f"pairs: there is no file {listing}")
        pairs = []
        for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
            names = line.split()
            unknown = [name for name in names if name not in self.objects]
            if names and (len(names) != 2 or unknown):
                wrong = f"there is no mask {unknown[0]}" if unknown else f"{len(names)} names"
                raise ValueError(f"{listing}, line {number}: {wrong}; a line is REFERENCE TARGET, two masks")
            if names:
                pairs.append((names[0], names[1]))
        return require(pairs, f"pairs in {listing}")

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        reference, target = self.items[index]
        return target if reference == target else f"{reference} in {target}"

    def views(self, index: int) -> Iterator[View]:
        for name in dict.fromkeys(self.items[index]):
            yield self.objects[name]

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        reference, target = (self.objects[name] for name in self.items[index])
        if self.tree is not None:
            return make_inputs(reference, target, self.rules)
        return without_depth(reference, target, self.rules)


def without_depth(reference: View, target: View, rules: Rules) -> Inputs:
    """An example whose depth is the same everywhere."""
    reference_mask, target_mask = reference.mask(), target.mask()
    check_reference(reference_mask, rules)
    check_target(target_mask, rules)
    return Inputs(
        reference_u8=read_masked(reference, reference_mask),
        reference_mask=reference_mask,
        background_u8=read_masked(target, target_mask),
        background_depth_01=np.zeros(target_mask.shape, np.float32),
        target_mask=target_mask,
        mode="inpaint",
    )
