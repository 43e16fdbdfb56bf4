"""The soft edge of a cut-out: coverage and the object's own colours, some pixels beyond its mask."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.geometry import Box01, Size, bbox_of_mask


@dataclass(frozen=True, eq=False)
class Rim:
    """A cut-out (h, w) with its soft edge, `margin` pixels more on every side."""

    rgb_u8: np.ndarray  # (h + 2 margin, w + 2 margin, 3), the object's own colours
    alpha_01: np.ndarray  # (h + 2 margin, w + 2 margin) float32 coverage
    margin: int

    @classmethod
    def of(cls, rgb_u8: np.ndarray, mask: np.ndarray, alpha_01: np.ndarray, end: str = "inclusive") -> "Rim":
        """Of an object's image, its mask and coverage (h, w), so much wider as the coverage reaches."""
        x0, y0, x1, y1 = bbox_of_mask(mask, end)
        left, top, right, bottom = bbox_of_mask((alpha_01 > 0) | mask)
        m = max(x0 - left, y0 - top, right - x1, bottom - y1, 0)
        part = np.s_[y0 : y1 + 2 * m, x0 : x1 + 2 * m]
        colours_u8 = np.pad(rgb_u8, ((m, m), (m, m), (0, 0)))[part]
        return cls(colours_u8, np.pad(alpha_01, m)[part].astype(np.float32), m)

    @property
    def weighted(self) -> np.ndarray:
        """Colours times coverage, float32."""
        return self.rgb_u8.astype(np.float32) * self.alpha_01[..., None]

    def around(self, box_xyxy: Sequence[float], size: Size) -> Box01:
        """The box of the rim where the cut-out, of (h, w) = size, fills box_xyxy."""
        x0, y0, x1, y1 = box_xyxy
        across, down = self.margin * (x1 - x0) / size[1], self.margin * (y1 - y0) / size[0]
        return x0 - across, y0 - down, x1 + across, y1 + down

    def padded(self, image: np.ndarray) -> np.ndarray:
        """An image (h, w, c) of the cut-out's size, 0 in the margin."""
        m = self.margin
        return np.pad(image, ((m, m), (m, m), (0, 0)))
