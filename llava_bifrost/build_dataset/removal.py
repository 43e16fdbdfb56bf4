"""Taking one annotated object out of a photograph, and refusing what would leave a trace of it.

Legend: h w pixels.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from datasets.base import Rejected
from ldm.experts.erase import Eraser
from ldm.settings.config import check_settings, setting
from llava_bifrost.build_dataset.names import Annotated

SAME = 6  # largest change of a channel, of 255, of a pixel that counts as unchanged


@dataclass(frozen=True)
class Thresholds:
    """Which objects are removed and which are named."""

    target: tuple[float, float] = setting((0.02, 0.6), low=0, high=1, help="target's box over the image")
    anchor: float = setting(0.01, low=0, high=1, help="least box of an anchor, or of a rival for its name")
    solid: float = setting(0.3, low=0, high=1, help="least share of its box that the target's mask covers")
    dilate: float = setting(0.02, low=0, high=0.2, help="growth of the hole, in longer sides of the image")
    hole: float = setting(0.6, low=0, high=1, help="largest share of the image that is removed")
    remaining: float = setting(0.5, low=0, high=1, help="least share of an anchor that the removal leaves")
    leftover: float = setting(0.35, low=0, high=1, help="largest share of the target that looks as before")
    depth_error: float = setting(0.05, low=0, high=1, help="largest median difference of the two depth maps")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, eq=False)
class Removal:
    """One object taken out of its image."""

    index: int  # of the object
    mask: np.ndarray  # (h, w) bool
    hole: np.ndarray  # (h, w) bool, the mask dilated
    filled_u8: np.ndarray  # (h, w, 3)


def remove(
    rgb_u8: np.ndarray, index: int, target: Annotated, rules: Thresholds, eraser: Eraser, seed: int
) -> Removal:
    """Cut object number `index` out of RGB (h, w, 3) and fill; Rejected when it cannot be done cleanly.

    Nothing of the segmentation stays outside the hole, which contains it; what the filling puts there must
    not look as before.
    """
    mask = target.mask()
    box_area = max(target.share * mask.size, 1.0)
    if not mask.any() or mask.sum() < rules.solid * box_area:
        raise Rejected(f"thin target: its mask covers {mask.sum() / box_area:.0%} of its box")
    hole = grow(mask, rules.dilate)
    if hole.mean() > rules.hole:
        raise Rejected(f"large hole: {hole.mean():.0%} of the image")
    filled_u8 = eraser.erase(rgb_u8, hole, seed)
    change = np.abs(filled_u8[mask].astype(np.int16) - rgb_u8[mask].astype(np.int16)).max(axis=1)
    same = float((change <= SAME).mean())
    if same > rules.leftover:
        raise Rejected(f"object remains: {same:.0%} of its pixels look as before")
    return Removal(index, mask, hole, filled_u8)


def grow(mask: np.ndarray, share: float) -> np.ndarray:
    """Mask (h, w) dilated by a share of the image's longer side, at least a pixel."""
    reach = max(1, round(share * max(mask.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return cv2.dilate(mask.astype(np.uint8), disc) > 0
