"""Changes of whole samples; the view of a reference, and the light on it."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from datasets.fusion import Cutout
from datasets.geometry import square_padding
from datasets.inputs import SAME_SIZE, AugmentationParams, Inputs, PairOptions
from ldm.images import resize


def mirror(inputs: Inputs) -> Inputs:
    """The sample with left and right exchanged everywhere, reference included."""
    names = [name for like, names in SAME_SIZE.items() for name in (like, *names)]
    flipped = {name: value[:, ::-1] for name in names if (value := getattr(inputs, name)) is not None}
    if inputs.box01_xyxy is not None:
        x0, y0, x1, y1 = inputs.box01_xyxy
        flipped["box01_xyxy"] = (1 - x1, y0, 1 - x0, y1)
    return replace(inputs, **flipped)


def permute_colours(inputs: Inputs, order: Sequence[int]) -> Inputs:
    """The sample with its colour channels in another order everywhere."""
    names = ("reference_u8", "background_u8", "target_u8")
    moved = {name: value[..., list(order)] for name in names if (value := getattr(inputs, name)) is not None}
    return replace(inputs, **moved)


def relight_room(inputs: Inputs, gains: Sequence[float]) -> Inputs:
    """The sample with background and target in other light; the reference stays as it is.

    gains: factors on red, green and blue of linear light (display gamma 2.2); what gets too light is cut off
    """
    table = gain_table(np.array(gains) ** (1 / 2.2))
    target_u8 = None if inputs.target_u8 is None else cv2.LUT(inputs.target_u8, table)
    return replace(inputs, background_u8=cv2.LUT(inputs.background_u8, table), target_u8=target_u8)


def gain_table(factors: np.ndarray, shift: float = 0.0) -> np.ndarray:
    """(1, 256, 3) uint8: every value of each channel times its factor (3,), plus a shift."""
    values = np.arange(256, dtype=np.float64)[:, None] * factors + shift
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)[None]


def relit(rgb_u8: np.ndarray, params: AugmentationParams) -> np.ndarray:
    """(h, w, 3) uint8 with the brightness and the gain of each channel of the random decisions."""
    if params.brightness == 0 and params.gain == (1.0, 1.0, 1.0):
        return rgb_u8
    return cv2.LUT(rgb_u8, gain_table(np.array(params.gain), 255 * params.brightness))


def square_view(cutout: Cutout, ratio: float, options: PairOptions) -> np.ndarray:
    """The object on white with a margin, square: (r, r, 3) uint8."""
    white = np.full_like(cutout.rgb_u8, 255, order="C")
    return squared(cv2.copyTo(cutout.rgb_u8, cutout.mask.astype(np.uint8), white), ratio, options, 255)


def squared(image_u8: np.ndarray, ratio: float, options: PairOptions, fill: int) -> np.ndarray:
    """An image (h, w[, 3]) uint8 of a cut-out with a margin, square: (r, r[, 3])."""
    h, w = image_u8.shape[:2]
    extra_h, extra_w = int(h * ratio) - h, int(w * ratio) - w
    left, top, right, bottom = square_padding((h + extra_h, w + extra_w))
    above, before = extra_h // 2, extra_w // 2
    sides = top + above, bottom + extra_h - above, left + before, right + extra_w - before
    view = cv2.copyMakeBorder(image_u8, *sides, cv2.BORDER_CONSTANT, value=[fill] * 4)
    size = (options.reference_size, options.reference_size)
    return resize(view, size, how="linear" if options.resample == "legacy" else "area")
