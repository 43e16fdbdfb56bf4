"""Depth of a photograph without a depth network: the image row, and where things stand on the ground."""

from itertools import product
from pathlib import Path

import cv2
import numpy as np

from ldm.experts.segment import u2netp_scores
from ldm.images import fitted, normalize, resize

# Chosen with `benchmarks.depth_photographs` on its four photographs with depth. The horizon leaves the order
# as it is; of ten pairs of its numbers these were best for `benchmarks.placer_photographs`.
SIDE = 1024  # pixels of the longer side
HORIZON, AT_HORIZON = 0.4, 0.1  # row, and depth there: above it walls and sky change little with the row
VIEW = 0.75  # fraction of each side of four views, one in each corner, beside the whole image
FOOT = 99  # percentile of a thing's rows, from the top: where it stands
SLOPE = 0.02  # of the row: a thing's lower parts are a little nearer
LEAST = 0.002  # fraction of the image that a thing fills


def depth_by_rules(rgb_u8: np.ndarray, network: Path | None) -> np.ndarray:
    """Relative inverse depth (n, m) float32 in [0, 1], 1 = nearest, of an image (h, w, 3).

    A lower row is nearer, as on a ground seen from above; a thing that stands out (U2-Netp) is as near as the
    ground at its foot, all of it.

    network: file of U2-Netp; without it only the rows count
    """
    small_u8 = resize(rgb_u8, fitted(rgb_u8.shape[:2], SIDE))
    n, m = small_u8.shape[:2]
    rows = ((np.arange(n, dtype=np.float32) + 0.5) / n)[:, None]
    depth = np.repeat(rows, m, axis=1)
    if network is not None:
        high, wide = round(VIEW * n), round(VIEW * m)
        corners = product((slice(0, high), slice(n - high, n)), (slice(0, wide), slice(m - wide, m)))
        views = [(slice(0, n), slice(0, m)), *corners]
        for view in views:
            part_u8 = np.ascontiguousarray(small_u8[view])
            scores = cv2.resize(u2netp_scores(part_u8, network), part_u8.shape[1::-1])
            count, pieces = cv2.connectedComponents((scores > 0.5).astype(np.uint8))
            for piece in range(1, count):
                thing = np.zeros((n, m), bool)
                thing[view] = pieces == piece
                if thing.mean() < LEAST:
                    continue
                lines = np.nonzero(thing)[0]
                foot = np.percentile(lines, FOOT)
                depth[thing] = np.maximum(depth[thing], foot / n - SLOPE * (foot / n - (lines + 0.5) / n))
    return np.interp(normalize(depth), (0, HORIZON, 1), (0, AT_HORIZON, 1)).astype(np.float32)
