"""What training varies at random and inference fixes, as plain values: the builder itself draws nothing."""

from dataclasses import dataclass

import cv2
import numpy as np

from datasets.inputs import PairOptions
from datasets.masks import LEVELS

AUTO = "auto"  # the level that suits the mode


@dataclass(frozen=True)
class AugmentationParams:
    """The random decisions behind one pair."""

    crop_ratio: float = 2.0
    reference_ratio: float = 1.2
    flip: bool = False  # mirror the reference
    brightness: float = 0.0
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
        return cls(
            crop_ratio=float(rng.uniform(*ranges.crop_ratio)),
            reference_ratio=float(rng.uniform(*ranges.reference_ratio)),
            flip=bool(rng.random() < ranges.flip),
            brightness=float(rng.uniform(-ranges.brightness, ranges.brightness)),
            gain=(float(gain[0]), float(gain[1]), float(gain[2])),
            mask_level=LEVELS[int(rng.choice(len(LEVELS), p=weights))],
            mask_seed=int(rng.integers(2**31)),
        )


def relight(image_u8: np.ndarray, choices: AugmentationParams) -> np.ndarray:
    """The reference (h, w, 3) under the chosen brightness, contrast and colour."""
    if choices.brightness == 0 and choices.gain == (1.0, 1.0, 1.0):
        return image_u8
    values = np.arange(256, dtype=np.float64)[:, None] * np.array(choices.gain) + 255 * choices.brightness
    table = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return cv2.LUT(image_u8, table[None])
