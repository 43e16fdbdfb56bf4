"""Crop and stitch: the model's image back into the background, at the background's own resolution.

H W   pixels of the background;  h w   pixels of the cut (the crop before padding and resizing)
Outside the final edit mask, and wherever something nearer stands, every byte stays what it was.
"""

from dataclasses import dataclass
from math import sqrt

import cv2
import numpy as np

from datasets.fusion import DETAIL_SCALE
from datasets.geometry import tight_slices
from datasets.masks import feather_inside
from datasets.pairs import Geometry
from ldm.decode import LoadedImage
from ldm.images import resize, row_blocks

LEGACY_MARGIN = 5  # pixels of the crop's rectangle that the published paste leaves out
FEATHER = 0.02  # of the crop's side; chosen
WIDE = 8  # pixels; a blur with a larger sigma is computed on a smaller image, for speed
MAX_LIGHT = 3.0  # a cut-out is made at most so many times as light or dark; chosen
DARK = 5.0  # of 255, added to both before they are divided, as black says nothing about the light; chosen


@dataclass(frozen=True, eq=False)
class Stitched:
    """A finished image and its masks, all (H, W)."""

    result: LoadedImage
    edit_mask: np.ndarray  # bool; outside it the result equals the background
    visible_mask: np.ndarray  # bool, the object's cut-out where nothing hides it
    keep_mask: np.ndarray  # bool, what is certainly in front of the object

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
    feather: float = FEATHER,
    paste: str = "mask-feather",
    background: LoadedImage | None = None,
) -> Stitched:
    """Finish one image: back to the background's pixels, detail transfer, masked blend.

    geometry:     of the pair that was painted (pair.geometry)
    generated_u8: (h', w', 3) the model's image of the crop (legacy-rect takes floats too and truncates them)
    detail:       0 to 1, how much of the result is the cut-out itself, in the light of the model's image
    detail_scale: what counts as fine, as a fraction of the object's size
    feather:      width of the blend inside the edit mask, as a fraction of the crop's side
    paste:        "mask-feather", or "legacy-rect" for the published rectangle
    background:   the file that the geometry's background was read from, for its transparency and profile
    """
    layers, crop, window, inputs = geometry.native_layers, geometry.crop, geometry.window, geometry.inputs
    background = background or LoadedImage(inputs.background_u8)
    if paste == "legacy-rect":  # the first row dropped, the whole crop minus a margin replaced
        image, inner = crop.undo(generated_u8[1:], how="linear"), np.s_[LEGACY_MARGIN:-LEGACY_MARGIN]
        edit = np.zeros(image.shape[:2], bool)
        edit[inner, inner] = True
        image, weight_01 = image.astype(np.uint8), edit.astype(np.float32)
    elif paste == "mask-feather":
        image = crop.undo(generated_u8)[crop.within(window)]
        if detail > 0:
            painted = image
            sigma = max(1.0, detail_scale * sqrt(np.count_nonzero(layers.visible)))
            image = transfer_detail(painted, layers.placed.rgb_u8, layers.coverage_01, detail, sigma)
            if inputs.mode == "place":  # the background is known under the whole edit region
                rest = np.where(layers.edit, 1 - layers.coverage_01, 0).astype(np.float32)
                around = transfer_detail(painted, layers.background_u8, rest, detail, sigma)
                # Both parts are fractions of one pixel where the edge of the object runs through it.
                image = np.clip(image.astype(np.int16) + around - painted, 0, 255).astype(np.uint8)
        edit, width = layers.edit, feather * max(crop.padded_size)
        weight_01 = feather_inside(edit, width, open_to=layers.keep)  # sharp towards what hides the object
    else:
        raise ValueError(f"unknown paste {paste!r}; allowed: mask-feather, legacy-rect")
    frame = crop.native if paste == "legacy-rect" else window
    result = background.painted(image, weight_01, edit, frame.part)
    return Stitched(result, frame.embed(edit), window.embed(layers.visible), window.embed(layers.keep))


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
    weight, generated, paste = coverage[part].astype(np.float32), generated_u8[part], paste_u8[part]
    # A wide blur is computed on a smaller image, where sigma is at least WIDE pixels.
    (h, w), scale, low = weight.shape, max(1.0, sigma / WIDE), []
    planes = np.empty((h, w, 4), np.float32)
    planes[..., 3] = weight
    for image in (generated, paste):
        np.multiply(image, weight[..., None], out=planes[..., :3])
        small = resize(planes, (max(1, round(h / scale)), max(1, round(w / scale))))
        low.append(resize(cv2.GaussianBlur(small, (0, 0), sigma / scale), (h, w), how="linear"))
    result = generated_u8.copy()
    for rows in row_blocks(h):
        here = weight[rows] > 0
        bright, dark = (b[rows][here] for b in low)
        light = [b[:, :3] / np.maximum(b[:, 3:], 1e-4) + DARK for b in (bright, dark)]
        before, opacity = generated[rows][here].astype(np.float32), amount * weight[rows][here][:, None]
        lit = paste[rows][here] * np.clip(light[0] / light[1], 1 / MAX_LIGHT, MAX_LIGHT)
        result[part][rows][here] = np.clip(np.rint(before + opacity * (lit - before)), 0, 255)
    return result
