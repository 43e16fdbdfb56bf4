"""Pre-processing, once, for training and inference: images become what the compositor reads.

h w   pixels of the model's image;  r   pixels of the reference view
Training gives the true image as target and the counterfactual (the scene without the object) as background;
sources without a counterfactual give the target itself as background, and the object's mask. Inference gives
no target. The rest is the same call. `PairOptions` names the switches that restore the published behaviour.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets.fusion import Cutout, collage, warp_into
from datasets.geometry import Crop, square_padding, tight_slices
from datasets.inputs import HF_MODES, AugmentationParams, Inputs, PairOptions
from datasets.layers import Geometry, Layers
from ldm.images import resize, to_01, to_pm1

HIGH_FREQUENCY_SIDE = 256  # pixels; the high-frequency map is computed at this size, as published


@dataclass(frozen=True, eq=False)
class Pair:
    """One compositing example; `collate` adds the leading b."""

    reference_01: Tensor  # (3, r, r) object on white
    target_pm1: Tensor  # (3, h, w) what the model must paint; the background where it is not known
    detail_pm1: Tensor  # (4, h, w) collage with the object's detail, then 1 generate, 0 keep, -1 padding
    depth_01: Tensor  # (3, h, w) depth of the composed scene, 1 = nearest
    background_pm1: Tensor  # (3, h, w)
    paste_pm1: Tensor  # (3, h, w) the visible cut-out on the background, what it replaces smoothed away
    edit_mask: Tensor  # (1, h, w) bool, what may change
    visible_mask: Tensor  # (1, h, w) bool, the visible cut-out
    geometry: Geometry

    @property
    def crop(self) -> Crop:
        return self.geometry.crop


def build_pair(inputs: Inputs, options: PairOptions, params: AugmentationParams | None = None) -> Pair:
    """One example. Deterministic: `params` holds every random decision, by default those of inference."""
    return pair_of(Geometry.of(inputs, options, params))


def pair_of(geometry: Geometry) -> Pair:
    """The example of a geometry; ValueError where nothing of the object would show."""
    inputs, options, crop = geometry.inputs, geometry.options, geometry.crop
    # Published: everything in pixels of the background, resized at the end.
    layers = geometry.native_layers if geometry.legacy else geometry.layers(crop)
    if not layers.edit.any():
        raise ValueError("nothing to paint: at this box and depth nearer things hide the object completely")

    def fit(image: np.ndarray, how: str = "linear") -> np.ndarray:
        return crop.fit(image, how=how) if geometry.legacy else image

    view_u8, view_mask = square_view(geometry.cutout, geometry.params.reference_ratio, options)
    if geometry.legacy:
        # Published: the map of the whole reference view, margin included, stretched to the region.
        map_u8 = high_frequency(view_u8, view_mask, options.hf_mode, options.hf_threshold)
        detail_u8, part = np.zeros_like(layers.background_u8), tight_slices(layers.region)
        detail_u8[part] = resize(map_u8, detail_u8[part].shape[:2], how="linear")
        depth_01 = fit((layers.depth_01 * 255).astype(np.uint8)) / np.float32(255)  # the depth in 8 bits
        if options.mask_resize == "nearest":
            mask = crop.fit(layers.edit.astype(np.float32), how="nearest", fill=options.mask_pad)
        else:  # published inference pads 8-bit values with -1, that is 255, before it resizes and compares
            fill = 255 if options.mask_pad == 1 else 0
            mask = crop.fit(layers.edit.astype(np.uint8), how="linear", fill=fill) > 0
    else:
        detail_u8 = _placed_detail(geometry, layers)
        depth_01 = layers.depth_01
        mask = np.where(crop.inside, layers.edit, options.mask_pad)
    mask_channel = torch.from_numpy(mask.astype(np.float32))[None]
    edit = mask_channel == 1  # (1, h, w)
    if options.collage == "box":
        hint_u8 = np.where(layers.region[..., None], detail_u8, layers.background_u8)
    else:
        hide = None if options.show_background else layers.edit
        hint_u8 = collage(layers.clean_u8, detail_u8, layers.coverage_01, hide)
    background = target = to_pm1(fit(layers.background_u8))
    if inputs.target_u8 is not None:
        target = torch.where(edit, to_pm1(crop.take(inputs.target_u8)), background)
    return Pair(
        reference_01=to_01(view_u8),
        target_pm1=target,
        detail_pm1=torch.cat([to_pm1(fit(hint_u8)), mask_channel]),
        depth_01=torch.from_numpy(depth_01).repeat(3, 1, 1),
        background_pm1=background,
        paste_pm1=to_pm1(fit(layers.paste_u8)),
        edit_mask=edit,
        visible_mask=torch.from_numpy(fit(layers.visible.astype(np.uint8), "nearest") > 0)[None],
        geometry=geometry,
    )


def square_view(cutout: Cutout, ratio: float, options: PairOptions) -> tuple[np.ndarray, np.ndarray]:
    """The object on white with a margin, square: (r, r, 3) uint8 and its mask (r, r) bool."""
    h, w = cutout.mask.shape
    extra_h, extra_w = int(h * ratio) - h, int(w * ratio) - w
    left, top, right, bottom = square_padding((h + extra_h, w + extra_w))
    above, before = extra_h // 2, extra_w // 2
    sides = top + above, bottom + extra_h - above, left + before, right + extra_w - before
    white = np.where(cutout.mask[..., None], cutout.rgb_u8, 255).astype(np.uint8)
    view = cv2.copyMakeBorder(white, *sides, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    mask = cv2.copyMakeBorder(cutout.mask.astype(np.uint8) * 255, *sides, cv2.BORDER_CONSTANT, value=0)
    size = (options.reference_size, options.reference_size)
    how = "linear" if options.resample == "legacy" else "area"
    return resize(view, size, how=how), resize(mask, size, how=how) > 127


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


def _placed_detail(geometry: Geometry, layers: Layers) -> np.ndarray:
    """The detail map (h, w, 3) uint8 where the object stands, in the proportions it has there."""
    options, cutout = geometry.options, geometry.cutout
    if options.hf_mode == "cutout":
        return layers.placed.rgb_u8
    side = (HIGH_FREQUENCY_SIDE, HIGH_FREQUENCY_SIDE)
    small = resize(cutout.rgb_u8, side), resize(cutout.mask, side)
    map_u8 = high_frequency(*small, options.hf_mode, options.hf_threshold)
    warped = warp_into(map_u8.astype(np.float32), geometry.fitted_box(geometry.crop), geometry.crop.size)
    return np.clip(np.rint(warped), 0, 255).astype(np.uint8)
