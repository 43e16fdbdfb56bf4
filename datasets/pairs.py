"""Pre-processing, once, for training and inference: images become what the compositor reads.

h w   pixels of the model's image;  r   pixels of the reference view
Training gives the true image as target and the counterfactual (the scene without the object) as background;
sources without a counterfactual give the target itself as background, and the object's mask. Inference gives
no target. The rest is the same call. `PairOptions` names the switches that restore the published behaviour.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets.augment import AugmentationParams
from datasets.fusion import Cutout, fit_box, warp_into
from datasets.geometry import Box01, Crop, square_padding
from datasets.highfreq import SIDE, collage, high_frequency
from datasets.inputs import (
    PUBLISHED_INFERENCE,
    PUBLISHED_TRAINING,
    Augment,
    Inputs,
    PairOptions,
    mirror,
    permute_colours,
)
from datasets.layers import Layers, build_layers, object_box, plan_crop, reference_cutout
from ldm.images import resize, to_01, to_pm1

__all__ = [
    "PUBLISHED_INFERENCE",
    "PUBLISHED_TRAINING",
    "Augment",
    "AugmentationParams",
    "Inputs",
    "Pair",
    "PairOptions",
]
__all__ += ["build_pair", "mirror", "permute_colours", "reference_view"]


@dataclass(frozen=True, eq=False)
class Pair:
    """One compositing example; `collate` adds the leading b."""

    reference_01: Tensor  # (3, r, r) object on white
    target_pm1: Tensor  # (3, h, w) what the model must paint; the background where no truth is known
    detail_pm1: Tensor  # (4, h, w) collage with the object's detail, then 1 generate, 0 keep, -1 padding
    depth_01: Tensor  # (3, h, w) depth of the composed scene, 1 = nearest
    background_pm1: Tensor  # (3, h, w)
    paste_pm1: Tensor  # (3, h, w) the visible cut-out on the background, what it replaces smoothed away
    edit_mask: Tensor  # (1, h, w) bool, what may change
    visible_mask: Tensor  # (1, h, w) bool, the visible cut-out
    crop: Crop


@dataclass(frozen=True, eq=False)
class _Images:
    """The parts of a pair as arrays."""

    background_u8: np.ndarray  # (h, w, 3)
    collage_u8: np.ndarray  # (h, w, 3)
    paste_u8: np.ndarray  # (h, w, 3)
    depth_01: np.ndarray  # (h, w) float32
    mask: np.ndarray  # (h, w) float32: 1 generate, 0 keep, otherwise padding
    visible: np.ndarray  # (h, w) bool


def build_pair(inputs: Inputs, options: PairOptions, choices: AugmentationParams | None = None) -> Pair:
    """One example. Deterministic: `choices` holds every random decision, by default those of inference."""
    choices = AugmentationParams.fixed(options) if choices is None else choices
    crop = plan_crop(inputs, options, choices)
    cutout = reference_cutout(inputs, options, choices)
    view_u8, view_mask = reference_view(cutout, choices.reference_ratio, options)
    legacy = options.resample == "legacy"
    # Published: everything in pixels of the background, resized at the end.
    layers = build_layers(inputs, options, choices, crop.native if legacy else crop, cutout)
    if not layers.edit.any():
        raise ValueError("nothing to paint: at this box and depth nearer things hide the object completely")
    if legacy:
        detail_u8 = _stretched_view(view_u8, view_mask, layers.region, options)
    else:
        detail_u8 = _placed_detail(cutout, crop.to_frame(object_box(inputs, options)), layers, options)
    mask = np.where(crop.inside, layers.edit, options.mask_pad) if not legacy else layers.edit
    images = _Images(
        layers.background_u8,
        _collage(options, layers, detail_u8),
        layers.paste_u8,
        layers.depth_01,
        mask.astype(np.float32),
        layers.visible,
    )
    return _tensors(inputs, crop, _resized(images, crop, options) if legacy else images, view_u8)


def reference_view(cutout: Cutout, ratio: float, options: PairOptions) -> tuple[np.ndarray, np.ndarray]:
    """The object on white with a margin, square: (r, r, 3) uint8 and its mask (r, r) bool."""
    h, w = cutout.mask.shape
    extra_h, extra_w = int(h * ratio) - h, int(w * ratio) - w
    left, top, right, bottom = square_padding((h + extra_h, w + extra_w))
    above, before = extra_h // 2, extra_w // 2
    sides = top + above, bottom + extra_h - above, left + before, right + extra_w - before
    white = np.where(cutout.mask[..., None], cutout.rgb_u8, 255).astype(np.uint8)
    view = cv2.copyMakeBorder(white, *sides, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    mask = cv2.copyMakeBorder(cutout.mask.astype(np.uint8) * 255, *sides, cv2.BORDER_CONSTANT, value=0)
    side, how = (options.reference_size, options.reference_size), _how(options)
    return resize(view, side, how=how), resize(mask, side, how=how) > 127


def _how(options: PairOptions) -> str:
    """The interpolation of images."""
    return "linear" if options.resample == "legacy" else "area"


def _placed_detail(cutout: Cutout, box: Box01, layers: Layers, options: PairOptions) -> np.ndarray:
    """The detail map (h, w, 3) uint8 where the object stands, in the proportions it has there."""
    if options.hf_mode == "cutout":
        return layers.placed.rgb_u8
    if options.hf_mode == "zero":
        return np.zeros_like(layers.background_u8)
    small = resize(cutout.rgb_u8, (SIDE, SIDE)), resize(cutout.mask, (SIDE, SIDE))
    map_u8 = high_frequency(*small, options.hf_mode, options.hf_threshold)
    h, w = layers.edit.shape
    fitted = fit_box(box, (cutout.mask.shape[0], cutout.mask.shape[1]), options.max_stretch)
    return np.clip(np.rint(warp_into(map_u8.astype(np.float32), fitted, (h, w))), 0, 255).astype(np.uint8)


def _stretched_view(
    view_u8: np.ndarray, view_mask: np.ndarray, region: np.ndarray, options: PairOptions
) -> np.ndarray:
    """Published: the map of the whole reference view, margin included, stretched to the region."""
    result = np.zeros((*region.shape, 3), np.uint8)
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    map_u8 = high_frequency(view_u8, view_mask, options.hf_mode, options.hf_threshold)
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    result[part] = resize(map_u8, (len(rows), len(columns)), how="linear")
    return result


def _collage(options: PairOptions, layers: Layers, detail_u8: np.ndarray) -> np.ndarray:
    """The hint's image (h, w, 3) uint8."""
    if options.collage == "box":
        return np.where(layers.region[..., None], detail_u8, layers.background_u8)
    hide = None if options.show_background else layers.edit
    return collage(layers.clean_u8, detail_u8, layers.coverage_01, hide)


def _resized(images: _Images, crop: Crop, options: PairOptions) -> _Images:
    """Published: arrays in the background's pixels are padded and resized last, the depth in 8 bits."""
    depth_u8 = crop.fit((images.depth_01 * 255).astype(np.uint8), how="linear")
    edit = images.mask.astype(np.uint8)
    if options.mask_resize == "nearest":
        mask = crop.fit(images.mask, how="nearest", fill=options.mask_pad)
    else:
        # Published inference pads 8-bit values with -1, that is 255, before it resizes and compares.
        mask = crop.fit(edit, how="linear", fill=255 if options.mask_pad == 1 else 0) > 0
    return replace(
        images,
        background_u8=crop.fit(images.background_u8, how="linear"),
        collage_u8=crop.fit(images.collage_u8, how="linear"),
        paste_u8=crop.fit(images.paste_u8, how="linear"),
        depth_01=depth_u8 / np.float32(255),
        mask=mask.astype(np.float32),
        visible=crop.fit(images.visible.astype(np.uint8), how="nearest") > 0,
    )


def _tensors(inputs: Inputs, crop: Crop, images: _Images, view_u8: np.ndarray) -> Pair:
    """Arrays at the model's size -> tensors."""
    edit = torch.from_numpy(images.mask == 1)[None]  # (1, h, w)
    background = target = to_pm1(images.background_u8)
    if inputs.target_u8 is not None:
        target = torch.where(edit, to_pm1(crop.take(inputs.target_u8)), background)
    return Pair(
        reference_01=to_01(view_u8),
        target_pm1=target,
        detail_pm1=torch.cat([to_pm1(images.collage_u8), torch.from_numpy(images.mask)[None]]),
        depth_01=torch.from_numpy(images.depth_01).repeat(3, 1, 1),
        background_pm1=background,
        paste_pm1=to_pm1(images.paste_u8),
        edit_mask=edit,
        visible_mask=torch.from_numpy(images.visible)[None],
        crop=crop,
    )
