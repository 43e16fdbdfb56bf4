"""Pre-processing, once, for training and inference: images become what the compositor reads.

`Geometry` decides once per composite where the object goes: box, region, crop, cut-out. Its `layers` say what
lies where in a frame: `pair_of` reads them at the size of the model, `datasets.pasteback.stitch` at that of
the background. Training gives the true image as target and the counterfactual (the scene without the object)
as background, or the target itself and the object's mask. Inference gives no target.
Legend: h w pixels of the frame; r pixels of the reference view.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets import fusion
from datasets import geometry as geo
from datasets.augment import relit, square_view, squared
from datasets.fusion import Layers
from datasets.geometry import Box, Box01, Crop, Size
from datasets.inputs import AUTO, AugmentationParams, Inputs, PairOptions
from datasets.masks import Rim, dilate, mask_level, masked
from datasets.planes import planes_behind
from ldm.images import planes_of, resize, to_pm1

LEAST_MARGIN = 0.03  # of the crop's side round what may change; more than any feather (0.02); chosen
FUSED = ("place", "replace")  # modes that put the object's depth into the scene's
LEVEL_OF_MODE = {"place": "box", "replace": "box", "id-transfer": "fine", "inpaint": "exact"}


@dataclass(frozen=True, eq=False)
class Geometry:
    """Box, region and crop of one composite, and its object. Boxes are in pixels of the background."""

    inputs: Inputs
    options: PairOptions
    params: AugmentationParams
    box_xyxy: Box01  # where the object goes, without rounding
    region_xyxy: Box  # the box with its margin
    crop: Crop
    cutout: fusion.Cutout

    @classmethod
    def of(cls, inputs: Inputs, options: PairOptions, params: AugmentationParams | None = None) -> "Geometry":
        """params: every random decision, by default those of inference."""
        params = AugmentationParams.fixed(options) if params is None else params
        h, w = inputs.background_u8.shape[:2]
        box: Box01
        if inputs.box01_xyxy is None:
            assert inputs.target_mask is not None  # Inputs refuses to be without both
            box = geo.bbox_of_mask(inputs.target_mask, options.bbox_end)
        else:
            to_pixels = geo.truncated_box if options.resample == "legacy" else geo.box_from_01
            box = to_pixels(inputs.box01_xyxy, (h, w))
        images = inputs.reference_u8, inputs.reference_mask, inputs.reference_depth_01
        fill = options.depth_fill if inputs.mode in FUSED else "flat"  # elsewhere nothing reads it
        cutout = fusion.tight_cutout(*images, options.bbox_end, options.fusion_norm, fill)
        if params.flip:
            cutout = fusion.Cutout(cutout.rgb_u8[:, ::-1], cutout.mask[:, ::-1], cutout.depth_01[:, ::-1])
        outline = inputs.painted_box(options, box, cutout)
        region = geo.expand_box(outline, options.box_ratio, (h, w), options.bbox_end)
        shape = params.crop_ratio, options.size, options.border, options.bbox_end
        crop = geo.crop_round(region, (h, w), *shape)
        if inputs.mode == "replace" and inputs.target_mask is not None and options.resample != "legacy":
            gone = geo.bbox_of_mask(inputs.target_mask)  # all of it goes, also where the object does not
            if geo.hull_box(crop.box_xyxy, gone) != crop.box_xyxy:
                crop = geo.crop_round(geo.hull_box(region, gone), (h, w), *shape)
        if not options.augment.whole_view and (params.brightness != 0 or params.gain != (1.0, 1.0, 1.0)):
            cutout = replace(cutout, rgb_u8=masked(relit(cutout.rgb_u8, params), cutout.mask))
        if inputs.reference_alpha_01 is not None and params == AugmentationParams.fixed(options):
            soft = inputs.reference_u8, inputs.reference_mask, inputs.reference_alpha_01
            cutout = replace(cutout, rim=Rim.of(*soft, options.bbox_end))
        return cls(inputs, options, params, box, region, crop, cutout)

    @property
    def legacy(self) -> bool:
        """Published resampling."""
        return self.options.resample == "legacy"

    @cached_property
    def window(self) -> Crop:
        """The part of the crop in which anything may change, and a margin, in pixels of the background."""
        if self.legacy or self.params.mask_level == "perturbed":  # they look at the whole crop
            return self.crop.native
        masks = (mask for mask in (self.inputs.target_mask, self.inputs.region) if mask is not None)
        boxes = np.array([self.region_xyxy, self.box_xyxy, *(geo.bbox_of_mask(m) for m in masks if m.any())])
        reach = self.options.dilation * (4 if self.params.mask_level == "coarse" else 1)
        margin = max(LEAST_MARGIN, reach) * max(self.crop.padded_size) + 2
        return self.crop.narrowed([*boxes[:, :2].min(0) - margin, *boxes[:, 2:].max(0) + margin])

    def fit(self, image: np.ndarray) -> np.ndarray:
        """An image (h, w[, c]) of the layers of a pair in the size of the model."""
        return self.crop.fit(image, how="linear") if self.legacy else image

    @cached_property
    def native_layers(self) -> Layers:
        return self.layers(self.window)

    @cached_property
    def model_layers(self) -> Layers:
        return self.native_layers if self.legacy else self.layers(self.crop)

    def over(self, cut_u8: np.ndarray) -> "Geometry":
        """With layers of another image, of which the crop's own pixels are given; they are not kept."""
        geometry, own = replace(self), self.crop.within(self.window)
        native = replace(self.native_layers, background_u8=cut_u8[own].copy())
        model = native if self.legacy else self.layers(self.crop, cut_u8)
        vars(geometry).update(native_layers=native, model_layers=model)
        return geometry

    @cached_property
    def file_depth_u8(self) -> np.ndarray:
        """(H, W): the whole fused depth after the 8-bit file that the published code writes and stretches."""
        h, w = self.inputs.background_u8.shape[:2]
        whole = geo.Crop((0, 0, w, h), (0, 0, 0, 0), (h, w), (h, w))
        levels = np.rint(self.layers(whole).depth_01 * 255)
        return cv2.normalize(levels, np.empty_like(levels), 0, 255, cv2.NORM_MINMAX).astype(np.uint8)

    def fitted_box(self, crop: Crop) -> Box01:
        """The part of the box that the object fills in a frame, in the middle of the bottom edge.

        It is stretched by at most `max_stretch`: 1 keeps its proportions, 100 fills any box (published).
        """
        (h, w), (x0, y0, x1, y1) = self.cutout.mask.shape, crop.to_frame(self.box_xyxy)
        scale_x, scale_y, limit = (x1 - x0) / w, (y1 - y0) / h, self.options.max_stretch
        width, height = w * min(scale_x, scale_y * limit), h * min(scale_y, scale_x * limit)
        centre = (x0 + x1) / 2
        return centre - width / 2, y1 - height, centre + width / 2, y1

    def layers(self, crop: Crop, cut_u8: np.ndarray | None = None) -> Layers:
        """cut_u8: pixels of the background in the place of those of the inputs."""
        inputs, options, (far, near) = self.inputs, self.options, self.inputs.depth_range
        frame = crop.size if crop is self.crop else self.crop.native.size  # of which dilation is a fraction
        depth_01 = crop.take(inputs.background_depth_01).astype(np.float32, copy=False)
        target = None if inputs.target_mask is None else crop.take_mask(inputs.target_mask)
        region = geo.mask_of_box(geo.whole_box(crop.to_frame(self.region_xyxy)), crop.size)
        fused = inputs.mode in FUSED
        if inputs.mode == "replace":
            hole = region if target is None else dilate(target, options.dilation, frame=frame)
            exact = self.legacy or inputs.target_u8 is not None  # as published, and as networks were trained
            depth_01 = fusion.fill_depth(depth_01, hole) if exact else planes_behind(depth_01, hole)[0]
        box = crop.to_frame(self.box_xyxy) if self.legacy else self.fitted_box(crop)
        placed = fusion.place_cutout(self.cutout, box, (far, near), crop.size, self.legacy)
        hides = fused and options.occlusion != "none"
        keep = fusion.occluders(depth_01, near) if hides else np.zeros(crop.size, bool)
        shown = target
        if fused or shown is None:
            shown = fusion.unhidden(depth_01, placed, near, options.occlusion)
        edit = self._edit_region(crop, frame, (placed.alpha_01 > 0.5) & shown, target, region)
        if options.occlusion != "published":
            edit = edit & ~keep
        coverage = cv2.copyTo(placed.alpha_01, (shown & edit).view(np.uint8))
        if fused:
            depth_01 = depth_01.copy()
            cv2.copyTo(placed.depth_01, (coverage > 0.5).view(np.uint8), depth_01)
        if inputs.target_depth_01 is not None:
            depth_01 = crop.take(inputs.target_depth_01).astype(np.float32, copy=False)
        # Whether the background under the object is real and not the answer.
        known = inputs.mode == "place" and (inputs.target_u8 is not None or inputs.target_mask is None)
        shown_u8 = crop.fit(inputs.background_u8[crop.part] if cut_u8 is None else cut_u8)
        return Layers(shown_u8, depth_01, placed, coverage, edit, keep, region, known)

    def _edit_region(
        self, crop: Crop, frame: Size, silhouette: np.ndarray, target: np.ndarray | None, region: np.ndarray
    ) -> np.ndarray:
        """(h, w) bool: what may change, before occluders are taken out."""
        inputs, options, params = self.inputs, self.options, self.params
        if inputs.region is not None:
            return crop.take_mask(inputs.region)
        replaced = inputs.mode == "replace"
        if target is not None and (not replaced or inputs.target_u8 is not None):
            silhouette = target
        elif replaced and options.region_of == "visible":  # published: all of the box
            silhouette = geo.mask_of_box(geo.whole_box(crop.to_frame(self.box_xyxy)), crop.size)
        level = LEVEL_OF_MODE[inputs.mode] if params.mask_level == AUTO else params.mask_level
        shape = "legacy-rect" if self.legacy else "ellipse"
        rng = np.random.default_rng(params.mask_seed)
        edit = mask_level(silhouette, level, region, options.dilation, rng, shape=shape, frame=frame)
        if replaced and target is not None and inputs.target_u8 is None:
            edit = edit | dilate(target, options.dilation, frame=frame)
        if inputs.within_mask and target is not None:
            edit = edit & target
        return edit & crop.inside


@dataclass(frozen=True, eq=False)
class Pair:
    """One compositing example; `collate` adds the leading b. What a model reads is made by `model_inputs`.

    Training moves the tensors only; background, paste and visible mask are made when they are read.
    """

    reference_u8: Tensor  # (3, r, r) object on white
    target_u8: Tensor  # (3, h, w) what the model must paint; the background where it is not known
    hint_u8: Tensor  # (3, h, w) collage with the object's detail
    regions: Tensor  # (1, h, w) int8: 1 generate, 0 keep, -1 padding
    scene_depth_01: Tensor  # (1, h, w) float32 depth of the composed scene, 1 = nearest
    geometry: Geometry
    layers: Layers  # in the crop, or in pixels of the background where resampling is the published one

    reference_01 = property(lambda self: model_inputs(vars(self))["reference_01"])
    target_pm1 = property(lambda self: model_inputs(vars(self))["target_pm1"])
    detail_pm1 = property(lambda self: model_inputs(vars(self))["detail_pm1"])
    depth_01 = property(lambda self: model_inputs(vars(self))["depth_01"])
    edit_mask = property(lambda self: model_inputs(vars(self))["edit_mask"])

    @property
    def crop(self) -> Crop:
        return self.geometry.crop

    @property
    def background_pm1(self) -> Tensor:
        """(3, h, w)."""
        return to_pm1(self.geometry.fit(self.layers.background_u8))

    @property
    def paste_pm1(self) -> Tensor:
        """(3, h, w): the visible cut-out on the background, what it replaces smoothed away."""
        return to_pm1(self.geometry.fit(self.layers.paste_u8))


def model_inputs(pair: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a model reads, of the tensors of a `Pair` or of a batch of them; on their device.

    reference_01 (3, r, r) in [0, 1];  target_pm1 (3, h, w) in [-1, 1];  depth_01 (3, h, w), 1 = nearest
    detail_pm1 (4, h, w): collage in [-1, 1], then 1 generate, 0 keep, -1 padding;  edit_mask (1, h, w) bool
    """
    target, hint = (pair[name].float() / 127.5 - 1 for name in ("target_u8", "hint_u8"))
    return {
        "reference_01": pair["reference_u8"].float() / 255, "target_pm1": target,
        "detail_pm1": torch.cat([hint, pair["regions"].float()], dim=-3),
        "depth_01": pair["scene_depth_01"].expand_as(hint), "edit_mask": pair["regions"] == 1}  # fmt: skip


def build_pair(inputs: Inputs, options: PairOptions, params: AugmentationParams | None = None) -> Pair:
    """One example. Deterministic: `params` holds every random decision, by default those of inference."""
    return pair_of(Geometry.of(inputs, options, params))


def pair_of(geometry: Geometry) -> Pair:
    """The example of a geometry; ValueError where nothing of the object would show."""
    inputs, options, crop = geometry.inputs, geometry.options, geometry.crop
    # Published: everything in pixels of the background, resized at the end.
    layers = geometry.model_layers
    if not layers.edit.any():
        raise ValueError("nothing to paint: at this box and depth nearer things hide the object completely")

    view_u8 = square_view(geometry.cutout, geometry.params.reference_ratio, options)
    view_u8 = relit(view_u8, geometry.params) if options.augment.whole_view else view_u8
    if geometry.legacy:
        # Published: the map of the whole reference view, margin included, stretched to the region.
        whole_u8 = geometry.cutout.mask.astype(np.uint8) * 255
        mask_u8 = squared(whole_u8, geometry.params.reference_ratio, options, 0)
        map_u8 = fusion.high_frequency(view_u8, mask_u8 > 127, options.hf_mode, options.hf_threshold)
        detail_u8, part = np.zeros_like(layers.background_u8), geo.tight_slices(layers.region)
        detail_u8[part] = resize(map_u8, detail_u8[part].shape[:2], how="linear")
        depth_u8 = (layers.depth_01 * 255).astype(np.uint8)
        depth_u8 = geometry.file_depth_u8[geometry.window.part] if options.depth_file else depth_u8
        depth_01 = geometry.fit(depth_u8) / np.float32(255)
        if options.mask_resize == "nearest":
            mask = crop.fit(layers.edit.astype(np.float32), how="nearest", fill=options.mask_pad)
        else:  # published inference pads 8-bit values with -1, that is 255, before it resizes and compares
            fill = 255 if options.mask_pad == 1 else 0
            mask = crop.fit(layers.edit.astype(np.uint8), how="linear", fill=fill) > 0
    else:
        depth_01 = layers.depth_01
        if options.hf_mode == "cutout":
            detail_u8 = layers.placed.rgb_u8
        else:  # the detail map in the proportions that the object has in the crop
            side = (fusion.HIGH_FREQUENCY_SIDE, fusion.HIGH_FREQUENCY_SIDE)
            small = resize(geometry.cutout.rgb_u8, side), resize(geometry.cutout.mask, side)
            map_u8 = fusion.high_frequency(*small, options.hf_mode, options.hf_threshold).astype(np.float32)
            warped, part = fusion.warp_into(map_u8, geometry.fitted_box(crop), crop.size)
            detail_u8 = np.zeros_like(layers.background_u8)
            detail_u8[part] = cv2.convertScaleAbs(warped)  # rounded and clipped
        mask = layers.edit.astype(np.int8)
        if any(crop.pad):
            mask[~crop.inside] = options.mask_pad
    if options.collage == "box":
        hint_u8 = np.where(layers.region[..., None], detail_u8, layers.background_u8)
    else:
        hide = None if options.show_background else layers.edit
        under = layers.background_u8 if hide is not None else layers.clean_u8  # both are hidden there
        hint_u8 = fusion.collage(under, detail_u8, layers.coverage_01, hide)
    target_u8 = geometry.fit(layers.background_u8)
    if inputs.target_u8 is not None and inputs.target_u8 is not inputs.background_u8:
        target_u8 = cv2.copyTo(crop.take(inputs.target_u8), (mask == 1).astype(np.uint8), target_u8.copy())
    images = view_u8, target_u8, geometry.fit(hint_u8)
    reference, target, hint = (torch.from_numpy(planes_of(image_u8)) for image_u8 in images)
    regions = torch.from_numpy(mask.astype(np.int8, copy=False))[None]
    return Pair(reference, target, hint, regions, torch.from_numpy(depth_01)[None], geometry, layers)
