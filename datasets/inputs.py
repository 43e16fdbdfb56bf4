"""What a pair is made from: the switches of the pre-processing, and the pictures with the place of the object."""

from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from datasets.augment import Augment
from datasets.fusion import OCCLUSIONS, check_mode
from datasets.geometry import Box01, bbox_of_mask, check_box01
from datasets.highfreq import HF_MODES
from datasets.masks import LEVELS

CHOICES = {
    "hf_mode": HF_MODES,
    "occlusion": OCCLUSIONS,
    "bbox_end": ("inclusive", "legacy"),
    "fusion_norm": ("object-only", "legacy"),
    "depth_fill": ("bulge", "flat"),
    "border": ("shift", "clip"),
    "collage": ("mask", "box"),
    "mask_resize": ("nearest", "linear"),
    "resample": ("area", "legacy"),
    "mask_level": ("auto", *LEVELS),
    "mask_pad": (-1, 1),
}
MIN_OBJECT = 8  # pixels


@dataclass(frozen=True)
class PairOptions:
    """How pictures become a pair. A model is used with the options that it was trained with."""

    size: tuple[int, int] = (512, 512)  # (h, w) of the model's picture, square
    reference_size: int = 224  # r, side of the reference view
    hf_mode: str = "gray255"  # zero: released compositor weights; color: AnyDoor weights; cutout: tiny bundle
    hf_threshold: int = 50  # of 255; weaker edges are left out
    box_ratio: float = 1.1  # the region round the object: its box times this
    crop_ratio: float = 2.0  # side of the crop over the longest side of the region
    reference_ratio: float = 1.2  # margin round the object in the reference view
    dilation: float = 0.02  # of the crop's size, for mask level "fine" (published name: pixel_num)
    mask_level: str = "auto"  # at inference; auto: box for place and replace, fine for id-transfer, exact for inpaint
    max_stretch: float = 1.25  # an object is stretched at most this much to fill its box; inf: always (published)
    occlusion: str = "near"  # pixel: published test, see datasets.fusion.hidden
    depth_fill: str = "bulge"  # the object's own depth where no map of it is given
    border: str = "shift"  # a crop that leaves the picture is moved inside; clip: cut and padded (published)
    show_background: bool = False  # keep the known background under the region in the hint (tiny bundle)
    collage: str = "mask"  # where the hint shows the object's detail; box: the whole region (published training)
    mask_pad: int = -1  # mask channel in the padding; 1: published inference
    mask_resize: str = "nearest"  # read with resample "legacy" only; linear: published inference
    bbox_end: str = "inclusive"  # legacy: boxes of masks lose their last row and column (published)
    fusion_norm: str = "object-only"  # legacy: the object's depth is normalised together with its surroundings
    resample: str = "area"  # legacy: whole pixels, no prefilter, 8-bit depth, the view's map stretched to the region
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                listed = ", ".join(str(value) for value in allowed)
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; allowed: {listed}")
        ranges = {"box_ratio": (1, 4), "crop_ratio": (1, 8), "reference_ratio": (1, 4), "dilation": (0, 0.5),
                  "hf_threshold": (0, 255), "max_stretch": (1, inf), "reference_size": (14, 4096)}  # fmt: skip
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in [{low}, {high}], got {getattr(self, name)}")
        if len(self.size) != 2 or self.size[0] != self.size[1] or self.size[0] < 16:
            raise ValueError(f"size must be a square (h, w) of at least 16 pixels, got {self.size}")


PUBLISHED_TRAINING = PairOptions(
    hf_mode="zero", max_stretch=inf, occlusion="pixel", border="clip", collage="box", bbox_end="legacy",
    fusion_norm="legacy", resample="legacy", augment=Augment(flip=0.5, brightness=0.2, colour=0.0),
)  # fmt: skip
PUBLISHED_INFERENCE = replace(
    PUBLISHED_TRAINING, collage="mask", mask_pad=1, mask_resize="linear", mask_level="fine"
)


@dataclass(frozen=True, eq=False)
class Inputs:
    """Pictures and place of one example; all at the sizes they came in."""

    reference_u8: np.ndarray  # (h, w, 3) picture of the object
    reference_mask: np.ndarray  # (h, w) bool
    background_u8: np.ndarray  # (H, W, 3)
    background_depth_01: np.ndarray  # (H, W), 1 = nearest
    box01_xyxy: Box01 | None  # None: the box of target_mask
    depth_range: tuple[float, float] = (0.0, 1.0)  # (far, near) of the object
    mode: str = "place"
    target_u8: np.ndarray | None = None  # (H, W, 3) the truth, in training
    reference_depth_01: np.ndarray | None = None  # (h, w)
    target_mask: np.ndarray | None = None  # (H, W) bool: what to replace or paint, or the true visible silhouette
    region: np.ndarray | None = None  # (H, W) bool: exactly what may change, instead of a mask level

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", check_mode(self.mode))
        if self.box01_xyxy is not None:
            check_box01(self.box01_xyxy)
        far, near = self.depth_range
        if not 0 <= far <= near <= 1:
            raise ValueError(f"depth must be far,near with 0 <= far <= near <= 1 (1 = nearest), got {far},{near}")
        if self.target_mask is None and (self.box01_xyxy is None or self.mode in ("id-transfer", "inpaint")):
            raise ValueError(f"mode {self.mode} needs a target mask" + ("" if self.box01_xyxy else " or a box"))
        for name, like in (("reference_mask", "reference_u8"), ("reference_depth_01", "reference_u8"),
                           ("background_depth_01", "background_u8"), ("target_u8", "background_u8"),
                           ("target_mask", "background_u8"), ("region", "background_u8")):  # fmt: skip
            value, shape = getattr(self, name), getattr(self, like).shape[:2]
            if value is not None and value.shape[:2] != shape:
                raise ValueError(f"{name} is {value.shape[:2]} (h, w), but {like} is {shape}")
            if value is not None and value.dtype == bool and not value.any():
                raise ValueError(f"{name} is empty: at least one pixel must be set")
        x0, y0, x1, y1 = bbox_of_mask(self.reference_mask)
        if min(x1 - x0, y1 - y0) < MIN_OBJECT:
            raise ValueError(f"the object is {x1 - x0} x {y1 - y0} pixels; at least {MIN_OBJECT} are needed")

    @property
    def background_known(self) -> bool:
        """Whether the background under the object is real and not the answer."""
        return self.mode == "place" and (self.target_u8 is not None or self.target_mask is None)


def mirror(inputs: Inputs) -> Inputs:
    """The sample with left and right exchanged everywhere, reference included."""
    names = ("reference_u8", "reference_mask", "background_u8", "background_depth_01", "target_u8",
             "reference_depth_01", "target_mask", "region")  # fmt: skip
    flipped = {name: value[:, ::-1] for name in names if (value := getattr(inputs, name)) is not None}
    box = inputs.box01_xyxy
    return replace(inputs, **flipped, box01_xyxy=None if box is None else (1 - box[2], box[1], 1 - box[0], box[3]))


def permute_colours(inputs: Inputs, order: tuple[int, int, int]) -> Inputs:
    """The sample with its colour channels in another order everywhere."""
    names = ("reference_u8", "background_u8", "target_u8")
    moved = {name: value[..., list(order)] for name in names if (value := getattr(inputs, name)) is not None}
    return replace(inputs, **moved)
