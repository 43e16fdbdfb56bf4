"""2.5D fusion: an object's cut-out and depth put into a background at a box, hidden by what is nearer.

h w   pixels of the frame (the whole background or a crop of it)
modes place        the object stands in the scene, nearer objects hide it
      replace      the same after the depth of what stood there has been filled in
      id-transfer  another identity in the silhouette of the one there; the depth stays
      inpaint      a coarse region is painted anew; the depth stays (published name: draw)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from math import ceil, floor

import cv2
import numpy as np

from datasets.geometry import Part, Size, bbox_of_mask, clip_box, tight_slices, whole_box
from datasets.masks import Rim, masked
from ldm.decode import row_blocks
from ldm.images import depth_ends, resize

MODES = ("place", "replace", "id-transfer", "inpaint")
OCCLUSIONS = ("near", "pixel", "published", "none")  # see unhidden
LEAST_SOFT = 2.0  # pixels of a box's shorter side; below, a soft edge would leave nothing (chosen)
MARGIN = 0.01  # of the depth range; what is nearer by less is noise of the depth map; chosen
ALIASES = {"draw": "inpaint"}
HF_MODES = ("zero", "gray255", "color", "cutout")  # see high_frequency
HIGH_FREQUENCY_SIDE = 256  # pixels; the high-frequency map is computed at this size, as published
DETAIL_SCALE = 0.12  # of the object's size: finer than this counts as detail; measured on rendered scenes


@dataclass(frozen=True, eq=False)
class Cutout:
    """An object cut out of its image, tight; the values outside its mask are 0."""

    rgb_u8: np.ndarray  # (h, w, 3)
    mask: np.ndarray  # (h, w) bool
    depth_01: np.ndarray  # (h, w) float32, its own relative inverse depth: 0 farthest, 1 nearest point of it
    rim: Rim | None = None  # None: the edge of the mask


@dataclass(frozen=True, eq=False)
class PlacedCutout:
    """A cut-out in a frame, before anything hides it. Its colours are made where they are read."""

    cutout: Cutout
    box_xyxy: Sequence[float]  # of the cut-out with its rim
    legacy: bool
    alpha_01: np.ndarray  # (h, w) float32 coverage
    depth_01: np.ndarray  # (h, w) float32 in [far, near], far outside

    @property
    def rgb_u8(self) -> np.ndarray:
        """(h, w, 3), 0 outside; made anew each time."""
        frame, rim = self.alpha_01.shape, self.cutout.rim
        rgb_u8 = np.zeros((*frame, 3), np.uint8)
        if self.legacy:
            shown, part, size = whole_places(self.box_xyxy, frame)
            rgb_u8[shown] = resize(self.cutout.rgb_u8, size, how="linear")[part]
            return rgb_u8
        # Colours are 0 outside the mask, so after warping they are weighted by the coverage.
        weighted = self.cutout.rgb_u8.astype(np.float32) if rim is None else rim.weighted
        for channel, plane in enumerate(cv2.split(weighted)):  # one by one, for memory
            colour, place = warp_into(plane, self.box_xyxy, frame)
            for rows in row_blocks(len(colour)):
                opacity = np.maximum(self.alpha_01[place][rows], 1e-3)
                rgb_u8[place][rows, :, channel] = np.clip(np.rint(colour[rows] / opacity), 0, 255)
        return rgb_u8


def tight_cutout(
    rgb_u8: np.ndarray,
    mask: np.ndarray,
    depth_01: np.ndarray | None,
    end: str = "inclusive",
    norm: str = "object-only",
    fill: str = "bulge",
) -> Cutout:
    """Tight cut-out of an object; without a depth map it is flat or bulges like a ball, by `fill`."""
    x0, y0, x1, y1 = bbox_of_mask(mask, end)
    inside = mask[y0:y1, x0:x1]
    if depth_01 is not None:
        depth = own_depth(depth_01[y0:y1, x0:x1], inside, norm)
    elif fill == "bulge":  # a rounded body: 0 at the edge of the silhouette, 1 in its middle
        padded = cv2.copyMakeBorder(inside.astype(np.uint8), 1, 1, 1, 1, 0)
        distance = cv2.distanceTransform(padded, cv2.DIST_L2, 3)
        inner = 1 - distance[1:-1, 1:-1] / float(distance.max())
        depth = np.sqrt(1 - inner * inner)
    else:
        depth = np.where(inside, 0.5, 0).astype(np.float32)
    return Cutout(masked(rgb_u8[y0:y1, x0:x1], inside), inside, depth)


def own_depth(depth_01: np.ndarray, mask: np.ndarray, norm: str = "object-only") -> np.ndarray:
    """Depth (h, w) scaled to [0, 1] inside the mask and 0 outside.

    "object-only": over the object, from its 1st to its 99th percentile, as estimated maps smear edges.
    "legacy": over the image with zeros outside the mask: the object's minimum stays above 0 (published).
    """
    ends = depth_01[mask] if norm == "object-only" else np.where(mask, depth_01, 0)
    low, high = depth_ends(ends) if norm == "object-only" else (float(ends.min()), float(ends.max()))
    if high - low < 1e-6:
        return np.where(mask, 0.5, 0).astype(np.float32)
    values = (depth_01.astype(np.float32, copy=False) - low) / (high - low)
    return np.where(mask, np.clip(values, 0, 1), np.float32(0))


def warp_into(image: np.ndarray, box_xyxy: Sequence[float], frame: Size) -> tuple[np.ndarray, Part]:
    """image (h, w[, c]) float32 shown in a box of a frame, exact to fractions of a pixel.

    returns: the pixels, 0 round the image, and the rows and columns of the frame that they fill
    """
    x0, y0, x1, y1 = box_xyxy
    # Nearly the final size first, by averaging or with full edges, so that the warp below only shifts.
    image = resize(image, (max(1, round(y1 - y0)), max(1, round(x1 - x0))))
    left, top, right, bottom = clip_box((floor(x0) - 1, floor(y0) - 1, ceil(x1) + 1, ceil(y1) + 1), frame)
    if right <= left or bottom <= top:
        return image[:0, :0], np.s_[:0, :0]
    sx, sy = (x1 - x0) / image.shape[1], (y1 - y0) / image.shape[0]
    # Pixel centres: column j of the image lies at x0 + (j + 1/2) sx, column k of the frame at k + 1/2.
    move = np.array([[sx, 0, x0 + sx / 2 - 0.5 - left], [0, sy, y0 + sy / 2 - 0.5 - top]])
    return cv2.warpAffine(image, move, (right - left, bottom - top)), np.s_[top:bottom, left:right]


def place_cutout(
    cutout: Cutout, box_xyxy: Sequence[float], extent: tuple[float, float], frame: Size, legacy: bool = False
) -> PlacedCutout:
    """Put a cut-out in a box (pixels of the frame); its depth spans extent = (far, near).

    legacy: the published placement, by whole pixels, bilinear resizing without prefilter, binary coverage
    """
    far, near = extent
    if min(box_xyxy[2] - box_xyxy[0], box_xyxy[3] - box_xyxy[1]) < LEAST_SOFT:
        cutout = replace(cutout, rim=None)
    if not legacy:
        # Depth is 0 outside the mask, so after warping it is weighted by the coverage.
        solid = cv2.merge([cutout.depth_01, cutout.mask.astype(np.float32)])
        if (rim := cutout.rim) is not None:
            box_xyxy, solid = rim.around(box_xyxy, cutout.mask.shape), rim.padded(solid)
        shape, place = warp_into(solid, box_xyxy, frame)
        deep, inside = shape[..., 0], shape[..., 1]
        covered = inside if rim is None else warp_into(rim.alpha_01, box_xyxy, frame)[0]
        alpha, depth = np.zeros(frame, np.float32), np.full(frame, far, np.float32)
        for rows in row_blocks(len(shape)):
            np.clip(covered[rows], 0, 1, out=alpha[place][rows])
            values = deep[rows] / np.clip(inside[rows], 1e-3, 1)
            values = np.clip(values, 0, 1, out=values)
            np.add(far, np.multiply(near - far, values, out=values), out=depth[place][rows])
        return PlacedCutout(cutout, box_xyxy, legacy, alpha, depth)
    shown, part, size = whole_places(box_xyxy, frame)
    alpha, depth = np.zeros((2, *frame), np.float32)
    spanned = far + (near - far) * cutout.depth_01
    for placed, values in ((alpha, cutout.mask.astype(np.uint8)), (depth, spanned)):
        placed[shown] = resize(values, size, how="linear")[part]
    return PlacedCutout(cutout, box_xyxy, legacy, alpha, depth)


def whole_places(box_xyxy: Sequence[float], frame: Size) -> tuple[Part, Part, Size]:
    """Of an image in a box of whole pixels: the part of the frame that it fills, of itself, its size."""
    x0, y0, x1, y1 = whole_box(box_xyxy)
    left, top, right, bottom = clip_box((x0, y0, x1, y1), frame)
    return (np.s_[top:bottom, left:right], np.s_[top - y0 : bottom - y0, left - x0 : right - x0],
            (y1 - y0, x1 - x0))  # fmt: skip


def occluders(depth_01: np.ndarray, near: float) -> np.ndarray:
    """(h, w) bool: background certainly in front of an object whose nearest point has depth `near`."""
    return depth_01 > near + MARGIN


def unhidden(depth_01: np.ndarray, placed: PlacedCutout, near: float, occlusion: str) -> np.ndarray:
    """(h, w) bool: where the background of depth_01 (h, w) hides nothing of an object placed there.

    near: depth of its nearest point, which decides with occlusion "near"; "none" hides nothing; "pixel" and
    "published" compare pixel by pixel
    """
    if occlusion == "none":
        return np.ones(depth_01.shape, bool)
    return ~occluders(depth_01, near) if occlusion == "near" else depth_01 < placed.depth_01


def fill_depth(depth_01: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Depth (h, w) without what stands in region (h, w) bool: each row interpolated across its gaps.

    A gap at a border takes the side that it has, a row without any the end of the row before it.
    """
    if not region.any() or region.all():
        return depth_01
    x0, y0, x1, y1 = bbox_of_mask(region)
    part = np.s_[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1]  # the hole and what is next to it
    filled, region, depth_01 = depth_01.copy(), region[part], depth_01[part]
    w, result, whole = region.shape[1], filled[part], np.asarray(region.all(axis=1))
    gaps = region & ~whole[:, None]
    flat = np.pad(gaps, ((0, 0), (1, 1))).ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1])  # before the first pixel of a gap, then at its last one
    (row, start), end = np.divmod(edges[::2], w + 2), edges[1::2] % (w + 2)
    left = depth_01[row, np.where(start > 0, start - 1, end % w)].astype(np.float64)
    right = depth_01[row, np.where(end < w, end, start - 1)].astype(np.float64)
    first = (long := end - start).cumsum() - long - 1
    fraction = (np.arange(long.sum()) - np.repeat(first, long)) / np.repeat(long + 1, long)
    result[gaps] = np.repeat(left, long) * (1 - fraction) + np.repeat(right, long) * fraction
    for k in np.flatnonzero(whole):
        result[k] = result[k - 1, -1] if k else result[whole.argmin(), 0]
    return filled


def fill_colour(image_u8: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Image (h, w, 3) with hole (h, w) bool painted over by its blurred surroundings (pull-push)."""
    if not hole.any() or hole.all():
        return image_u8
    weight = (~hole).astype(np.float32)
    values, finer = image_u8 * weight[..., None], []  # values are premultiplied by the weight
    while weight.min() <= 0 and max(weight.shape) > 2:
        finer.append((values, weight))
        h, w = weight.shape
        half = (h + 1) // 2, (w + 1) // 2
        weight = resize(weight, half)
        # Twice the averaged weight, so that a coarse pixel that is half known counts as known.
        gain = np.minimum(2, 1 / np.maximum(weight, 1e-6))
        values, weight = resize(values, half) * gain[..., None], weight * gain
    filled = values / np.maximum(weight, 1e-6)[..., None]
    for values, weight in reversed(finer):  # gaps are taken from the image of half the size
        filled = values + (1 - weight[..., None]) * resize(filled, weight.shape, how="linear")
    return np.where(hole[..., None], np.rint(filled), image_u8).astype(np.uint8)


def collage(
    background_u8: np.ndarray, detail_u8: np.ndarray, coverage_01: np.ndarray, hide: np.ndarray | None
) -> np.ndarray:
    """The detail hint's image (h, w, 3) uint8: background, black where `hide` (h, w) bool (None: nowhere),
    the object's detail as far as coverage_01 (h, w), how much of a pixel the visible object covers.
    """
    result = background_u8.copy() if hide is None else masked(background_u8, ~hide)
    if coverage_01.any():
        box = tight_slices(coverage_01)
        inner, detail, cover = result[box], detail_u8[box], coverage_01[box]
        cv2.copyTo(detail, (cover == 1).view(np.uint8), inner)
        soft = np.nonzero((cover > 0) & (cover < 1))  # few pixels
        under = inner[soft].astype(np.float32)
        inner[soft] = np.rint(under + cover[soft][:, None] * (detail[soft] - under))
    return result


def high_frequency(image_u8: np.ndarray, mask: np.ndarray, mode: str, threshold: int = 50) -> np.ndarray:
    """Detail map (h, w, 3) uint8 of image (h, w, 3) inside mask (h, w) bool (AnyDoor eq. 2, Bifrost eq. 9).

    mode      zero: nothing, what the released compositor weights were trained with; gray255: strength of the
              edges; color: edges times colours, what the released AnyDoor weights were trained with; cutout:
              the object's own pixels
    threshold 0 to 255, weaker edges are left out
    """
    if mode not in HF_MODES:
        raise ValueError(f"unknown hf_mode {mode!r}; allowed: {', '.join(HF_MODES)}")
    if mode in ("zero", "cutout"):
        return masked(image_u8, mask) if mode == "cutout" else np.zeros_like(image_u8)
    side = (HIGH_FREQUENCY_SIDE, HIGH_FREQUENCY_SIDE)
    image = cv2.resize(image_u8, side)
    # Linear resizing of a 0/1 float mask, then 0.5, keeps the published silhouette.
    inside = (cv2.resize(mask.astype(np.float32), side) > 0.5).astype(np.uint8)
    sides = ((1, 0), (0, 1))
    across, down = (cv2.convertScaleAbs(cv2.Sobel(image, cv2.CV_16S, *xy, ksize=3)) for xy in sides)
    strength = reduce(cv2.max, cv2.split(cv2.addWeighted(across, 0.5, down, 0.5, 0)))
    inner = cv2.erode(inside, np.ones((5, 5), np.uint8), iterations=2) > 0
    edges = cv2.merge([np.where(inner & (strength >= threshold), strength, np.uint8(0))] * 3)
    map_u8 = edges if mode == "gray255" else (edges / 255.0 * image).astype(np.uint8)
    return resize(map_u8, (image_u8.shape[0], image_u8.shape[1]), how="linear")


@dataclass(frozen=True, eq=False)
class Layers:
    background_u8: np.ndarray  # (h, w, 3)
    depth_01: np.ndarray  # (h, w) float32, the object in it where the mode fuses
    placed: PlacedCutout  # the object before anything hides it
    coverage_01: np.ndarray  # (h, w) float32, how much of a pixel the object covers where nothing hides it
    edit: np.ndarray  # (h, w) bool, what may change
    keep: np.ndarray  # (h, w) bool, what is certainly in front of the object
    region: np.ndarray  # (h, w) bool, the box with its margin
    known: bool  # what the background shows under the edit region is right

    @cached_property
    def clean_u8(self) -> np.ndarray:
        """(h, w, 3): what is to be replaced smoothed away."""
        return self.background_u8 if self.known else fill_colour(self.background_u8, self.edit)

    @property
    def visible(self) -> np.ndarray:
        """(h, w) bool: the object's cut-out where nothing hides it."""
        return self.coverage_01 > 0.5

    @property
    def visible_fraction(self) -> float:
        """Of the placed cut-out, what nothing hides."""
        return float(self.coverage_01.sum() / max(self.placed.alpha_01.sum(), 1e-6))

    @property
    def paste_u8(self) -> np.ndarray:
        """(h, w, 3): the visible cut-out on the clean background, with soft edges."""
        return collage(self.clean_u8, self.placed.rgb_u8, self.coverage_01, None)
