"""Two relative depth maps of one scene in one frame.

Relative inverse depth is known up to a scale and a shift that differ from image to image, also when one
image is the other without an object. Both show the same background, so a robust fit there connects them.
"""

from dataclasses import dataclass

import numpy as np

from datasets.base import Rejected

POINTS = 40000  # pixels that enter the fit
LEAST_POINTS = 100
LEAST_SPREAD = 0.02  # of the depth over these pixels; less tells no scale
ROUNDS = 6
TRIM = 2.5  # residuals above this many (scaled) median residuals are left out of the next round
FLOOR = 1e-4  # smallest residual that counts as one


@dataclass(frozen=True)
class Alignment:
    """frame depth = scale * depth + shift. error: median residual over the shared pixels."""

    scale: float
    shift: float
    error: float

    def apply(self, depth: np.ndarray) -> np.ndarray:
        """Depth of the second map in the frame of the first; may leave [0, 1]."""
        return self.scale * depth + self.shift


def align_depth(frame_01: np.ndarray, depth_01: np.ndarray, shared: np.ndarray) -> Alignment:
    """Fit depth_01 (h, w) to frame_01 (h, w) on the pixels shared (h, w) bool, by trimmed least squares.

    Rejected when too few pixels are shared, when they are flat, or when near and far are exchanged.
    """
    indices = np.flatnonzero(shared)
    if len(indices) < LEAST_POINTS:
        raise Rejected(f"depth frames: only {len(indices)} pixels outside the hole")
    indices = indices[:: max(1, len(indices) // POINTS)]
    x, y = depth_01.ravel()[indices].astype(np.float64), frame_01.ravel()[indices].astype(np.float64)
    if min(x.max() - x.min(), y.max() - y.min()) < LEAST_SPREAD:
        raise Rejected("depth frames: the background is flat in depth")
    scale, shift = _first_fit(x, y)
    for _ in range(ROUNDS):
        residual = np.abs(scale * x + shift - y)
        kept = residual <= max(TRIM * 1.4826 * float(np.median(residual)), FLOOR)
        centre = x[kept].mean()
        spread = ((x[kept] - centre) ** 2).sum()
        scale = float(((x[kept] - centre) * (y[kept] - y[kept].mean())).sum() / max(spread, 1e-12))
        shift = float(y[kept].mean() - scale * centre)
    residual = np.abs(scale * x + shift - y)
    if scale <= 0:
        raise Rejected("depth frames: near and far are exchanged by the removal")
    return Alignment(scale, shift, float(np.median(residual)))


def _first_fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Median slope of the pairs that lie half of all points apart in x, and the median offset."""
    order = np.argsort(x, kind="stable")
    half = len(x) // 2
    low, high = order[:half], order[-half:]
    apart = x[high] - x[low]
    steep = apart > 0.1 * (x.max() - x.min())
    scale = float(np.median((y[high] - y[low])[steep] / apart[steep])) if steep.any() else 1.0
    return scale, float(np.median(y - scale * x))
