"""What lies where in one frame: background, placed object, what hides it, what may change.

The same code serves the model's crop and, for paste-back, the same crop in pixels of the background.
h w   pixels of the frame
"""

from dataclasses import dataclass, replace

import numpy as np

from datasets.augment import AUTO, AugmentationParams, relight
from datasets.fusion import (
    Cutout,
    Placed,
    cut_out,
    fill_colour,
    fill_depth,
    fit_box,
    fuse,
    hidden,
    occluders,
    place,
    place_legacy,
)
from datasets.geometry import (
    Box01,
    Crop,
    Size,
    bbox_of_mask,
    box_from_01,
    box_to_pixels,
    expand_box,
    square_box,
    square_padding,
    whole_box,
)
from datasets.highfreq import collage
from datasets.inputs import Inputs, PairOptions
from datasets.masks import box_mask, dilate, mask_level

LEAST_CONTEXT = 1.1  # side of the crop over the region, however small the image
LEVEL_OF_MODE = {"place": "box", "replace": "box", "id-transfer": "fine", "inpaint": "exact"}


@dataclass(frozen=True, eq=False)
class Layers:
    """The contents of one frame."""

    background_u8: np.ndarray  # (h, w, 3)
    clean_u8: np.ndarray  # (h, w, 3), what is to be replaced smoothed away
    depth_01: np.ndarray  # (h, w) float32, the object in it where the mode fuses
    placed: Placed  # the object before anything hides it
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


def object_box(inputs: Inputs, options: PairOptions) -> Box01:
    """Where the object goes, in pixels of the background without rounding."""
    h, w = inputs.background_u8.shape[:2]
    if inputs.box01_xyxy is not None:
        if options.resample == "legacy":
            return box_to_pixels(inputs.box01_xyxy, (h, w))
        return box_from_01(inputs.box01_xyxy, (h, w))
    assert inputs.target_mask is not None  # Inputs refuses to be without both
    return bbox_of_mask(inputs.target_mask, options.bbox_end)


def plan_crop(inputs: Inputs, options: PairOptions, choices: AugmentationParams) -> Crop:
    """The square round the object, `crop_ratio` times as large as its region.

    With border "shift" context gives way before the square outgrows the image and would need padding.
    """
    h, w = inputs.background_u8.shape[:2]
    clip, ratio = (h, w), choices.crop_ratio
    region = expand_box(object_box(inputs, options), options.box_ratio, clip, options.bbox_end)
    if options.border == "shift":
        longest = max(region[2] - region[0], region[3] - region[1])
        ratio = min(ratio, max(LEAST_CONTEXT, min(h, w) / longest))
    wide = expand_box(region, ratio, clip if options.border == "clip" else None, options.bbox_end)
    x0, y0, x1, y1 = square_box(wide, (h, w), options.border)
    return Crop((x0, y0, x1, y1), square_padding((y1 - y0, x1 - x0)), options.size, (h, w))


def reference_cutout(inputs: Inputs, options: PairOptions, choices: AugmentationParams) -> Cutout:
    """The reference object, tight, relit and mirrored as chosen."""
    cutout = cut_out(
        inputs.reference_u8,
        inputs.reference_mask,
        inputs.reference_depth_01,
        end=options.bbox_end,
        norm=options.fusion_norm,
        fill=options.depth_fill,
    )
    if choices.flip:
        cutout = Cutout(cutout.rgb_u8[:, ::-1], cutout.mask[:, ::-1], cutout.depth_01[:, ::-1])
    return replace(cutout, rgb_u8=relight(cutout.rgb_u8, choices) * cutout.mask[..., None])


def build_layers(
    inputs: Inputs,
    options: PairOptions,
    choices: AugmentationParams,
    crop: Crop,
    cutout: Cutout | None = None,
) -> Layers:
    """Everything in the frame of a crop."""
    cutout = reference_cutout(inputs, options, choices) if cutout is None else cutout
    depth_01 = crop.take(inputs.background_depth_01).astype(np.float32, copy=False)
    target = None if inputs.target_mask is None else _take_mask(inputs.target_mask, crop)
    box, size = object_box(inputs, options), crop.background_size
    region_box = expand_box(box, options.box_ratio, size, options.bbox_end)
    region = box_mask(whole_box(crop.to_frame(region_box)), crop.size)
    fused = inputs.mode in ("place", "replace")
    if inputs.mode == "replace":
        depth_01 = fill_depth(depth_01, region if target is None else dilate(target, options.dilation))
    placed = _placed(cutout, crop.to_frame(box), inputs.depth_range, crop.size, options)
    near = inputs.depth_range[1]
    keep = occluders(depth_01, near) if fused else np.zeros(crop.size, bool)
    shown = ~hidden(depth_01, placed, near, options.occlusion) if fused or target is None else target
    edit = _edit_region(inputs, options, choices, crop, placed.alpha_01 * shown > 0.5, target, region) & ~keep
    coverage = np.where(shown & edit, placed.alpha_01, 0).astype(np.float32)
    if fused:
        depth_01 = fuse(depth_01, placed, coverage > 0.5)
    if inputs.target_depth_01 is not None:
        depth_01 = crop.take(inputs.target_depth_01).astype(np.float32, copy=False)
    background_u8 = crop.take(inputs.background_u8)
    clean_u8 = background_u8 if inputs.background_known else fill_colour(background_u8, edit)
    return Layers(background_u8, clean_u8, depth_01, placed, coverage, edit, keep, region)


def _edit_region(
    inputs: Inputs,
    options: PairOptions,
    choices: AugmentationParams,
    crop: Crop,
    silhouette: np.ndarray,
    target: np.ndarray | None,
    region: np.ndarray,
) -> np.ndarray:
    """(h, w) bool: what may change, before occluders are taken out."""
    if inputs.region is not None:
        return _take_mask(inputs.region, crop)
    if target is not None and (inputs.mode != "replace" or inputs.target_u8 is not None):
        silhouette = target
    level = LEVEL_OF_MODE[inputs.mode] if choices.mask_level == AUTO else choices.mask_level
    shape = "legacy-rect" if options.resample == "legacy" else "ellipse"
    rng = np.random.default_rng(choices.mask_seed)
    edit = mask_level(silhouette, level, region, options.dilation, rng, shape=shape)
    if inputs.mode == "replace" and target is not None:
        edit = edit | dilate(target, options.dilation)
    return edit & crop.inside


def _placed(
    cutout: Cutout, box: Box01, extent: tuple[float, float], frame: Size, options: PairOptions
) -> Placed:
    """The cut-out in its box of the frame, by the chosen resampling."""
    if options.resample == "legacy":
        return place_legacy(cutout, whole_box(box), extent, frame)
    fitted = fit_box(box, (cutout.mask.shape[0], cutout.mask.shape[1]), options.max_stretch)
    return place(cutout, fitted, extent, frame)


def _take_mask(mask: np.ndarray, crop: Crop) -> np.ndarray:
    """A mask of the background's size in the frame, (h, w) bool."""
    x0, y0, x1, y1 = crop.box_xyxy
    part = mask[y0:y1, x0:x1].astype(np.uint8)
    return crop.fit(part * 255) > 127
