"""Pre-processing, once, for training and inference: `build_pair` turns pictures into what the compositor reads.

h w   pixels of the model's picture;  r   pixels of the reference view
Training gives the true picture as target and the counterfactual (the scene without the object) as background;
sources without a counterfactual give the target itself as background and the object's mask. Inference gives no
target. Everything else is the same call. `PairOptions` names the switches that restore the published behaviour.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets.augment import Augment, Choices
from datasets.fusion import Cutout, fit_box, warp_into
from datasets.geometry import Crop, resample, square_padding
from datasets.highfreq import SIDE, high_frequency
from datasets.inputs import (
    PUBLISHED_INFERENCE,
    PUBLISHED_TRAINING,
    Inputs,
    PairOptions,
    mirror,
    permute_colours,
)
from datasets.layers import Layers, build_layers, object_box, plan_crop, reference_cutout
from ldm.images import to_01, to_pm1

__all__ = ["PUBLISHED_INFERENCE", "PUBLISHED_TRAINING", "Augment", "Choices", "Inputs", "Pair", "PairOptions",
           "build_pair", "mirror", "permute_colours", "reference_view"]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Pair:
    """One compositing example; `collate` adds the leading b."""

    reference_01: Tensor  # (3, r, r) object on white
    target_pm1: Tensor  # (3, h, w) what the model must paint; the background without a truth
    detail_pm1: Tensor  # (4, h, w) collage with the object's detail, then 1 generate, 0 keep, -1 padding
    depth_01: Tensor  # (3, h, w) depth of the composed scene, 1 = nearest
    background_pm1: Tensor  # (3, h, w)
    paste_pm1: Tensor  # (3, h, w) the visible cut-out on the background
    edit_mask: Tensor  # (1, h, w) bool, what may change
    visible_mask: Tensor  # (1, h, w) bool, the visible cut-out
    crop: Crop


def build_pair(inputs: Inputs, options: PairOptions, choices: Choices | None = None) -> Pair:
    """One example. Deterministic: `choices` holds every random decision, by default those of inference."""
    choices = Choices.fixed(options) if choices is None else choices
    crop = plan_crop(inputs, options, choices)
    cutout = reference_cutout(inputs, options, choices)
    view_u8, view_mask = reference_view(cutout, choices.reference_ratio, options)
    # Published: everything in pixels of the background, resized at the end.
    work = crop.native if options.resample == "legacy" else crop
    layers = build_layers(inputs, options, choices, work, cutout)
    if not layers.edit.any():
        raise ValueError("nothing to paint: at this box and depth nearer things hide the object completely")
    if options.resample == "legacy":
        detail_u8 = _stretched_view(view_u8, view_mask, layers, options)
    else:
        detail_u8 = _placed_detail(cutout, object_box(inputs, options), layers, work, options)
    return _tensors(inputs, options, crop, layers, view_u8, _collage(inputs, options, layers, detail_u8))


def reference_view(cutout: Cutout, ratio: float, options: PairOptions) -> tuple[np.ndarray, np.ndarray]:
    """The object on white with a margin, square: (r, r, 3) uint8 and its mask (r, r) bool."""
    h, w = cutout.mask.shape
    white = np.where(cutout.mask[..., None], cutout.rgb_u8, 255).astype(np.uint8)
    extra_h, extra_w = int(h * ratio) - h, int(w * ratio) - w
    left, top, right, bottom = square_padding((h + extra_h, w + extra_w))
    top, left = top + extra_h // 2, left + extra_w // 2
    bottom, right = bottom + extra_h - extra_h // 2, right + extra_w - extra_w // 2
    side, how = (options.reference_size,) * 2, cv2.INTER_LINEAR if options.resample == "legacy" else None
    white = cv2.copyMakeBorder(white, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    mask = cv2.copyMakeBorder(cutout.mask.astype(np.uint8) * 255, top, bottom, left, right, cv2.BORDER_CONSTANT, value=0)
    return resample(white, side, how), resample(mask, side, how) > 127


def _placed_detail(
    cutout: Cutout, box: tuple[float, float, float, float], layers: Layers, crop: Crop, options: PairOptions
) -> np.ndarray:
    """The detail map (h, w, 3) uint8 where the object goes, in its own proportions."""
    if options.hf_mode == "cutout":
        return layers.placed.rgb_u8
    if options.hf_mode == "zero":
        return np.zeros_like(layers.background_u8)
    small = cv2.resize(cutout.rgb_u8, (SIDE, SIDE)), cv2.resize(cutout.mask.astype(np.float32), (SIDE, SIDE)) > 0.5
    map_u8 = high_frequency(*small, options.hf_mode, options.hf_threshold)
    fitted = fit_box(crop.to_frame(box), (cutout.mask.shape[0], cutout.mask.shape[1]), options.max_stretch)
    return np.clip(np.rint(warp_into(map_u8.astype(np.float32), fitted, crop.size)), 0, 255).astype(np.uint8)


def _stretched_view(view_u8: np.ndarray, view_mask: np.ndarray, layers: Layers, options: PairOptions) -> np.ndarray:
    """Published: the map of the whole reference view, margin included, stretched to the region."""
    result = np.zeros_like(layers.background_u8)
    rows, columns = np.flatnonzero(layers.region.any(axis=1)), np.flatnonzero(layers.region.any(axis=0))
    map_u8 = high_frequency(view_u8, view_mask, options.hf_mode, options.hf_threshold)
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    result[part] = resample(map_u8, (len(rows), len(columns)), cv2.INTER_LINEAR)
    return result


def _collage(inputs: Inputs, options: PairOptions, layers: Layers, detail_u8: np.ndarray) -> np.ndarray:
    """The hint's picture (h, w, 3): background, and where the model paints the object's detail or nothing."""
    if options.collage == "box":
        return np.where(layers.region[..., None], detail_u8, layers.background_u8)
    under = layers.background_u8.astype(np.float32)
    if not (options.show_background and inputs.background_known):
        under = np.where(layers.edit[..., None], 0, under)
    part = layers.coverage_01[..., None]
    return np.rint(under + part * (detail_u8.astype(np.float32) - under)).astype(np.uint8)


def _tensors(
    inputs: Inputs, options: PairOptions, crop: Crop, layers: Layers, view_u8: np.ndarray, collage_u8: np.ndarray
) -> Pair:
    """The arrays at the model's size, as tensors."""
    how = cv2.INTER_LINEAR if options.resample == "legacy" else None
    ready = layers.edit.shape == crop.size and options.resample != "legacy"

    def picture(image_u8: np.ndarray) -> Tensor:
        return to_pm1(image_u8 if ready else crop.fit(image_u8, how=how))

    background = picture(layers.background_u8)
    target = background
    if inputs.target_u8 is not None:
        truth = crop.take(inputs.target_u8, how=how)
        edit = torch.from_numpy(_mask_channel(layers.edit, crop, options, ready) == 1)
        target = torch.where(edit, to_pm1(truth), background)
    mask = _mask_channel(layers.edit, crop, options, ready)
    depth = layers.depth_01 if ready else crop.fit((layers.depth_01 * 255).astype(np.uint8), how=how) / np.float32(255)
    detail = torch.cat([picture(collage_u8), torch.from_numpy(mask)[None]])  # (4, h, w)
    visible = layers.visible if ready else crop.fit(layers.visible.astype(np.uint8), how=cv2.INTER_NEAREST) > 0
    return Pair(
        reference_01=to_01(view_u8),
        target_pm1=target,
        detail_pm1=detail,
        depth_01=torch.from_numpy(np.ascontiguousarray(depth)).expand(3, -1, -1).contiguous(),
        background_pm1=background,
        paste_pm1=picture(layers.paste_u8),
        edit_mask=torch.from_numpy(mask == 1)[None],
        visible_mask=torch.from_numpy(visible)[None],
        crop=crop,
    )


def _mask_channel(edit: np.ndarray, crop: Crop, options: PairOptions, ready: bool) -> np.ndarray:
    """(h, w) float32: 1 generate, 0 keep, -1 padding (or `mask_pad`)."""
    if ready:
        return np.where(crop.inside, edit.astype(np.float32), np.float32(options.mask_pad))
    if options.mask_resize == "linear":
        # Published inference pads 8-bit values with -1, that is 255, before it resizes and compares with 0.5.
        fill = 255 if options.mask_pad == 1 else options.mask_pad
        return (crop.fit(edit.astype(np.float32), how=cv2.INTER_LINEAR, fill=fill) > 0.5).astype(np.float32)
    return crop.fit(edit.astype(np.float32), how=cv2.INTER_NEAREST, fill=options.mask_pad)
