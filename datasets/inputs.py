"""What a pair is made from: the options of the pre-processing, random decisions, images with a place.

Training draws the random decisions and inference fixes them; the pre-processing itself draws nothing.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from datasets import fusion
from datasets.geometry import Box01, bbox_of_mask, check_box01, mask_of_box, whole_box
from datasets.masks import LEVELS
from ldm.settings.config import check_settings, setting

AUTO = "auto"  # the mask level that suits the mode
MIN_OBJECT = 8  # pixels, smallest side of a reference object; chosen: less shows no shape
SAME_SIZE = {  # these arrays have the (h, w) of those
    "reference_u8": ("reference_mask", "reference_depth_01", "reference_alpha_01"),
    "background_u8": ("background_depth_01", "target_depth_01", "target_u8", "target_mask", "region"),
}


@dataclass(frozen=True)
class Augment:
    crop_ratio: tuple[float, float] = setting((1.3, 2.9), help="side of the crop", low=1, high=8)
    reference_ratio: tuple[float, float] = setting((1.1, 1.4), help="reference margin", low=1, high=4)
    flip: float = setting(0.0, help="probability of a mirrored reference (published 0.5)", low=0, high=1)
    brightness: float = setting(0.1, help="shift of the reference, +- this part of the range", low=0, high=1)
    contrast: float = setting(0.2, help="factor on the reference, 1 +- this", low=0, high=1)
    colour: float = setting(0.1, help="factor per channel of the reference, 1 +- this", low=0, high=1)
    relit: float = setting(1.0, help="probability of other light and colour (published 0.5)", low=0, high=1)
    whole_view: bool = setting(False, help="they change the white margin of the reference too (published)")
    ratio_step: float = setting(0.0, help="ratios are multiples of it (published 0.1); 0: any", low=0, high=1)
    levels: tuple[float, float, float, float, float] = setting((0.1, 0.15, 0.15, 0.1, 0.5), low=0,
        help=f"weights of the mask levels {' '.join(LEVELS)}")  # fmt: skip

    def __post_init__(self) -> None:
        check_settings(self)
        if sum(self.levels) <= 0:
            raise ValueError(f"levels must not all be 0, got {self.levels}")
        for name in ("crop_ratio", "reference_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be a range low,high with low <= high, got {low},{high}")


def one_of(default: str, other: str, help: str) -> Any:
    return setting(default, help=help, choices=(default, other))


@dataclass(frozen=True)
class PairOptions:
    """How images become a pair. A model is used with the options that it was trained with."""

    size: tuple[int, int] = setting((512, 512), help="(h, w) of the model's image, square", low=16)
    reference_size: int = setting(224, help="side of the reference view, pixels", low=14)
    hf_mode: str = setting("gray255", choices=fusion.HF_MODES,
        help="detail hint; zero: released compositor, color: AnyDoor weights")  # fmt: skip
    hf_threshold: int = setting(50, help="edges weaker than this are left out", low=0, high=255)
    show_background: bool = setting(False, help="hint shows the background behind the object")
    box_ratio: float = setting(1.1, help="region round the object over its box", low=1, high=4)
    crop_ratio: float = setting(2.0, help="side of the crop over the region's longer side", low=1, high=8)
    reference_ratio: float = setting(1.2, help="margin of the reference view", low=1, high=4)
    dilation: float = setting(0.02, help="growth of a fine mask over the crop's size", low=0, high=0.5)
    mask_level: str = setting(AUTO, help="region to paint; auto: box, fine or exact", choices=(AUTO, *LEVELS))
    max_stretch: float = setting(1.25, help="limit of the stretch to the box; 100: none", low=1, high=100)
    occlusion: str = setting("near", choices=fusion.OCCLUSIONS,
        help="depth test; pixel: published test, but what is in front of the object is never painted; "
        "published: it may be, close to the object; none: nothing hides the object (AnyDoor)")  # fmt: skip
    region_of: str = one_of(
        "box", "visible", "mode place paints round the box; visible: the object's visible part (published)"
    )
    depth_file: bool = setting(False, help="fused depth in 8 bits, then stretched (published inference)")
    depth_hint: str = one_of(
        "fused", "target",
        "depth that training on photographs shows; fused: as at inference, its hole filled and "
        "the object's own depth fused; target: the image's (published)")  # fmt: skip
    depth_fill: str = one_of("bulge", "flat", "object's shape without a depth map")
    border: str = one_of("shift", "clip", "a crop over the border; clip: cut and padded (published)")
    collage: str = one_of("mask", "box", "where the hint hides the background; box: published training")
    mask_pad: int = setting(-1, help="mask channel in the padding; 1: published inference", low=-1, high=1)
    mask_resize: str = one_of("nearest", "linear", "with resample legacy; linear: published inference")
    bbox_end: str = one_of("inclusive", "legacy", "legacy: mask boxes lose the last row, column")
    fusion_norm: str = one_of("object-only", "legacy", "legacy: object depth normalised with zeros")
    resample: str = one_of("area", "legacy", "legacy: whole pixels, no prefilter, 8-bit depth")
    augment: Augment = setting(Augment(), help="what training varies")
    preset: str = one_of(
        "none", "published",
        "published: all that the released training does, keys of train too; keys beside or after it win",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_settings(self)
        if self.preset != "none":  # RunConfig.layers puts its values there
            instead = "elsewhere take the values of datasets.inputs.PUBLISHED_TRAINING"
            raise ValueError(f"pair.preset={self.preset} is for training settings; {instead}")
        if len(self.size) != 2 or self.size[0] != self.size[1]:
            raise ValueError(f"size must be a square (h, w), got {self.size}")
        if self.resample != "legacy" and (self.depth_file or self.region_of == "visible"):
            raise ValueError("depth_file and region_of=visible are published steps: set resample=legacy")
        if self.mask_pad == 0:
            raise ValueError("mask_pad must be -1 or 1, got 0")

    @property
    def object_side(self) -> int:
        """Pixels of an object's longer side, above which training reads images smaller; 0: never (published).

        Then the narrowest crop still has the model's size, and the object that of its views.
        """
        if self.resample == "legacy":
            return 0
        crop = ceil(self.size[0] / (self.box_ratio * self.augment.crop_ratio[0]))
        return max(crop, self.reference_size, fusion.HIGH_FREQUENCY_SIDE)


@dataclass(frozen=True)
class AugmentationParams:
    crop_ratio: float = 2.0
    reference_ratio: float = 1.2
    flip: bool = False  # mirror the reference
    brightness: float = 0.0  # added, as a fraction of the range
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)  # contrast times colour, per channel
    mask_level: str = AUTO  # exact, fine, perturbed, coarse, box; auto: by mode
    mask_seed: int = 0  # of the deformation of level "perturbed"

    @classmethod
    def fixed(cls, options: PairOptions) -> "AugmentationParams":
        """What inference uses."""
        return cls(options.crop_ratio, options.reference_ratio, mask_level=options.mask_level)

    @classmethod
    def sample(cls, rng: np.random.Generator, options: PairOptions) -> "AugmentationParams":
        """What training draws."""
        ranges = options.augment
        weights = np.array(ranges.levels) / sum(ranges.levels)
        contrast = 1 + rng.uniform(-ranges.contrast, ranges.contrast)
        gain = contrast * (1 + rng.uniform(-ranges.colour, ranges.colour, 3))

        def ratio(low: float, high: float) -> float:
            if not (step := ranges.ratio_step):
                return float(rng.uniform(low, high))
            return round(int(rng.integers(round(low / step), round(high / step) + 1)) * step, 6)

        params = cls(
            ratio(*ranges.crop_ratio), ratio(*ranges.reference_ratio), bool(rng.random() < ranges.flip),
            float(rng.uniform(-ranges.brightness, ranges.brightness)), tuple(gain.tolist()),
            LEVELS[int(rng.choice(len(LEVELS), p=weights))], int(rng.integers(2**31)))  # fmt: skip
        same = rng.random() >= ranges.relit
        return replace(params, brightness=0.0, gain=(1.0, 1.0, 1.0)) if same else params


PUBLISHED_TRAINING = PairOptions(
    hf_mode="zero", max_stretch=100.0, occlusion="pixel", border="clip", collage="box", bbox_end="legacy",
    fusion_norm="legacy", resample="legacy", depth_hint="target",
    augment=Augment(flip=0.5, brightness=0.2, colour=0.0, relit=0.5, whole_view=True, ratio_step=0.1,
                    levels=(0.0, 0.0, 0.7, 0.0, 0.3)))  # fmt: skip
PUBLISHED_INFERENCE = replace(
    PUBLISHED_TRAINING, collage="mask", mask_pad=1, mask_resize="linear", mask_level="fine",
    occlusion="published", region_of="visible", depth_file=True)  # fmt: skip


def check_object(mask: np.ndarray, where: str = "the object") -> None:
    """Refuse an object too small to be seen; mask (h, w) bool, not empty."""
    x0, y0, x1, y1 = bbox_of_mask(mask)
    if min(x1 - x0, y1 - y0) < MIN_OBJECT:
        size = f"{x1 - x0} x {y1 - y0} pixels"
        raise ValueError(f"{where} is {size}; at least {MIN_OBJECT} are needed in both directions")


@dataclass(frozen=True, eq=False)
class Inputs:
    """Images and place of one example, at the sizes they came in. h w and H W are two sizes."""

    reference_u8: np.ndarray  # (h, w, 3) image of the object
    reference_mask: np.ndarray  # (h, w) bool
    background_u8: np.ndarray  # (H, W, 3)
    background_depth_01: np.ndarray  # (H, W), 1 = nearest
    box01_xyxy: Box01 | None = None  # None: the box of target_mask
    depth_range: tuple[float, float] = (0.0, 1.0)  # (far, near) of the object
    mode: str = "place"
    target_u8: np.ndarray | None = None  # (H, W, 3) ground truth, in training
    target_depth_01: np.ndarray | None = None  # (H, W) of the ground truth; then the hint shows it
    reference_depth_01: np.ndarray | None = None  # (h, w)
    reference_alpha_01: np.ndarray | None = None  # (h, w) float32 coverage; None: that of the mask
    target_mask: np.ndarray | None = None  # (H, W) bool: what to replace or paint, or the true silhouette
    region: np.ndarray | None = None  # (H, W) bool: exactly what may change, instead of a mask level
    within_mask: bool = False  # nothing outside target_mask may change, whatever the mask level

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", fusion.ALIASES.get(self.mode, self.mode))
        if self.mode not in (modes := fusion.MODES):
            raise ValueError(f"unknown mode {self.mode!r}; allowed: {', '.join(modes)}, draw (= inpaint)")
        if self.box01_xyxy is not None:
            check_box01(self.box01_xyxy)
        far, near = self.depth_range
        if not 0 <= far <= near <= 1:
            raise ValueError(f"depth must be far,near, 0 <= far <= near <= 1 (1 = nearest), got {far},{near}")
        if self.target_mask is None and self.mode in ("id-transfer", "inpaint"):
            raise ValueError(f"mode {self.mode} needs a target mask")
        if self.target_mask is None and self.box01_xyxy is None:
            raise ValueError(f"mode {self.mode} needs a box or a target mask")
        for like, names in SAME_SIZE.items():
            h, w = getattr(self, like).shape[:2]
            for name in names:
                value = getattr(self, name)
                if value is not None and value.shape[:2] != (h, w):
                    got = f"{value.shape[1]} x {value.shape[0]}"
                    raise ValueError(f"{name} is {got} pixels, but {like} is {w} x {h} (width x height)")
                if value is not None and value.dtype == bool and not value.any():
                    raise ValueError(f"{name} is empty: at least one pixel must be set")
        check_object(self.reference_mask)

    def painted_box(self, options: PairOptions, box: Box01, cutout: fusion.Cutout) -> Box01:
        """The box (pixels) that the region is a margin round: by default `box`, where the object goes.

        Published: read from a mask that was written before, of the visible object or of the whole box.
        """
        size = self.background_depth_01.shape[:2]
        if self.mode == "place" and options.region_of == "visible":
            depth_01, extent = self.background_depth_01, self.depth_range
            placed = fusion.place_cutout(cutout, box, extent, size, legacy=True)
            free = fusion.unhidden(depth_01, placed, extent[1], options.occlusion)
            shown = (placed.alpha_01 > 0.5) & free
            return bbox_of_mask(shown, options.bbox_end) if shown.any() else box
        if options.bbox_end == "legacy" and self.box01_xyxy is not None:
            return bbox_of_mask(mask_of_box(whole_box(box), size), options.bbox_end)
        return box
