"""2.5D fusion: an object's cut-out and depth put into a background at a box, hidden by what is nearer.

h w   pixels of the frame (the whole background or a crop of it)
modes place        the object stands in the scene, nearer objects hide it
      replace      the same after the depth of what stood there has been filled in
      id-transfer  another identity in the silhouette of the one there; the depth stays
      inpaint      a coarse region is painted anew; the depth stays (published name: draw)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import cv2
import numpy as np

from datasets.geometry import Size, bbox_of_mask, clip_box, tight_slices, whole_box
from datasets.masks import perturb_mask
from datasets.rim import Rim
from ldm.decode import row_blocks
from ldm.images import resize

MODES = ("place", "replace", "id-transfer", "inpaint")
OCCLUSIONS = ("near", "pixel", "published", "none")  # see unhidden
LEVELS = ("exact", "fine", "perturbed", "coarse", "box")  # of masks, see mask_level
SMALL_KERNEL = 10  # pixels of radius, up to which OpenCV's dilation is the faster one; measured
MARGIN = 0.01  # of the depth range; what is nearer by less is noise of the depth map; chosen
ALIASES = {"draw": "inpaint"}
HF_MODES = ("zero", "gray255", "color", "cutout")  # see high_frequency
HIGH_FREQUENCY_SIDE = 256  # pixels; the high-frequency map is computed at this size, as published


@dataclass(frozen=True, eq=False)
class Cutout:
    """An object cut out of its image, tight; the values outside its mask are 0."""

    rgb_u8: np.ndarray  # (h, w, 3)
    mask: np.ndarray  # (h, w) bool
    depth_01: np.ndarray  # (h, w) float32, its own relative inverse depth: 0 farthest, 1 nearest point of it
    rim: Rim | None = None  # None: the edge of the mask


@dataclass(frozen=True, eq=False)
class PlacedCutout:
    """A cut-out in a frame, before anything hides it."""

    rgb_u8: np.ndarray  # (h, w, 3), 0 outside
    alpha_01: np.ndarray  # (h, w) float32 coverage
    depth_01: np.ndarray  # (h, w) float32 in [far, near], far outside


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
        inner = np.clip(1 - distance[1:-1, 1:-1] / max(float(distance.max()), 1e-6), 0, 1)
        depth = np.where(inside, np.sqrt(1 - inner * inner), 0).astype(np.float32)
    else:
        depth = np.where(inside, 0.5, 0).astype(np.float32)
    return Cutout(rgb_u8[y0:y1, x0:x1] * inside[..., None].astype(np.uint8), inside, depth)


def own_depth(depth_01: np.ndarray, mask: np.ndarray, norm: str = "object-only") -> np.ndarray:
    """Depth (h, w) scaled to [0, 1] inside the mask and 0 outside.

    "object-only": over the object, from its 1st to its 99th percentile, as estimated maps smear edges.
    "legacy": over the image with zeros outside the mask: the object's minimum stays above 0 (published).
    """
    values = np.where(mask, depth_01, 0).astype(np.float32)
    if norm == "legacy":
        low, high = float(values.min()), float(values.max())
    else:
        low, high = (float(v) for v in np.percentile(depth_01[mask], [1, 99]))
    if high - low < 1e-6:
        return np.where(mask, 0.5, 0).astype(np.float32)
    return np.where(mask, np.clip((values - low) / (high - low), 0, 1), 0).astype(np.float32)


def warp_into(
    image: np.ndarray, box_xyxy: Sequence[float], frame: Size
) -> tuple[np.ndarray, tuple[slice, slice]]:
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
    if not legacy:
        # Colours and depth are 0 outside the mask, so after warping they are weighted by the coverage.
        weighted = cutout.rgb_u8.astype(np.float32)
        solid = np.dstack([cutout.depth_01, cutout.mask.astype(np.float32)])
        if (rim := cutout.rim) is not None:
            box_xyxy = rim.around(box_xyxy, cutout.mask.shape)
            weighted, solid = rim.weighted, rim.padded(solid)
        colour, part = warp_into(weighted, box_xyxy, frame)
        shape, _ = warp_into(solid, box_xyxy, frame)
        covered = shape[..., 1] if rim is None else warp_into(rim.alpha_01, box_xyxy, frame)[0]
        rgb_u8, alpha = np.zeros((*frame, 3), np.uint8), np.zeros(frame, np.float32)
        depth_01 = np.full(frame, far, np.float32)
        for rows in row_blocks(len(shape)):
            alpha[part][rows] = coverage = np.clip(covered[rows], 0, 1)
            opacity, inside = np.maximum(coverage, 1e-3), np.maximum(np.clip(shape[rows, :, 1], 0, 1), 1e-3)
            rgb_u8[part][rows] = np.clip(np.rint(colour[rows] / opacity[..., None]), 0, 255)
            depth_01[part][rows] = far + (near - far) * np.clip(shape[rows, :, 0] / inside, 0, 1)
        return PlacedCutout(rgb_u8, alpha, depth_01)
    x0, y0, x1, y1 = whole_box(box_xyxy)
    left, top, right, bottom = clip_box((x0, y0, x1, y1), frame)
    part, shown = np.s_[top - y0 : bottom - y0, left - x0 : right - x0], np.s_[top:bottom, left:right]
    rgb_u8, (alpha, depth) = np.zeros((*frame, 3), np.uint8), np.zeros((2, *frame), np.float32)
    spanned = far + (near - far) * cutout.depth_01
    for placed, values in ((rgb_u8, cutout.rgb_u8), (alpha, cutout.mask.astype(np.uint8)), (depth, spanned)):
        placed[shown] = resize(values, (y1 - y0, x1 - x0), how="linear")[part]
    return PlacedCutout(rgb_u8, alpha, depth)


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
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * kw + 1, 2 * kh + 1))
    solid = cv2.copyMakeBorder(mask.astype(np.uint8), kh, kh, kw, kw + 1, cv2.BORDER_CONSTANT)
    y, x = np.nonzero(solid > cv2.erode(solid, np.ones((3, 3), np.uint8)))  # the outline
    if max(kh, kw) < SMALL_KERNEL or len(y) * len(kernel) > solid.size:
        return cv2.dilate(mask.astype(np.uint8), kernel) > 0
    # Every pixel of the outline starts and ends a run in each row of the kernel: faster for large kernels.
    runs, one = np.zeros(solid.size, np.int32), np.int32(1)  # of another type `at` is 20 times slower
    for down, half in zip(range(-kh, kh + 1), kernel.sum(1).astype(int) // 2, strict=True):
        starts = (y + down) * solid.shape[1] + x - half
        np.add.at(runs, starts, one)
        np.subtract.at(runs, starts + 2 * half + 1, one)
    grown = (solid > 0) | (runs.cumsum(dtype=np.int32, out=runs).reshape(solid.shape) > 0)
    return grown[kh : kh + mask.shape[0], kw : kw + mask.shape[1]]


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
    """
    if level not in LEVELS:
        raise ValueError(f"unknown mask level {level!r}; allowed: {', '.join(LEVELS)}")
    if level == "box" or not silhouette.any():
        return region
    if level == "fine":
        return dilate(silhouette, amount, shape=shape, frame=frame)
    if level == "coarse":
        return dilate(silhouette, 4 * amount, shape=shape, frame=frame)
    return perturb_mask(silhouette, rng) if level == "perturbed" else silhouette.astype(bool)


def fill_depth(depth_01: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Depth (h, w) without what stands in region (h, w) bool: each row interpolated across its gaps."""
    if not region.any() or region.all():
        return depth_01
    # One interpolation over the rows laid end to end; a gap at a border takes the side that it has.
    (h, w), flat = depth_01.shape, depth_01.ravel().astype(np.float64)
    row = np.repeat(np.arange(h), w)
    gap, where = np.flatnonzero(region), np.flatnonzero(~region)
    after = np.minimum(np.searchsorted(where, gap), len(where) - 1)
    right, left = where[after], where[np.maximum(after - 1, 0)]
    right = np.where(row[right] == row[gap], right, left)
    left = np.where(row[left] == row[gap], left, right)
    fraction = np.where(right > left, (gap - left) / np.maximum(right - left, 1), 0.0)
    flat[gap] = flat[left] * (1 - fraction) + flat[right] * fraction
    return flat.reshape(h, w).astype(np.float32)


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
    """The detail hint's image (h, w, 3) uint8: background, black where hidden, the object's detail.

    coverage_01: (h, w), how much of a pixel the visible object covers
    hide:        (h, w) bool, where the background must not be seen; None shows all of it
    """
    if hide is None:
        result = background_u8.copy()
    else:
        result = cv2.bitwise_and(background_u8, background_u8, mask=(~hide).astype(np.uint8))
    box = tight_slices(coverage_01)
    under, part = result[box].astype(np.float32), coverage_01[box][..., None]
    result[box] = np.rint(under + part * (detail_u8[box] - under)).astype(np.uint8)
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
    if mode == "zero":
        return np.zeros_like(image_u8)
    if mode == "cutout":
        return image_u8 * mask[..., None].astype(np.uint8)
    side = (HIGH_FREQUENCY_SIDE, HIGH_FREQUENCY_SIDE)
    image = cv2.resize(image_u8, side)
    # Linear resizing of a 0/1 float mask, then 0.5, keeps the published silhouette.
    inside = (cv2.resize(mask.astype(np.float32), side) > 0.5).astype(np.uint8)
    across = cv2.convertScaleAbs(cv2.Sobel(image, cv2.CV_16S, 1, 0, ksize=3))
    down = cv2.convertScaleAbs(cv2.Sobel(image, cv2.CV_16S, 0, 1, ksize=3))
    strength = cv2.addWeighted(across, 0.5, down, 0.5, 0).max(axis=-1)
    inner = cv2.erode(inside, np.ones((5, 5), np.uint8), iterations=2) > 0
    edges = np.where(inner & (strength >= threshold), strength, 0).astype(np.uint8)[..., None]
    map_u8 = np.repeat(edges, 3, axis=-1) if mode == "gray255" else (edges / 255.0 * image).astype(np.uint8)
    return resize(map_u8, (image_u8.shape[0], image_u8.shape[1]), how="linear")


DETAIL_SCALE = 0.12  # of the object's size: finer than this counts as detail; measured on rendered scenes
