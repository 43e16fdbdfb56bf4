"""Boxes, crops and the extent of an object in depth.

box01_xyxy   fractions of the background, floats in [0, 1]
box_xyxy     pixels, half-open: x1 and y1 are the first column and row outside
sizes        (h, w);  points (x, y);  depth_01 with 1 = nearest
"legacy" restores the published rounding: the end of a box is the last pixel inside, and is then sliced away.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor

import cv2
import numpy as np

from ldm.images import resize

Box = tuple[int, int, int, int]
Box01 = tuple[float, float, float, float]
Size = tuple[int, int]
Part = tuple[slice, slice]  # rows, columns

MIN_EXTENT = 0.01  # half thickness in depth of a vanishingly small object; chosen
LEAST_CONTEXT = 1.1  # side of the crop over the region, however small the image; chosen: some border is seen
EXTENT_PER_SIZE = 0.2  # half thickness in depth per unit of box size; fitted to rendered solids' near side


def check_box01(box01: Sequence[float], *, where: str = "box") -> Box01:
    """Refuse a box that is not x0 < x1, y0 < y1 inside [0, 1]; returns it as four floats."""
    rule = f"{where} must be x1,y1,x2,y2 in fractions of the image, 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1"
    if len(box01) != 4:
        raise ValueError(f"{rule}, got {len(box01)} numbers")
    x0, y0, x1, y1 = (float(value) for value in box01)
    wrongs = (
        ("not a number", not np.isfinite([x0, y0, x1, y1]).all()), ("it has no area", x1 == x0 or y1 == y0),
        ("it is inverted", x1 < x0 or y1 < y0), ("it leaves the image", min(x0, y0) < 0 or max(x1, y1) > 1),
    )  # fmt: skip
    if wrong := next((text for text, is_so in wrongs if is_so), ""):
        raise ValueError(f"{rule}, got {x0:g},{y0:g},{x1:g},{y1:g}: {wrong}")
    return x0, y0, x1, y1


def box_to_01(box_xyxy: Sequence[float], size_hw: Size) -> Box01:
    """Pixels -> fractions of an image of (h, w)."""
    (h, w), (x0, y0, x1, y1) = size_hw, box_xyxy
    return x0 / w, y0 / h, x1 / w, y1 / h


def box_from_01(box01: Sequence[float], size_hw: Size) -> Box01:
    """Fractions -> pixels without rounding."""
    (h, w), (x0, y0, x1, y1) = size_hw, box01
    return x0 * w, y0 * h, x1 * w, y1 * h


def box_to_pixels(box01: Sequence[float], size_hw: Size) -> Box:
    """Fractions -> nearest pixel box, at least one pixel wide and high, inside the image."""
    h, w = size_hw
    x0, y0, x1, y1 = whole_box(box_from_01(box01, size_hw))
    x0, y0 = min(max(x0, 0), w - 1), min(max(y0, 0), h - 1)
    return x0, y0, min(max(x1, x0 + 1), w), min(max(y1, y0 + 1), h)


def truncated_box(box01: Sequence[float], size_hw: Size) -> Box:
    """Fractions -> pixels as published: corner and size each cut to whole pixels, not rounded."""
    h, w = size_hw
    x0, y0, x1, y1 = box01
    # A millionth of a pixel more, as differences of decimals fall just short of whole pixels.
    left, top, wide, tall = (int(v + 1e-6) for v in (x0 * w, y0 * h, (x1 - x0) * w, (y1 - y0) * h))
    return left, top, left + max(wide, 1), top + max(tall, 1)


def whole_box(box_xyxy: Sequence[float]) -> Box:
    """The nearest whole pixels, at least one wide and high."""
    x0, y0, x1, y1 = (floor(value + 0.5) for value in box_xyxy)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def bbox_of_mask(mask: np.ndarray, end: str = "inclusive") -> Box:
    """Tight box of mask (h, w) bool.

    "legacy": last row and column left out, and the whole image for fewer than 10 pixels (published).
    """
    x, y, w, h = cv2.boundingRect((mask if mask.dtype == bool else mask != 0).view(np.uint8))
    if end == "legacy":
        return (0, 0, *mask.shape[::-1]) if np.count_nonzero(mask) < 10 else (x, y, x + w - 1, y + h - 1)
    if not w:
        raise ValueError("the mask is empty: at least one pixel must be set")
    return x, y, x + w, y + h


def tight_slices(mask: np.ndarray) -> Part:
    """Rows and columns of the tight box of mask (h, w); empty ones for an empty mask."""
    if not mask.any():
        return slice(0), slice(0)
    x0, y0, x1, y1 = bbox_of_mask(mask)
    return slice(y0, y1), slice(x0, x1)


def clip_box(box_xyxy: Box, size_hw: Size) -> Box:
    """The part of the box inside an image of (h, w)."""
    (h, w), (x0, y0, x1, y1) = size_hw, box_xyxy
    return min(max(x0, 0), w), min(max(y0, 0), h), min(max(x1, 0), w), min(max(y1, 0), h)


def mask_of_box(box_xyxy: Box, size_hw: Size) -> np.ndarray:
    """(h, w) bool, True inside the box."""
    mask = np.zeros(size_hw, bool)
    x0, y0, x1, y1 = clip_box(box_xyxy, size_hw)
    mask[y0:y1, x0:x1] = True
    return mask


def expand_box(box_xyxy: Sequence[float], ratio: float, size_hw: Size | None, end: str = "inclusive") -> Box:
    """Scale about the centre, clipped to an image. "inclusive" rounds outwards, "legacy" truncates."""
    x0, y0, x1, y1 = box_xyxy
    last = 1 if end == "legacy" else 0
    xc, yc = (x0 + x1) / 2, (y0 + y1) / 2
    half_w, half_h = ratio * (x1 - x0 + last) / 2, ratio * (y1 - y0 + last) / 2
    edges = xc - half_w, yc - half_h, xc + half_w, yc + half_h
    if end == "legacy":
        left, top, right, bottom = (int(edge) for edge in edges)
    else:
        left, top = floor(edges[0] + 1e-6), floor(edges[1] + 1e-6)
        right, bottom = ceil(edges[2] - 1e-6), ceil(edges[3] - 1e-6)
    scaled = (left, top, right, bottom)
    return scaled if size_hw is None else clip_box(scaled, size_hw)


def square_box(box_xyxy: Box, size_hw: Size, border: str = "shift") -> Box:
    """Square around a box, inside the image.

    "shift": moved inside instead of cut, and cut only where the image is smaller than the square.
    "clip": the shorter side grows and is cut at the border (published), hence often not square there.
    """
    (h, w), (x0, y0, x1, y1) = size_hw, box_xyxy
    half, xc, yc = max(x1 - x0, y1 - y0, 2) // 2, (x0 + x1) // 2, (y0 + y1) // 2
    if border == "clip":
        tall = y1 - y0 >= x1 - x0
        return clip_box((xc - half, y0, xc + half, y1) if tall else (x0, yc - half, x1, yc + half), size_hw)
    half = min(half, (max(h, w) + 1) // 2)
    left, top = (max(0, min(c - half, limit - 2 * half)) for c, limit in ((xc, w), (yc, h)))
    return clip_box((left, top, left + 2 * half, top + 2 * half), size_hw)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes in the same unit; 0 for boxes without area."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / union) if union > 0 else 0.0


def square_padding(size_hw: Size) -> Box:
    """(left, top, right, bottom) that makes an image of (h, w) square, centred."""
    h, w = size_hw
    left, top = max(h - w, 0) // 2, max(w - h, 0) // 2
    return left, top, max(h - w, 0) - left, max(w - h, 0) - top


def depth_extent(d: float, box01: Sequence[float]) -> tuple[float, float]:
    """(far, near) of an object whose centre lies at depth d, symmetric about d, clipped to [0, 1]. It is
    about as thick as wide and high: near - far = 2 (0.01 + 0.2 s), s = sqrt(width height) in fractions.
    """
    if not (np.isfinite(d) and 0 <= d <= 1):
        raise ValueError(f"depth must lie in [0, 1] (1 = nearest), got {d}")
    half = MIN_EXTENT + EXTENT_PER_SIZE * float(np.sqrt((box01[2] - box01[0]) * (box01[3] - box01[1])))
    return max(0.0, d - half), min(1.0, d + half)


def extent_in_depth(
    depth: float | Sequence[float] | None,
    background_depth_01: np.ndarray,
    box01: Box01,
    standing01: Box01 | None = None,
) -> tuple[float, float]:
    """(far, near) of an object in a box, as given, or round the depth of its middle.

    Without one it stands on the ground at the lower edge of the box, or of another where it `stands`.
    """
    if depth is None:
        depth = depth_at_contact(background_depth_01, standing01 or box01)
    values = (depth,) if isinstance(depth, int | float) else tuple(depth)
    return depth_extent(values[0], box01) if len(values) == 1 else (values[0], values[1])


def depth_at_contact(background_depth_01: np.ndarray, box01: Sequence[float]) -> float:
    """Depth of the background (h, w) along the bottom edge of the box: the ground an object stands on.

    The lower quartile over a strip of the edge's middle 60 % and of 2 % of the image's height: not the
    median, because what stands in front of the ground there is nearer (measured on rendered scenes: without
    loss for free objects, the overlap with the ground truth of partly hidden ones rises from 0.69 to 0.77).
    """
    h, w = background_depth_01.shape
    x0, _, x1, y1 = box_from_01(box01, (h, w))
    bottom = min(max(int(round(y1)), 1), h)
    left = min(max(int(x0 + 0.2 * (x1 - x0)), 0), w - 1)
    right = max(left + 1, min(int(ceil(x1 - 0.2 * (x1 - x0))), w))
    strip = background_depth_01[max(0, bottom - max(1, round(0.02 * h))) : bottom, left:right]
    return float(np.quantile(strip, 0.25))


@dataclass(frozen=True)
class Crop:
    """The square of the background that a model sees: cut box, padding to a square, size of the result."""

    box_xyxy: Box  # inside the background
    pad: Box  # left, top, right, bottom, pixels of the background
    size: Size  # (h, w) after resizing
    background_size: Size  # (h, w)

    @property
    def part(self) -> Part:
        """Rows and columns of the background that the cut holds."""
        x0, y0, x1, y1 = self.box_xyxy
        return slice(y0, y1), slice(x0, x1)

    @property
    def padded_size(self) -> Size:
        """(h, w) before resizing, padding included."""
        (x0, y0, x1, y1), (left, top, right, bottom) = self.box_xyxy, self.pad
        return y1 - y0 + top + bottom, x1 - x0 + left + right

    @property
    def native(self) -> "Crop":
        """The same cut in pixels of the background: no padding, no resizing."""
        return self.narrowed(self.box_xyxy)

    def narrowed(self, box_xyxy: Sequence[float]) -> "Crop":
        """The part of the native cut that a box (pixels of the background) meets."""
        left, top, right, bottom = self.box_xyxy
        x0, y0, x1, y1 = whole_box(box_xyxy)
        box = max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)
        return replace(self, box_xyxy=box, pad=(0, 0, 0, 0), size=(box[3] - box[1], box[2] - box[0]))

    def within(self, part: "Crop") -> Part:
        """Rows and columns of this cut that a part of it holds."""
        left, top = self.box_xyxy[:2]
        rows, columns = part.part
        return slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)

    def embed(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the cut, (h, w) bool, in the background's size; False around it."""
        result = np.zeros(self.background_size, bool)
        result[self.part] = mask
        return result

    @property
    def inside(self) -> np.ndarray:
        """(h, w) bool, False in the padding."""
        return mask_of_box(whole_box(self.to_frame(self.box_xyxy)), self.size)

    def to_frame(self, box_xyxy: Sequence[float]) -> Box01:
        """A box in pixels of the background -> pixels of this crop, without rounding."""
        (h, w), (ph, pw) = self.size, self.padded_size
        left, top = self.box_xyxy[0] - self.pad[0], self.box_xyxy[1] - self.pad[1]
        x0, y0, x1, y1 = box_xyxy
        return (x0 - left) * w / pw, (y0 - top) * h / ph, (x1 - left) * w / pw, (y1 - top) * h / ph

    def take(self, image: np.ndarray, *, how: str = "area") -> np.ndarray:
        """Cut, pad with 0 and resize an image of the background's size."""
        return self.fit(image[self.part], how=how)

    def take_mask(self, mask: np.ndarray) -> np.ndarray:
        """The same of a mask, (h, w) bool."""
        return self.fit(mask[self.part].astype(np.uint8) * 255) > 127

    def fit(self, cut: np.ndarray, *, how: str = "area", fill: float = 0) -> np.ndarray:
        """Pad the cut with `fill`, then resize; one that fits is returned itself, to be read only."""
        left, top, right, bottom = self.pad
        if any(self.pad):
            cut = cv2.copyMakeBorder(cut, top, bottom, left, right, cv2.BORDER_CONSTANT, value=[fill] * 4)
        return cut if cut.shape[:2] == self.size else resize(cut, self.size, how=how)

    def undo(self, image: np.ndarray, *, how: str = "area") -> np.ndarray:
        """Model image -> the cut in pixels of the background (padding removed)."""
        left, top, right, bottom = self.pad
        h, w = self.padded_size
        return resize(image, (h, w), how=how)[top : h - bottom, left : w - right]


def hull_box(first: Box, second: Box) -> Box:
    """The smallest box that holds two."""
    low = int(min(first[0], second[0])), int(min(first[1], second[1]))
    return *low, int(max(first[2], second[2])), int(max(first[3], second[3]))


def crop_round(region: Box, image: Size, ratio: float, size: Size, border: str, end: str) -> Crop:
    """The crop of an image whose side is `ratio` times the longer side of a region.

    size: that it is resized to. border, end: `PairOptions.border`, `.bbox_end`
    """
    if border == "shift":  # context gives way before the crop would need padding
        longest = max(region[2] - region[0], region[3] - region[1])
        ratio = min(ratio, max(LEAST_CONTEXT, min(image) / longest))
    wide = expand_box(region, ratio, image if border == "clip" else None, end)
    x0, y0, x1, y1 = square_box(wide, image, border)
    return Crop((x0, y0, x1, y1), square_padding((y1 - y0, x1 - x0)), size, image)
