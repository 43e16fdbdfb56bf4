"""Crop and stitch: the model's image back into the background, at the background's own resolution.

H W   pixels of the background;  h w   pixels of the cut (the crop before padding and resizing)
Outside the final edit mask, and wherever something nearer stands, every byte stays what it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import cv2
import numpy as np

from datasets.fusion import DETAIL_SCALE
from datasets.geometry import Size, tight_slices
from datasets.masks import feather_inside
from datasets.pairs import Geometry
from ldm.decode import LoadedImage, Overlay, row_blocks
from ldm.images import resize
from ldm.settings.resources import release_freed_memory

LEGACY_MARGIN = 5  # pixels of the crop's rectangle that the published paste leaves out
FEATHER = 0.02  # of the crop's side; chosen
WIDE = 8  # pixels; a blur with a larger sigma is computed on a smaller image, for speed
WHOLE = 4_000_000  # pixels; a blur of more is enlarged row by row; chosen: objects in 12 megapixels fit
MAX_LIGHT = 3.0  # a cut-out is made at most so many times as light or dark; chosen
DARK = 5.0  # of 255, added to both before they are divided, as black says nothing about the light; chosen


@dataclass(frozen=True, eq=False)
class Stitched:
    """A finished image and its mask, both (H, W)."""

    result: LoadedImage
    edit_mask: np.ndarray  # bool; outside it the result equals the background

    @property
    def result_u8(self) -> np.ndarray:
        """(H, W, 3) in the colours of the background's file."""
        return self.result.own_u8


def stitch(
    geometry: Geometry,
    generated_u8: np.ndarray,
    *,
    detail: float = 0.0,
    detail_scale: float = DETAIL_SCALE,
    paste: str = "mask-feather",
    background: LoadedImage | None = None,
    under: Overlay | None = None,
) -> Stitched:
    """Finish one image: back to the background's pixels, detail transfer, masked blend.

    geometry:     of the pair that was painted (pair.geometry)
    generated_u8: (h', w', 3) the model's image of the crop (legacy-rect takes floats too and truncates them)
    detail:       0 to 1, how much of the result is the cut-out itself, in the light of the model's image
    detail_scale: what counts as fine, as a fraction of the object's size
    paste:        "mask-feather", or "legacy-rect" for the published rectangle
    background:   the file that the geometry's background was read from, for its transparency and profile
    under:        of `LoadedImage.painted`
    """
    layers, crop, window, inputs = geometry.native_layers, geometry.crop, geometry.window, geometry.inputs
    background = background or LoadedImage(inputs.background_u8)
    if paste == "legacy-rect":  # the first row dropped, the whole crop minus a margin replaced
        image, inner = crop.undo(generated_u8[1:], how="linear"), np.s_[LEGACY_MARGIN:-LEGACY_MARGIN]
        edit = np.zeros(image.shape[:2], bool)
        edit[inner, inner] = True
        image, weight_01 = image.astype(np.uint8), edit.astype(np.float32)
    elif paste == "mask-feather":
        image = crop.undo(generated_u8)[crop.within(window)].copy()  # the rest of the crop is let go
        if detail > 0:
            sigma = max(1.0, detail_scale * sqrt(np.count_nonzero(layers.visible)))
            painted = image
            image = transfer_detail(painted, layers.placed.rgb_u8, layers.coverage_01, detail, sigma)
            if inputs.mode == "place":  # the background is known under the whole edit region
                rest = np.where(layers.edit, 1 - layers.coverage_01, np.float32(0))
                around = transfer_detail(painted, layers.background_u8, rest, detail, sigma)
                # Both parts are fractions of one pixel where the edge of the object runs through it.
                for rows in row_blocks(len(painted)):
                    mixed = around[rows].astype(np.int16) + image[rows] - painted[rows]
                    around[rows] = np.clip(mixed, 0, 255)
                image = around
                del rest, around
            del painted
        edit, width = layers.edit, FEATHER * max(crop.padded_size)
        weight_01 = feather_inside(edit, width, open_to=layers.keep)  # sharp towards what hides the object
    else:
        raise ValueError(f"unknown paste {paste!r}; allowed: mask-feather, legacy-rect")
    frame = crop.native if paste == "legacy-rect" else window
    release_freed_memory()  # before the background is copied
    result = background.painted(image, weight_01, edit, frame.part, under)
    del image, weight_01  # before the mask of the whole image is made, for memory
    return Stitched(result, frame.embed(edit))


def transfer_detail(
    generated_u8: np.ndarray, paste_u8: np.ndarray, coverage: np.ndarray, amount: float, sigma: float
) -> np.ndarray:
    """Light and colour of the model's image, fine detail of the cut-out.

    The cut-out is multiplied by the quotient of the two images' low frequencies, as light multiplies what a
    surface reflects (quotient image, Shashua and Riklin-Raviv 2001).
    generated_u8, paste_u8: (h, w, 3), the same frame
    coverage: (h, w) bool or [0, 1], the visible object; blurs are normalised by it, so nothing leaks out
    amount:   0 to 1;  sigma: pixels, what is finer counts as detail
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"detail must lie in [0, 1], got {amount}")
    if amount == 0 or not coverage.any():
        return generated_u8
    part = tight_slices(coverage)
    generated, paste = generated_u8[part], paste_u8[part]
    weight = coverage[part].astype(np.float32, copy=False)
    # A wide blur is computed on a smaller image, where sigma is at least WIDE pixels.
    (h, w), scale, low = weight.shape, max(1.0, sigma / WIDE), []
    small, plane = (max(1, round(h / scale)), max(1, round(w / scale))), np.empty((h, w), np.float32)
    coarse = resize(weight, small)
    for image in (generated, paste):
        channels = (cv2.multiply(channel, weight, plane, dtype=cv2.CV_32F) for channel in cv2.split(image))
        planes = [resize(channel, small) for channel in channels]
        blurred = cv2.GaussianBlur(np.dstack([*planes, coarse]), (0, 0), sigma / scale)
        low.append(_rows_enlarged(blurred, (h, w)))
    result = generated_u8.copy()
    for rows in row_blocks(h):
        (*bright, lit), (*dark, covered) = (planes_of(rows) for planes_of in low)
        opacity, images = amount * weight[rows], (cv2.split(image[rows]) for image in (generated, paste))
        mixed = []
        for a, b, before, after in zip(bright, dark, *images, strict=True):
            light = (a / np.maximum(lit, 1e-4) + DARK) / (b / np.maximum(covered, 1e-4) + DARK)
            after = after * np.clip(light, 1 / MAX_LIGHT, MAX_LIGHT)
            mixed.append(np.clip(np.rint(before + opacity * (after - before)), 0, 255).astype(np.uint8))
        result[part][rows] = cv2.merge(mixed)
    return result


def _rows_enlarged(small: np.ndarray, size: Size) -> Callable[[slice], Sequence[np.ndarray]]:
    """Any rows of the channels of small (n, m, c) float32, linearly enlarged to size (h, w).

    Of a large image only the rows that are asked for exist, up to rounding equal to the others.
    """
    (h, w), last = size, len(small) - 1
    if h * w <= WHOLE:
        whole = resize(small, size, how="linear")
        return lambda rows: cv2.split(whole[rows])
    wide = cv2.split(resize(small, (len(small), w), how="linear"))
    y = np.clip((np.arange(h) + 0.5) * len(small) / h - 0.5, 0, last)
    above = y.astype(int)
    below, part = np.minimum(above + 1, last), (y - above)[:, None].astype(np.float32)
    return lambda rows: [p[above[rows]] + part[rows] * (p[below[rows]] - p[above[rows]]) for p in wide]
