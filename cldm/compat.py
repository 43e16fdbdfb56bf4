"""Presets that compose as the two published systems do, switch for switch.

A preset replaces pre-processing and sampling of a model's configuration; sizes stay the model's. Two more
switches: the whole crop is pasted back (a rectangle less 5 pixels), and the side of the crop is drawn between
1.5 and 2.9 times the region, here from the seed of the job.
"""

from dataclasses import dataclass, replace

import numpy as np

from cldm.pretrained import CompositorConfig, Sampling
from datasets.inputs import PUBLISHED_INFERENCE, PairOptions

CROP_RATIOS = (1.5, 2.9)  # published: 15 to 29 tenths, without a seed


@dataclass(frozen=True)
class Compat:
    """What the published code of one system implies.

    paste: see `datasets.pasteback.stitch`. depth: of an object whose depth is not given, None as usual.
    """

    pair: PairOptions
    sampling: Sampling
    paste: str = "legacy-rect"
    depth: tuple[float, ...] | None = None


_DDIM = Sampling("ddim", steps=50, guidance=5.0, init="noise", detail=0.0, step_rule="published")
PRESETS = {
    "bifrost": Compat(PUBLISHED_INFERENCE, _DDIM),
    # AnyDoor knows no depth: nothing hides the object, and its collage shows the colours of the edges.
    "anydoor": Compat(replace(PUBLISHED_INFERENCE, hf_mode="color", mask_level="box"), _DDIM, depth=(1.0,)),
}


def with_compat(config: CompositorConfig, name: str, seed: int) -> CompositorConfig:
    """The configuration with the pre-processing and sampling of a published system."""
    chosen = PRESETS[name]
    tenths = np.random.default_rng(seed).integers(round(CROP_RATIOS[0] * 10), round(CROP_RATIOS[1] * 10) + 1)
    pair = replace(
        chosen.pair,
        size=config.pair.size,
        reference_size=config.pair.reference_size,
        crop_ratio=float(tenths) / 10,
        augment=config.pair.augment,
    )
    return replace(config, pair=pair, sampling=chosen.sampling)
