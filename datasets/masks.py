"""Masks (h, w) bool: their largest piece, feathering, random deformation; the soft edge of a cut-out."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from datasets.geometry import Box01, Size, bbox_of_mask, clip_box
from ldm.decode import row_blocks
from ldm.images import resize

LEVELS = ("exact", "fine", "perturbed", "coarse", "box")  # of masks, see mask_level
CACHED = 2**19  # pixels that stay in the processor's cache while a kernel moves over them; measured
PERTURB_SIDE = 128  # pixels; deformation happens at this size or below; chosen for speed
PERTURB_IOU = 0.3, 0.99  # overlap with the mask (published)
PERTURB_ROUNDS = 250  # of four operations (published)


def masked(image_u8: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Image (h, w, 3) uint8 with 0 outside the mask (h, w) bool."""
    return cv2.copyTo(image_u8, mask.astype(np.uint8))


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece (4-neighbours diagonal included), (h, w) bool."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return mask.astype(bool) if count <= 2 else labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))


def feather_inside(mask: np.ndarray, width: float, *, open_to: np.ndarray | None = None) -> np.ndarray:
    """Blend weight (h, w) float32: 0 outside the mask, smoothly rising to 1 within `width` pixels inside it;
    not towards open_to (h, w) bool (an occluder: its edge stays sharp) and the image's border.
    """
    solid = mask if open_to is None else mask | open_to
    if width < 1 or solid.all():
        return mask.astype(np.float32)
    distance = cv2.distanceTransform(solid.astype(np.uint8), cv2.DIST_L2, 3)
    for rows in row_blocks(len(distance)):
        ramp = np.clip(distance[rows] / (width + 1), 0, 1)
        distance[rows] = np.where(mask[rows], ramp * ramp * (3 - 2 * ramp), 0)
    return distance


def perturb_mask(mask: np.ndarray, rng: np.random.Generator, *, whole: bool = False) -> np.ndarray:
    """A rough version of a mask (h, w) bool that contains it, after random growing and shrinking.

    Rounds of four local dilations or erosions (kernels of 3 to 9 pixels) until the overlap with the mask
    falls below a target drawn from U(0.3, 0.99), at most 250; the largest piece is kept.
    whole: on the whole image at full size (published); otherwise on the object's surroundings, at most
    128 pixels, which is far faster
    """
    target = rng.uniform(*PERTURB_IOU)
    h, w = mask.shape
    if min(h, w) <= 2 or not mask.any():
        return mask.astype(bool)
    if whole:
        return largest_piece(_deform(mask.astype(np.uint8), target, rng))
    x0, y0, x1, y1 = bbox_of_mask(mask)
    margin = max(x1 - x0, y1 - y0, 8)
    left, top, right, bottom = clip_box((x0 - margin, y0 - margin, x1 + margin, y1 + margin), (h, w))
    window = mask[top:bottom, left:right].astype(np.uint8)
    scale = min(1.0, PERTURB_SIDE / max(window.shape))
    small_size = max(3, round(window.shape[0] * scale)), max(3, round(window.shape[1] * scale))
    small = resize(window * 255, small_size) > 127
    rough = largest_piece(_deform(small.astype(np.uint8), target, rng)).astype(np.uint8)
    result = mask.astype(bool)
    result[top:bottom, left:right] |= resize(rough * 255, window.shape, how="linear") > 127
    return result


def _deform(exact: np.ndarray, target_iou: float, rng: np.random.Generator) -> np.ndarray:
    """Random local morphology on exact (h, w) uint8 0/1 until the overlap with it is below the target."""
    h, w = exact.shape
    result, area = exact.copy(), int(np.count_nonzero(exact))
    for _ in range(PERTURB_ROUNDS):
        for _ in range(4):
            left, top = int(rng.integers(w)), int(rng.integers(h))
            right, bottom = int(rng.integers(left + 1, w + 1)), int(rng.integers(top + 1, h + 1))
            if rng.random() < 0.1:
                result[(top + bottom) // 2, (left + right) // 2] = rng.integers(2)
            operation = cv2.dilate if rng.random() < 0.5 else cv2.erode
            part = result[top:bottom, left:right]
            size, form = int(rng.integers(3, 10)), int(rng.integers(4))
            # A square, a disc, or a flat ellipse.
            width, height = [(size, size), (size, size), (size, size // 2), (size // 2, size)][form]
            shape = cv2.MORPH_RECT if form == 0 else cv2.MORPH_ELLIPSE
            part[:] = operation(part, cv2.getStructuringElement(shape, (width, height)))
            np.bitwise_or(result, exact, out=result)
        # The result contains the exact mask, so the overlap is a ratio of areas.
        if area < target_iou * np.count_nonzero(result):
            break
    return result


def dilate(mask: np.ndarray, amount: float, shape: str = "ellipse", frame: Size | None = None) -> np.ndarray:
    """Grow by a fraction of the image's size.

    amount: 0 to 1, of the height vertically and of the width horizontally
    shape:  "ellipse", or "legacy-rect" for offsets -k .. k-1 in a rectangle (published)
    frame:  (h, w) of the image where the mask is a part of it
    """
    h, w = frame or mask.shape
    kh, kw = int(amount * h), int(amount * w)
    if shape == "legacy-rect":
        if kh < 1 or kw < 1:
            return np.zeros_like(mask, bool)
        # cv2 reads around the anchor, so offsets -k .. k-1 of a set pixel are anchor k-1 in a kernel of 2k.
        rectangle = np.ones((2 * kh, 2 * kw), np.uint8)
        return cv2.dilate(mask.astype(np.uint8), rectangle, anchor=(kw - 1, kh - 1)) > 0
    if not mask.any():
        return np.zeros(mask.shape, bool)
    widths = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * kw + 1, 2 * kh + 1)).sum(1).astype(int) // 2
    x0, y0, x1, y1 = bbox_of_mask(mask)
    x0, y0, x1, y1 = clip_box((x0 - kw, y0 - kh, x1 + kw, y1 + kh), (mask.shape[0], mask.shape[1]))
    inside = mask[y0:y1, x0:x1].astype(bool, copy=False).view(np.uint8)  # nothing changes farther away
    if inside.size < CACHED:  # each row of the kernel is a horizontal dilation, moved up and down
        rows, covered = cv2.copyMakeBorder(inside, kh, kh, 0, 0, cv2.BORDER_CONSTANT), np.zeros_like(inside)
        for down, more in zip(range(kh, -1, -1), np.diff(widths[: kh + 1], prepend=0), strict=True):
            rows = cv2.dilate(rows, np.ones((1, 2 * more + 1), np.uint8)) if more else rows
            for start in (kh - down, kh + down):
                cv2.max(covered, rows[start : start + y1 - y0], covered)
        grown = covered > 0
    else:
        # Every pixel of the outline starts and ends a run in each row of the kernel: faster for large masks.
        solid = cv2.copyMakeBorder(inside, kh, kh, kw, kw + 1, cv2.BORDER_CONSTANT)
        y, x = np.nonzero(solid > cv2.erode(solid, np.ones((3, 3), np.uint8)))
        runs, one = np.zeros(solid.size, np.int32), np.int32(1)  # of another type `at` is 20 times slower
        for down, half in zip(range(-kh, kh + 1), widths, strict=True):
            starts = (y + down) * solid.shape[1] + x - half
            np.add.at(runs, starts, one)
            np.subtract.at(runs, starts + 2 * half + 1, one)
        grown = (solid > 0) | (runs.cumsum(dtype=np.int32, out=runs).reshape(solid.shape) > 0)
        grown = grown[kh : kh + y1 - y0, kw : kw + x1 - x0]
        del runs  # the largest
    result = np.zeros(mask.shape, bool)
    result[y0:y1, x0:x1] = grown
    return result


def mask_level(
    silhouette: np.ndarray,
    level: str,
    region: np.ndarray,
    amount: float,
    rng: np.random.Generator,
    *,
    shape: str = "ellipse",
    frame: Size | None = None,
) -> np.ndarray:
    """The region to edit: one of the five levels of a silhouette (h, w) bool; level "box" is `region`.

    From the silhouette itself to its box (Bifrost, App. B.2): one model follows exact and rough regions.
    amount: dilation of "fine" as a fraction of the image; "coarse" grows four times as far
    shape:  as of `dilate`; legacy-rect deforms at full size, as published
    """
    if level not in LEVELS:
        raise ValueError(f"unknown mask level {level!r}; allowed: {', '.join(LEVELS)}")
    if level == "box" or not silhouette.any():
        return region
    if level in ("fine", "coarse"):
        return dilate(silhouette, amount if level == "fine" else 4 * amount, shape=shape, frame=frame)
    if level == "perturbed":
        return perturb_mask(silhouette, rng, whole=shape == "legacy-rect")
    return silhouette.astype(bool)


@dataclass(frozen=True, eq=False)
class Rim:
    """A cut-out (h, w) with its soft edge, `margin` pixels more on every side: coverage and own colours."""

    rgb_u8: np.ndarray  # (h + 2 margin, w + 2 margin, 3), the object's own colours
    alpha_01: np.ndarray  # (h + 2 margin, w + 2 margin) float32 coverage
    margin: int

    @classmethod
    def of(cls, rgb_u8: np.ndarray, mask: np.ndarray, alpha_01: np.ndarray, end: str = "inclusive") -> "Rim":
        """Of an object's image, its mask and coverage (h, w), so much wider as the coverage reaches."""
        x0, y0, x1, y1 = bbox_of_mask(mask, end)
        left, top, right, bottom = bbox_of_mask((alpha_01 > 0) | mask)
        m = max(x0 - left, y0 - top, right - x1, bottom - y1, 0)
        part = np.s_[y0 : y1 + 2 * m, x0 : x1 + 2 * m]
        colours_u8 = np.pad(rgb_u8, ((m, m), (m, m), (0, 0)))[part]
        return cls(colours_u8, np.pad(alpha_01, m)[part].astype(np.float32), m)

    @property
    def weighted(self) -> np.ndarray:
        """Colours times coverage, float32."""
        return self.rgb_u8.astype(np.float32) * self.alpha_01[..., None]

    def around(self, box_xyxy: Sequence[float], size: Size) -> Box01:
        """The box of the rim where the cut-out, of (h, w) = size, fills box_xyxy."""
        x0, y0, x1, y1 = box_xyxy
        across, down = self.margin * (x1 - x0) / size[1], self.margin * (y1 - y0) / size[0]
        return x0 - across, y0 - down, x1 + across, y1 + down

    def padded(self, image: np.ndarray) -> np.ndarray:
        """An image (h, w, c) of the cut-out's size, 0 in the margin."""
        m = self.margin
        return np.pad(image, ((m, m), (m, m), (0, 0)))
