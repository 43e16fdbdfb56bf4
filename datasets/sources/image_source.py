"""A source of images in files, declared by one section of the settings.

A section says where the files are, lists the items (`read`), gives the views of an item (`views`) and orders
its pairs of reference and target at random (`draws`), of which the first acceptable one is taken.
`ImageSource` makes a `datasets.base.ExampleSource` of any section.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import Rejected
from datasets.geometry import bbox_of_mask
from datasets.inputs import Inputs, PairOptions
from datasets.sources.coco import json_entry
from datasets.sources.readers import ObjectView, Rules, Tree, Turn, ViewPair, read_annotated, smaller
from ldm.files import nfc, read_json
from ldm.images import depth_ends, resize
from ldm.settings.config import CheckedSettings, setting

Reading = tuple[Turn | None, int]  # what turned an image, and how many times smaller it is
Item = tuple[Any, ...]  # its name, unique in the source and equal on every machine, then what `views` needs


def motion(default: int) -> Any:
    return setting(default, low=0, high=2, help="0: still, 1: video, 2: new view")


def rejection(default: Rules, more: str = "") -> Any:
    return setting(default, help=f"which objects are rejected{more}")


@dataclass(frozen=True, kw_only=True)
class SourceConfig(CheckedSettings):
    """What the sections of all sources of files have. By default one view is reference and target."""

    dynamics: int = motion(0)
    rules: Rules = rejection(Rules())

    def open(self, index: Path | None = None) -> "ImageSource":
        """The source; index: JSON file of the items to use (run_dataset_debug.py --validate)."""
        return ImageSource(self, index)

    def read(self) -> list[Item]:
        """All items in an order that does not depend on the machine; ValueError when there is none."""
        raise NotImplementedError

    def views(self, item: Item) -> Iterator[ObjectView]:
        """Every view that an example of the item may read."""
        raise NotImplementedError

    def draws(self, item: Item, rng: np.random.Generator) -> Iterator[ViewPair]:
        """Reference and target of every object in a random order: an object of an image serves as both."""
        views = list(self.views(item))
        for k in rng.permutation(len(views)):
            yield views[k], views[k]


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(SourceConfig):
    images: Path = setting(was=("pictures",), help="images of the targets")
    depth: Path = setting(help="their depth maps, the same names as PNG")

    @property
    def tree(self) -> Tree:
        return Tree(self.images, self.depth)

    def open(self, index: Path | None = None) -> "ImageSource":
        self.tree.check()
        return super().open(index)


class ImageSource:
    """The items of a section, or of an index. options: of the pairs, which decide how images are read."""

    options: PairOptions | None = None

    def __init__(self, config: SourceConfig, index: Path | None = None) -> None:
        self.config, self.rules, self.dynamics = config, config.rules, config.dynamics
        self.as_stored: set[Path] = set()  # images read so far against their EXIF orientation
        self.items = config.read()
        if index is None:
            return
        known = {nfc(item[0]): item for item in self.items}
        names = [nfc(str(name)) for name in json_entry(read_json(index), "items", index, list)]
        if (unknown := [name for name in names if name not in known]) or not names:
            lacking = f"{len(unknown)} items that the source lacks, such as {unknown[0]}" if unknown else ""
            wrong = f"index {index} lists {lacking or 'no items'}"
            raise ValueError(f"{wrong}; make it again with run_dataset_debug.py --validate")
        self.items = [known[name] for name in names]

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index][0]

    def views(self, index: int) -> Iterator[ObjectView]:
        return self.config.views(self.items[index])

    def read(self, view: ObjectView, mask: np.ndarray, shrink: int = 1) -> tuple[np.ndarray, Turn | None]:
        """The image of a view, of the size of its mask (h, w), as in `read_annotated`."""
        rgb_u8, turn = read_annotated(view.image, mask.shape, shrink, view.data)
        if turn is not None:
            self.as_stored.add(view.image)
        return rgb_u8, turn

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        """An example without counterfactual. Masks are checked first, so a rejection costs no image.

        The first acceptable object of a random order is one drawn among all acceptable ones. Where there is
        none, the item is rejected for what is wrong with the first object.
        """
        why = Rejected("no object: no annotation of this image is large enough")
        for number, (reference, target) in enumerate(self.config.draws(self.items[index], rng)):
            try:
                self.rules.check_reference(reference_mask := reference.mask())
                target_mask = reference_mask if target is reference else target.mask()
                self.rules.check_target(target_mask)
                break
            except Rejected as error:
                why = why if number else error
        else:
            raise why
        reference_u8, small_reference, how = self.shown(reference, reference_mask)
        background_u8, small_target, target_how = reference_u8, small_reference, how
        if target is not reference:
            background_u8, small_target, target_how = self.shown(target, target_mask)
        depth_01 = target.read_depth(target_mask.shape, *target_how)
        files = reference_u8, small_reference, background_u8, depth_01
        if self.options is None or self.options.depth_hint == "target":
            return Inputs(*files, target_mask=small_target, mode="inpaint")
        own_01: np.ndarray | None = depth_01 if target is reference else None
        if target is not reference and reference.tree is not None:
            own_01 = reference.read_depth(reference_mask.shape, *how)
        far, near = depth_ends(depth_01[small_target])
        return Inputs(*files, target_mask=small_target, mode="replace", depth_range=(far, near),
                      target_u8=background_u8, reference_depth_01=own_01)  # fmt: skip

    def shown(self, view: ObjectView, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, Reading]:
        """The image of a view for its object (h, w) bool, the mask in its size, and how it is read."""
        shrink = 1
        if side := self.options.object_side if self.options else 0:
            x0, y0, x1, y1 = bbox_of_mask(mask)
            shrink = max(n for n in (1, 2, 4, 8) if n == 1 or max(x1 - x0, y1 - y0) >= n * side)
        rgb_u8, turn = self.read(view, mask, shrink)
        if shrink > 1:
            mask = resize(mask.astype(np.uint8) * 255, smaller(mask.shape, shrink)) > 127
        return rgb_u8, mask, (turn, shrink)
