"""An image of any size and its masks, resized for the model, and back.

The shorter side becomes the model's resolution (the longer one at most twice that), and the right and bottom
edges are padded to multiples of the autoencoder's factor. Afterwards the padding is cropped, the rest is
resized to the image's own size, and only pixels inside the masks are taken from it.

Legend: H W pixels of the user's image, h w pixels of the canvas, r regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldm.images import read_mask, resize, to_pm1

LONGEST = 2.0  # longer side of the canvas in units of the resolution


@dataclass(frozen=True, eq=False)
class RegionPrompt:
    """One mask and what it shall show."""

    mask: np.ndarray  # (H, W) bool
    prompt: str
    negative: str = ""  # what it shall not show

    def __post_init__(self) -> None:
        """A path or a PIL image as mask is read."""
        if not isinstance(self.mask, np.ndarray):
            object.__setattr__(self, "mask", read_mask(self.mask))


@dataclass(frozen=True, eq=False)
class Canvas:
    """What the model sees of one image.

    image_pm1: (3, h, w);  masks: (r, h, w) bool;  inner_hw: size without padding (top left)
    """

    image_pm1: Tensor
    masks: Tensor
    inner_hw: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)"""
        return self.masks.shape[1], self.masks.shape[2]


def pair_masks(
    masks: Sequence[np.ndarray], prompts: Sequence[str], negatives: Sequence[str] = ()
) -> list[RegionPrompt]:
    """Masks and prompts in the same order -> regions; their numbers must agree."""
    if not masks or not prompts:
        raise ValueError(f"nothing to paint: got {len(masks)} masks and {len(prompts)} prompts")
    if len(masks) != len(prompts):
        more = "prompts than masks" if len(prompts) > len(masks) else "masks than prompts"
        raise ValueError(f"more {more}: {len(prompts)} prompts, {len(masks)} masks; each mask has one prompt")
    if negatives and len(negatives) != len(masks):
        raise ValueError(f"{len(negatives)} negative prompts for {len(masks)} masks; give one each, or none")
    negatives = negatives or [""] * len(masks)
    return [RegionPrompt(*each) for each in zip(masks, prompts, negatives, strict=True)]


def make_canvas(
    image_u8: np.ndarray, masks: Sequence[np.ndarray], resolution: int, factor: int, layout: str = "coverage"
) -> Canvas:
    """Bring image (H, W, 3) and masks (H, W) to painting size.

    factor: pixels per latent;  layout: nearest samples masks at one point (published), coverage keeps every
            pixel that a mask touches
    """
    high, wide = image_u8.shape[:2]
    scale = min(resolution / min(high, wide), LONGEST * resolution / max(high, wide))
    inner = max(1, round(high * scale)), max(1, round(wide * scale))
    padding = [(0, -side % factor) for side in inner]
    image = np.pad(resize(image_u8, inner), [*padding, (0, 0)], mode="edge")
    if layout == "nearest" or not (inner[0] < high or inner[1] < wide):
        fitted = [resize(mask.astype(np.uint8), inner, how="nearest") > 0 for mask in masks]
    else:
        fitted = [resize(mask.astype(np.float32), inner, how="area") > 1e-6 for mask in masks]
    padded = np.stack([np.pad(mask, padding) for mask in fitted])
    return Canvas(to_pm1(image), torch.from_numpy(padded), inner)


def whole(image_u8: np.ndarray, painted_u8: np.ndarray, canvas: Canvas) -> np.ndarray:
    """The painted canvas (h, w, 3) at the image's own size (H, W, 3)."""
    h, w = canvas.inner_hw
    size = image_u8.shape[0], image_u8.shape[1]
    enlarges = size[0] > h or size[1] > w
    return resize(painted_u8[:h, :w], size, how="cubic" if enlarges else "area")
