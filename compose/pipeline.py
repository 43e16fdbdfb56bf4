"""From two images and a place to a composite: the one way for command line, notebooks and batches.

    settings = ComposeSettings(background=Path("room.png"), object=Path("dog.png"), box=(0.4, 0.5, 0.7, 0.9))
    result = compose(settings, load_models(settings))

A sentence may stand in the place of the box: `instruction="Place the dog behind the sofa"`.

Stages: read and cut out, depth, the place if a sentence says it (`compose.placement`), pre-processing
(`datasets.pairs`), painting (`cldm.pipeline`), paste-back (`datasets.pasteback`).  Every pixel outside the
final edit mask stays as it was, and that is measured.
Sample i of `num_samples` has seed `seed + i`: its noise is that of the same seed painted alone, so the two
images are equal up to rounding; the same settings on the same machine give the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cldm.compat import preset, with_compat
from cldm.pipeline import CompositorPipeline, Weights
from cldm.pretrained import CompositorConfig, Sampling
from compose.inputs import read_sources
from compose.models import Models, load_models
from compose.placement import locate, settle
from compose.recipe import make_recipe
from compose.settings import DEPTH_MODES, ComposeSettings, ignored
from datasets.inputs import Inputs
from datasets.layers import Layers
from datasets.pairs import Pair, pair_of
from datasets.pasteback import Stitched, stitch
from ldm.denoise import Monitor, Step
from ldm.result import StageTimer, measure_drift

__all__ = ["ComposeSettings", "Models", "Result", "compose", "load_models"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Result:
    """What `compose` returns. Image i has seed `seeds[i]`."""

    images_u8: list[np.ndarray]  # n x (H, W, 3), the size of the background
    alpha_u8: np.ndarray | None  # (H, W) of the background, carried over
    icc_profile: bytes | None  # colour profile of the background, carried over
    edit_mask: np.ndarray  # (H, W) bool, what was allowed to change
    seeds: list[int]
    recipe: dict[str, Any]  # all that decides the pixels
    report: dict[str, Any]  # what was measured
    inputs: Inputs
    pair: Pair
    painted_u8: list[np.ndarray]  # n x (h, w, 3), the model's own output
    layers: Layers  # the crop at native resolution


def card_of(settings: ComposeSettings, models: Models) -> CompositorConfig:
    """The card of the model, or what a published system would make of it."""
    return with_compat(models.card, settings.compat, settings.seed) if settings.compat else models.card


def with_depth(settings: ComposeSettings) -> ComposeSettings:
    """The settings with the depth that a published system implies where none is given."""
    if settings.compat is None or settings.depth is not None or settings.plain_mode not in DEPTH_MODES:
        return settings
    return replace(settings, depth=preset(settings.compat).depth)


def sampling_of(settings: ComposeSettings, card: CompositorConfig) -> Sampling:
    """The model's recommended sampler settings with the user's own on top."""
    names = ("scheduler", "steps", "guidance", "init", "strength", "detail", "detail_scale")
    return replace(
        card.sampling,
        **{name: getattr(settings, name) for name in names if getattr(settings, name) is not None},
    )


def compose(
    settings: ComposeSettings,
    models: Models,
    *,
    on_step: Callable[[Step], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    progress: bool = True,
) -> Result:
    """Put the object into the background. Reads files, writes none; what is quick to check comes first.

    Raises ValueError for whatever a user can mend, `ldm.denoise.Cancelled` when `cancelled` says so.
    """
    card, settings = card_of(settings, models), with_depth(settings)
    timer, sampling, options = StageTimer(), sampling_of(settings, card), card.pair
    for sentence in ignored(settings, sampling):
        logger.warning("%s", sentence)
    with timer.stage("read"):
        sources = read_sources(settings)
    with timer.stage("depth"):
        depth_01 = sources.depth_01
        if depth_01 is None:
            depth_01 = models.depth.estimate(sources.background.rgb_u8)
    placement = None
    if settings.instruction is not None:
        with timer.stage("locate"):
            placement = locate(settings, models, sources, depth_01)
    with timer.stage("prepare"):
        placed = settle(settings, placement, sources, depth_01, options)
        settings, inputs, layers = placed.settings, placed.geometry.inputs, placed.geometry.native_layers
        pair = pair_of(placed.geometry)
        recipe = make_recipe(settings, models, sampling, options, placed.placement)
    with timer.stage("load"):
        compositor = models.compositor
    seeds = [settings.seed + index for index in range(settings.num_samples)]
    with timer.stage("paint"):
        weights = Weights(settings.detail_weight, settings.depth_weight)
        pipeline = CompositorPipeline(compositor, models.device, settings.offload)
        painted = pipeline.paint(pair, seeds, sampling, weights, Monitor(on_step, cancelled, progress))
    paste = preset(settings.compat).paste if settings.compat else "mask-feather"
    with timer.stage("paste back"):
        stitched = [
            stitch(placed.geometry, image, paste=paste,
                   detail=sampling.detail, detail_scale=sampling.detail_scale)
            for image in painted
        ]  # fmt: skip
        drift = [drift_of(inputs, one) for one in stitched]
    report = {
        **placed.decided,
        "visible_fraction": visible_fraction(layers),
        "drift": drift,
        "seeds": seeds,
        "device": str(models.device),
        "seconds": timer.report(),
    }
    return Result(
        images_u8=[one.result_u8 for one in stitched],
        alpha_u8=sources.background.alpha_u8,
        icc_profile=sources.background.icc_profile,
        edit_mask=stitched[0].edit_mask,
        seeds=seeds,
        recipe=recipe,
        report=report,
        inputs=inputs,
        pair=pair,
        painted_u8=painted,
        layers=layers,
    )


def visible_fraction(layers: Layers) -> float:
    """Share of the placed cut-out that nothing hides."""
    return float(layers.coverage_01.sum() / max(layers.placed.alpha_01.sum(), 1e-6))


def drift_of(inputs: Inputs, one: Stitched) -> dict[str, Any]:
    """What changed outside the region that may change, nearer things included."""
    return measure_drift(inputs.background_u8, one.result_u8, one.edit_mask & ~one.keep_mask)
