"""What all sources of real images share: views, the published rejection rules, an example of two views.

Legend: h w pixels. A view is an image with the mask of one object; an example takes the object of a
reference view and paints it anew in a target view, whose depth map is needed. Both may be the same view.
Messages of Rejected start with a short reason and a colon, which is what tables count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from datasets.base import Rejected
from datasets.geometry import bbox_of_mask, expand_box
from datasets.inputs import Inputs
from datasets.masks import mask_score
from ldm.images import read_depth, read_image, read_mask
from ldm.settings.config import check_settings, setting

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
TARGET_MARGIN = 1.1  # the region round the target object over its box, as published


@dataclass(frozen=True)
class Rules:
    """Which objects are refused; the defaults are the published ones."""

    whole: float = setting(0.9, low=0, high=1, help="least share of the reference's largest piece")
    one_piece: bool = setting(False, help="refuse a reference of several pieces")
    area: tuple[float, float] = setting((0.01, 0.64), low=0, high=1, help="object's share of its image")
    min_side: float = setting(0.1, low=0, high=1, help="least side of the reference over the image's")
    max_side: float = setting(0.8, low=0, high=1, help="largest side of the target's region, likewise")
    sides: str = setting(
        "either", choices=("either", "both"), help="refuse when either side is out of range, or when both are"
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Tree:
    """A folder of images, and the folder of their depth maps: the same names, as PNG."""

    images: Path
    depth: Path

    def depth_of(self, image: Path) -> Path:
        return self.depth / image.relative_to(self.images).with_suffix(".png")


@dataclass(frozen=True)
class View:
    """One image and where the object is in it. mask() gives (h, w) bool; tree None: never a target."""

    image: Path
    mask: Callable[[], np.ndarray]
    tree: Tree | None = None


def make_inputs(reference: View, target: View, rules: Rules) -> Inputs:
    """An example without counterfactual. Masks are judged first, so a refusal costs no image."""
    reference_mask = reference.mask()
    check_reference(reference_mask, rules)
    same = target is reference
    target_mask = reference_mask if same else target.mask()
    check_target(target_mask, rules)
    reference_u8 = read_masked(reference, reference_mask)
    background_u8 = reference_u8 if same else read_masked(target, target_mask)
    return Inputs(
        reference_u8=reference_u8,
        reference_mask=reference_mask,
        background_u8=background_u8,
        background_depth_01=read_target_depth(target, background_u8),
        target_mask=target_mask,
        mode="inpaint",
    )


def check_reference(mask: np.ndarray, rules: Rules) -> None:
    """Refuse a reference object (h, w) bool that is torn, cut or of the wrong size."""
    _check_area(mask, rules, "reference")
    pieces = mask_score(mask)
    if pieces < rules.whole:
        raise Rejected(f"reference in pieces: the largest is {pieces:.0%} of it, at least {rules.whole:.0%}")
    if rules.one_piece:
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        if len(contours) != 1:
            raise Rejected(f"reference in pieces: {len(contours)} pieces, 1 allowed")
    x0, y0, x1, y1 = bbox_of_mask(mask)
    h, w = mask.shape
    if _refused(((y1 - y0) / h < rules.min_side, (x1 - x0) / w < rules.min_side), rules):
        raise Rejected(f"reference too small: {x1 - x0} x {y1 - y0} pixels of {w} x {h}")


def check_target(mask: np.ndarray, rules: Rules) -> None:
    """Refuse a target object (h, w) bool of the wrong size."""
    _check_area(mask, rules, "target")
    h, w = mask.shape
    x0, y0, x1, y1 = expand_box(bbox_of_mask(mask), TARGET_MARGIN, (h, w))
    if _refused(((y1 - y0) / h > rules.max_side, (x1 - x0) / w > rules.max_side), rules):
        raise Rejected(f"target too large: {x1 - x0} x {y1 - y0} pixels of {w} x {h}")


def _check_area(mask: np.ndarray, rules: Rules, what: str) -> None:
    share = np.count_nonzero(mask) / mask.size
    if not rules.area[0] <= share <= rules.area[1]:
        size = "small" if share < rules.area[0] else "large"
        allowed = f"{rules.area[0]:.0%} to {rules.area[1]:.0%}"
        raise Rejected(f"{what} too {size}: covers {share:.1%} of its image, allowed {allowed}")


def _refused(outside: tuple[bool, bool], rules: Rules) -> bool:
    return any(outside) if rules.sides == "either" else all(outside)


def read_masked(view: View, mask: np.ndarray) -> np.ndarray:
    """The image (h, w, 3) uint8 of a view, checked against its mask (h, w)."""
    image = read_image(view.image)
    if image.size != mask.shape:
        (h, w), (mask_h, mask_w) = image.size, mask.shape
        raise ValueError(f"{view.image} is {w} x {h} pixels, its mask is {mask_w} x {mask_h}")
    return image.rgb_u8


def read_target_depth(view: View, image_u8: np.ndarray) -> np.ndarray:
    """depth_01 (h, w) of a target view; a missing file is named with the command that makes it."""
    if view.tree is None:
        raise ValueError(f"{view.image} has no depth map, so it cannot be a target")
    path = view.tree.depth_of(view.image)
    if not path.is_file():
        command = f"python -m ldm.precompute_depth {view.tree.images} {view.tree.depth}"
        raise ValueError(f"depth map {path} does not exist; `{command}` makes it")
    return read_depth(path, size=(image_u8.shape[0], image_u8.shape[1]))


def file_mask(path: Path) -> np.ndarray:
    """A black and white mask file as bool (h, w)."""
    return read_mask(path)


def alpha_mask(path: Path) -> np.ndarray:
    """The opaque part of a cut-out as bool (h, w)."""
    alpha_u8 = read_image(path).alpha_u8
    if alpha_u8 is None:
        raise ValueError(f"{path} has no transparency, so it is not a cut-out")
    mask = alpha_u8 > 127
    if not mask.any():
        raise ValueError(f"cut-out {path} is empty: no pixel is opaque")
    return mask


def two_frames(count: int, interval: int, rng: np.random.Generator) -> tuple[int, int]:
    """Reference and target of `count` frames, at least count // interval apart (published sampling)."""
    apart = count // interval
    start = int(rng.integers(0, count - apart))
    return start, min(start + int(rng.integers(apart, count - start)), count - 1)


def folder(path: Path, key: str) -> Path:
    """A folder that must exist; the error names the setting."""
    if not path.is_dir():
        raise ValueError(f"{key}: there is no folder {path}; set the key to where the data are")
    return path


def depth_tree(images: Path, depth: Path) -> Tree:
    """The tree of a source, refused when its depth maps were never made."""
    folder(images, "images")
    if not depth.is_dir():
        command = f"python -m ldm.precompute_depth {images} {depth}"
        raise ValueError(f"depth: there is no folder {depth}; `{command}` makes the depth maps")
    return Tree(images, depth)


def subfolders(path: Path) -> list[Path]:
    """The folders in a folder, sorted."""
    return sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))


def images_in(path: Path, suffixes: tuple[str, ...] = IMAGES) -> list[Path]:
    """The image files in a folder, sorted."""
    found = (one for one in path.iterdir() if one.suffix.lower() in suffixes)
    return sorted(one for one in found if not one.name.startswith("."))


def picked(views: list[View], rng: np.random.Generator) -> View:
    """One of several objects of an image; Rejected when there is none."""
    if not views:
        raise Rejected("no object: no annotation of this image is large enough")
    return views[int(rng.integers(len(views)))]


def require(items: list, what: str) -> list:
    """The items of a source, refused when there is none."""
    if not items:
        raise ValueError(f"no {what}")
    return items
