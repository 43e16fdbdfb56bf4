"""What of an object shows at a box and a depth, at once: geometry and paste only, no network.

The masks are those of `compose`, on a smaller image. Legend: H W pixels of the files, h w of the preview.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from compose.settings import ComposeSettings
from compose.sources import Sources, make_inputs
from datasets.geometry import tight_slices
from datasets.inputs import PairOptions
from datasets.pairs import Geometry
from ldm.decode import LoadedImage
from ldm.images import fitted, resize

SIDE = 640  # pixels of the longer side, at most; chosen: a screen shows no more, and 150 ms suffice
OUTLINE = (255, 255, 255)  # of the part that nearer objects hide


@dataclass(frozen=True, eq=False)
class Occlusion:
    """The cut-out in its place."""

    image_u8: np.ndarray  # (h, w, 3), the visible part pasted, the outline of the whole drawn
    visible: np.ndarray  # (h, w) bool
    visible_fraction: float  # of the object
    depth_range: tuple[float, float]  # far, near


def shrink(sources: Sources, depth_01: np.ndarray) -> tuple[Sources, np.ndarray]:
    """Sources and depth (H, W) at the size of a preview; the object is cut to its box first."""
    size, part = fitted(sources.background.size, SIDE), tight_slices(sources.extent)
    small, target, depth = fitted(sources.cut[part].shape, SIDE), sources.target, sources.object_depth_01
    shrunk = replace(
        sources,
        background=LoadedImage(resize(sources.background.rgb_u8, size)),
        item=LoadedImage(resize(sources.item.rgb_u8[part], small)),
        cut=resize(sources.cut[part], small),
        alpha_01=None if sources.alpha_01 is None else resize(sources.alpha_01[part], small),
        target=None if target is None else resize(target, size),
        object_depth_01=None if depth is None else resize(depth[part], small),
    )
    return shrunk, resize(depth_01, size)


def occlusion(
    settings: ComposeSettings, sources: Sources, depth_01: np.ndarray, options: PairOptions
) -> Occlusion:
    """The object at the box and depth of the settings. sources, depth_01: as `shrink` gives them; options:
    the pre-processing of the compositor that will paint. ValueError as in `compose`.
    """
    inputs, _ = make_inputs(settings.in_fractions(sources.background.size), sources, depth_01)
    geometry = Geometry.of(inputs, options)
    layers, window = geometry.native_layers, geometry.window
    image_u8 = sources.background.rgb_u8.copy()
    image_u8[window.part] = layers.paste_u8
    silhouette = window.embed(layers.placed.alpha_01 > 0.5).astype(np.uint8)
    outlines, _ = cv2.findContours(silhouette, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image_u8, outlines, -1, OUTLINE, 1)
    visible = window.embed(layers.visible)
    return Occlusion(image_u8, visible, layers.visible_fraction, inputs.depth_range)
