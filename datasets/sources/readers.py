"""Files of sources: views of objects, the published rejection rules, images of masks and ids.

Legend: h w pixels. A view is an image with the mask of one object; an example takes the object of a
reference view and paints it anew in a target view, whose depth map is needed. Both may be the same view.
Messages of Rejected start with a short reason and a colon, which is what tables count.
"""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from datasets.base import Rejected
from datasets.geometry import Size, bbox_of_mask, expand_box
from ldm.decode import DECODER_ERRORS, image_ids, opened
from ldm.files import located, read_json, same_file
from ldm.images import read_depth, read_image, resize
from ldm.precompute_depth import RECORD
from ldm.registry.models import warn_of_small
from ldm.settings.config import CheckedSettings, setting

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
Turn = Callable[[np.ndarray], np.ndarray]
# EXIF orientation that exchanges height and width -> from upright to stored pixels.
TO_STORED: dict[int, Turn] = {
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, -1),
}
TARGET_MARGIN = 1.1  # the region round the target object over its box, as published


@dataclass(frozen=True)
class Rules(CheckedSettings):
    """Which objects are rejected; the defaults are the published ones."""

    whole: float = setting(0.9, low=0, high=1, help="least fraction in the reference's largest piece")
    one_piece: bool = setting(False, help="reject a reference of several pieces")
    area: tuple[float, float] = setting((0.01, 0.64), low=0, high=1, help="object's fraction of its image")
    min_side: float = setting(0.1, low=0, high=1, help="least side of the reference over the image's")
    max_side: float = setting(0.8, low=0, high=1, help="largest side of the target's region, likewise")
    sides: str = setting("either", choices=("either", "both"), help="reject where a side is wrong, or both")

    def check_reference(self, mask: np.ndarray) -> None:
        """Reject a reference object (h, w) bool that is torn, cut or of the wrong size."""
        self._check_area(mask, "reference")
        x0, y0, x1, y1 = bbox_of_mask(mask)
        inside = mask[y0:y1, x0:x1].astype(np.uint8)
        contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        areas = [cv2.contourArea(contour) for contour in contours]
        whole = max(areas) / sum(areas) if np.count_nonzero(mask) >= 10 and sum(areas) > 0 else 0.0
        if whole < self.whole:
            raise Rejected(f"reference in pieces: the largest is {whole:.0%}, at least {self.whole:.0%}")
        if self.one_piece and len(contours) != 1:
            raise Rejected(f"reference in pieces: {len(contours)} pieces, 1 allowed")
        h, w = mask.shape
        if self._out_of_range((y1 - y0) / h < self.min_side, (x1 - x0) / w < self.min_side):
            raise Rejected(f"reference too small: {x1 - x0} x {y1 - y0} pixels of {w} x {h}")

    def check_target(self, mask: np.ndarray) -> None:
        """Reject a target object (h, w) bool of the wrong size."""
        self._check_area(mask, "target")
        h, w = mask.shape
        x0, y0, x1, y1 = expand_box(bbox_of_mask(mask), TARGET_MARGIN, (h, w))
        if self._out_of_range((y1 - y0) / h > self.max_side, (x1 - x0) / w > self.max_side):
            raise Rejected(f"target too large: {x1 - x0} x {y1 - y0} pixels of {w} x {h}")

    def _check_area(self, mask: np.ndarray, what: str) -> None:
        (low, high), fraction = self.area, np.count_nonzero(mask) / mask.size
        if not low <= fraction <= high:
            size = "small" if fraction < low else "large"
            covers = f"covers {fraction:.1%} of its image, allowed {low:.0%} to {high:.0%}"
            raise Rejected(f"{what} too {size}: {covers}")

    def _out_of_range(self, *sides: bool) -> bool:
        return any(sides) if self.sides == "either" else all(sides)


@dataclass(frozen=True)
class Tree:
    """A folder of images, and the folder of their depth maps: the same names, as PNG. None: all flat."""

    images: Path
    depth: Path | None

    def check(self) -> None:
        """ValueError where a folder is missing; warns where a stand-in for a depth network made the maps."""
        folder(self.images, "images")
        if self.depth is not None and not self.depth.is_dir():
            raise ValueError(f"depth: there is no folder {self.depth}; `{self.command}` makes the depth maps")
        if self.depth is not None and (record := self.depth / RECORD).is_file():
            warn_of_small(located(read_json(record)["model"]), photographs=True)

    @property
    def command(self) -> str:
        return f"python -m ldm.precompute_depth {self.images} {self.depth}"


@dataclass(frozen=True)
class ObjectView:
    """One image and where the object is in it. mask() gives (h, w) bool; tree None: never a target.

    data, depth_data: the bytes of the image and its depth map, where they are no files of their own
    """

    image: Path
    mask: Callable[[], np.ndarray]
    tree: Tree | None = None
    data: bytes | None = None
    depth_data: bytes | None = None

    @property
    def depth_path(self) -> Path:
        """The file of its depth map; ValueError where there is none names the command that makes it."""
        if self.tree is None or self.tree.depth is None:
            raise ValueError(f"{self.image} has no depth map, so it cannot be a target")
        if self.depth_data is not None:
            return self.image
        path = same_file(self.tree.depth / self.image.relative_to(self.tree.images).with_suffix(".png"))
        if not path.is_file():
            raise ValueError(f"depth map {path} does not exist; `{self.tree.command}` makes it")
        return path

    def read_depth(self, size_hw: Size, turn: Turn | None = None, shrink: int = 1) -> np.ndarray:
        """depth_01 (h, w) of a target; a missing file is named with the command that makes it.

        The map has the size of the image, or is smaller with its proportions: it is enlarged.
        turn: of an image that is read as stored; it turns the map of the upright image too
        shrink: of the image, which the map then fits
        """
        shape = smaller(size_hw, shrink)
        if self.tree is not None and self.tree.depth is None:
            return np.zeros(shape, np.float32)
        path = self.depth_path
        depth_01, (h, w) = read_depth(path, data=self.depth_data), size_hw
        if turn is not None and is_map_of(depth_01.shape, (w, h)):
            depth_01 = turn(depth_01)
        if not is_map_of(depth_01.shape, size_hw):
            got = f"{depth_01.shape[1]} x {depth_01.shape[0]} pixels, its image is {w} x {h} (width x height)"
            raise ValueError(f"depth map {path} is {got}; a smaller map needs its proportions")
        same = depth_01.shape == shape
        return depth_01 if same else resize(depth_01, shape, how="area" if shrink > 1 else "linear")


ViewPair = tuple[ObjectView, ObjectView]  # reference, target; may be the same view


def smaller(size_hw: Size, shrink: int) -> Size:
    """The size of an image that is read 1, 2, 4 or 8 times smaller."""
    return -(-size_hw[0] // shrink), -(-size_hw[1] // shrink)


def is_map_of(shape: tuple[int, ...], size_hw: Size) -> bool:
    """Whether a map has the size (h, w) of an image, or is smaller with its proportions, rounded."""
    (n, m), (h, w) = shape, size_hw
    return shape == tuple(size_hw) or (n <= h and m <= w and abs(n * w - m * h) <= max(h, w))


def read_annotated(
    path: Path, size_hw: Size, shrink: int = 1, data: bytes | None = None
) -> tuple[np.ndarray, Turn | None]:
    """An image (h, w, 3) uint8 in the size of its annotation, and what turned it; ValueError if neither fits.

    It is upright (None) where that fits, and as stored where only that fits: the annotation ignores the EXIF
    orientation then. Orientations that keep the size do not show; such an image is upright.
    shrink: by which the result is smaller than its annotation, its sides rounded up
    data: the bytes of the image, where it is no file of its own
    """
    rgb_u8 = read_image(path, data, shrink).rgb_u8
    h, w = rgb_u8.shape[:2]
    if shrink > 1:
        with Image.open(same_file(path) if data is None else io.BytesIO(data)) as image:
            stored = sorted(image.size)
        h, w = stored if h < w else stored[::-1]  # of the whole image, upright
        small = smaller((h, w), shrink)
        rgb_u8 = rgb_u8 if rgb_u8.shape[:2] == small else resize(rgb_u8, small)
    if (h, w) == tuple(size_hw):
        return rgb_u8, None
    if (w, h) == tuple(size_hw):
        turn = None
        file = same_file(path) if data is None else io.BytesIO(data)
        with contextlib.suppress(*DECODER_ERRORS), Image.open(file) as image:
            turn = TO_STORED.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        if turn is not None:
            return np.ascontiguousarray(turn(rgb_u8)), turn
    raise ValueError(f"{path} is {w} x {h} pixels, its mask is {size_hw[1]} x {size_hw[0]}")


def require_mask(mask: np.ndarray, message: str) -> np.ndarray:
    """The mask (h, w) bool; Rejected with the message where it is empty."""
    if not mask.any():
        raise Rejected(message)
    return mask


def alpha_mask(path: Path) -> np.ndarray:
    """The opaque part of a cut-out as bool (h, w)."""
    alpha_u8 = read_image(path).alpha_u8
    if alpha_u8 is None:
        raise ValueError(f"{path} has no transparency, so it is not a cut-out")
    if not (alpha_u8 > 127).any():
        raise ValueError(f"cut-out {path} is empty: no pixel is opaque")
    return alpha_u8 > 127


def folder(path: Path, key: str) -> Path:
    """A folder that must exist; the error names the setting."""
    path = same_file(path)
    if not path.is_dir():
        raise ValueError(f"{key}: there is no folder {path}; set the key to where the data are")
    return path


def subfolders(path: Path) -> list[Path]:
    """The folders in a folder, sorted, less hidden ones and what an archive of macOS holds of its own."""
    folders = (entry for entry in path.iterdir() if entry.is_dir())
    return sorted(entry for entry in folders if not entry.name.startswith((".", "__MACOSX")))


def images_in(path: Path, suffixes: tuple[str, ...] = IMAGES) -> list[Path]:
    """The image files in a folder, sorted."""
    files = (entry for entry in path.iterdir() if entry.suffix.lower() in suffixes)
    return sorted(file for file in files if not file.name.startswith("."))


def require(items: list, what: str) -> list:
    """The items of a source, refused when there is none."""
    if not items:
        raise ValueError(f"no {what}")
    return items


def read_ids(path: Path) -> np.ndarray:
    """The ids (h, w) of an image: palette index, gray value, or R + 256 G + 65536 B."""
    with opened(path) as image:
        return image_ids(image, path)


def id_mask(path: Path, label: int, ids: np.ndarray | None = None) -> np.ndarray:
    """Bool (h, w) where the ids equal `label`; Rejected where none does. ids: if known"""
    ids = read_ids(path) if ids is None else ids
    return require_mask(ids == label, f"object absent: id {label} in {path}")


def dark_mask(path: Path, channel: Callable[..., np.ndarray], limit: int, message: str) -> np.ndarray:
    """(h, w) bool: the darkest (np.min) or lightest (np.max) channel is at most `limit`; Rejected if none."""
    return require_mask(channel(read_image(path).rgb_u8, axis=2) <= limit, message)
