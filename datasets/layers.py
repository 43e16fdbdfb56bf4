"""Where one object goes, decided once per composite, and what then lies where in a frame.

`Geometry` holds box, region, crop and cut-out. `pair_of` reads it in the crop at the size of the model,
`stitch` in the crop at the size of the background.
h w   pixels of the frame
"""

from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np

from datasets.fusion import (
    Cutout,
    PlacedCutout,
    collage,
    fill_colour,
    fill_depth,
    fit_box,
    hidden_object,
    occluders,
    place_cutout,
    place_cutout_legacy,
    tight_cutout,
)
from datasets.geometry import (
    Box,
    Box01,
    Crop,
    bbox_of_mask,
    box_from_01,
    box_to_pixels,
    expand_box,
    square_box,
    square_padding,
    whole_box,
)
from datasets.inputs import AUTO, AugmentationParams, Inputs, PairOptions, gain_table
from datasets.masks import dilate, mask_level, mask_of_box

LEAST_CONTEXT = 1.1  # side of the crop over the region, however small the image; chosen: some border is seen
LEVEL_OF_MODE = {"place": "box", "replace": "box", "id-transfer": "fine", "inpaint": "exact"}


@dataclass(frozen=True, eq=False)
class Layers:
    """The contents of one frame."""

    background_u8: np.ndarray  # (h, w, 3)
    clean_u8: np.ndarray  # (h, w, 3), what is to be replaced smoothed away
    depth_01: np.ndarray  # (h, w) float32, the object in it where the mode fuses
    placed: PlacedCutout  # the object before anything hides it
    coverage_01: np.ndarray  # (h, w) float32, how much of a pixel the object covers where nothing hides it
    edit: np.ndarray  # (h, w) bool, what may change
    keep: np.ndarray  # (h, w) bool, what is certainly in front of the object
    region: np.ndarray  # (h, w) bool, the box with its margin

    @property
    def visible(self) -> np.ndarray:
        """(h, w) bool: the object's cut-out where nothing hides it."""
        return self.coverage_01 > 0.5

    @property
    def paste_u8(self) -> np.ndarray:
        """(h, w, 3): the visible cut-out on the clean background, with soft edges."""
        return collage(self.clean_u8, self.placed.rgb_u8, self.coverage_01, None)


@dataclass(frozen=True, eq=False)
class Geometry:
    """Box, region and crop of one composite, and its object. Boxes are in pixels of the background."""

    inputs: Inputs
    options: PairOptions
    params: AugmentationParams
    box_xyxy: Box01  # where the object goes, without rounding
    region_xyxy: Box  # the box with its margin
    crop: Crop
    cutout: Cutout

    @classmethod
    def of(cls, inputs: Inputs, options: PairOptions, params: AugmentationParams | None = None) -> "Geometry":
        """params: every random decision, by default those of inference."""
        params = AugmentationParams.fixed(options) if params is None else params
        h, w = inputs.background_u8.shape[:2]
        box: Box01
        if inputs.box01_xyxy is None:
            assert inputs.target_mask is not None  # Inputs refuses to be without both
            box = bbox_of_mask(inputs.target_mask, options.bbox_end)
        else:
            to_pixels = box_to_pixels if options.resample == "legacy" else box_from_01
            box = to_pixels(inputs.box01_xyxy, (h, w))
        region = expand_box(box, options.box_ratio, (h, w), options.bbox_end)
        ratio = params.crop_ratio
        if options.border == "shift":  # context gives way before the crop would need padding
            longest = max(region[2] - region[0], region[3] - region[1])
            ratio = min(ratio, max(LEAST_CONTEXT, min(h, w) / longest))
        wide = expand_box(region, ratio, (h, w) if options.border == "clip" else None, options.bbox_end)
        x0, y0, x1, y1 = square_box(wide, (h, w), options.border)
        crop = Crop((x0, y0, x1, y1), square_padding((y1 - y0, x1 - x0)), options.size, (h, w))
        cutout = tight_cutout(
            inputs.reference_u8,
            inputs.reference_mask,
            inputs.reference_depth_01,
            end=options.bbox_end,
            norm=options.fusion_norm,
            fill=options.depth_fill,
        )
        if params.flip:
            cutout = Cutout(cutout.rgb_u8[:, ::-1], cutout.mask[:, ::-1], cutout.depth_01[:, ::-1])
        rgb_u8 = cutout.rgb_u8
        if params.brightness != 0 or params.gain != (1.0, 1.0, 1.0):
            rgb_u8 = cv2.LUT(rgb_u8, gain_table(np.array(params.gain), 255 * params.brightness))
        cutout = replace(cutout, rgb_u8=rgb_u8 * cutout.mask[..., None])
        return cls(inputs, options, params, box, region, crop, cutout)

    @property
    def legacy(self) -> bool:
        """Published resampling."""
        return self.options.resample == "legacy"

    @cached_property
    def native_layers(self) -> Layers:
        """The contents of the crop in pixels of the background."""
        return self.layers(self.crop.native)

    def fitted_box(self, crop: Crop) -> Box01:
        """Where the object stands in a frame, in the proportions that it keeps there."""
        h, w = self.cutout.mask.shape
        return fit_box(crop.to_frame(self.box_xyxy), (h, w), self.options.max_stretch)

    def layers(self, crop: Crop) -> Layers:
        """The contents of the frame of a crop."""
        inputs, options, (far, near) = self.inputs, self.options, self.inputs.depth_range
        depth_01 = crop.take(inputs.background_depth_01).astype(np.float32, copy=False)
        target = None if inputs.target_mask is None else crop.take_mask(inputs.target_mask)
        region = mask_of_box(whole_box(crop.to_frame(self.region_xyxy)), crop.size)
        fused = inputs.mode in ("place", "replace")
        if inputs.mode == "replace":
            depth_01 = fill_depth(depth_01, region if target is None else dilate(target, options.dilation))
        if self.legacy:
            box = whole_box(crop.to_frame(self.box_xyxy))
            placed = place_cutout_legacy(self.cutout, box, (far, near), crop.size)
        else:
            placed = place_cutout(self.cutout, self.fitted_box(crop), (far, near), crop.size)
        keep = occluders(depth_01, near) if fused else np.zeros(crop.size, bool)
        shown = target
        if fused or shown is None:
            shown = ~hidden_object(depth_01, placed, near, options.occlusion)
        edit = self._edit_region(crop, placed.alpha_01 * shown > 0.5, target, region) & ~keep
        coverage = np.where(shown & edit, placed.alpha_01, 0).astype(np.float32)
        if fused:
            depth_01 = np.where(coverage > 0.5, placed.depth_01, depth_01).astype(np.float32)
        if inputs.target_depth_01 is not None:
            depth_01 = crop.take(inputs.target_depth_01).astype(np.float32, copy=False)
        background_u8 = crop.take(inputs.background_u8)
        clean_u8 = background_u8 if inputs.background_known else fill_colour(background_u8, edit)
        return Layers(background_u8, clean_u8, depth_01, placed, coverage, edit, keep, region)

    def _edit_region(
        self, crop: Crop, silhouette: np.ndarray, target: np.ndarray | None, region: np.ndarray
    ) -> np.ndarray:
        """(h, w) bool: what may change, before occluders are taken out."""
        inputs, options, params = self.inputs, self.options, self.params
        if inputs.region is not None:
            return crop.take_mask(inputs.region)
        replaced = inputs.mode == "replace"
        if target is not None and (not replaced or inputs.target_u8 is not None):
            silhouette = target
        level = LEVEL_OF_MODE[inputs.mode] if params.mask_level == AUTO else params.mask_level
        shape = "legacy-rect" if self.legacy else "ellipse"
        rng = np.random.default_rng(params.mask_seed)
        edit = mask_level(silhouette, level, region, options.dilation, rng, shape=shape)
        if replaced and target is not None:
            edit = edit | dilate(target, options.dilation)
        return edit & crop.inside
