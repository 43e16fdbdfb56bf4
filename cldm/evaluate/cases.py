"""Held-out scenes as a user would give them to the compositor, with the truth beside them.

Legend: h w pixels of the background.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cldm.evaluate.candidates import Neighbour, neighbours
from cldm.evaluate.measures import pixel_order
from cldm.pretrained import CompositorConfig
from datasets.geometry import depth_extent
from datasets.inputs import Inputs
from datasets.pairs import Pair, build_pair
from datasets.pasteback import stitch
from datasets.sources.rendered import RenderedScenes
from ldm.experts.depth import DepthEstimator
from ldm.images import from_pm1, normalize

MIN_PIXELS = 40  # of the object, fewer make a meaningless PSNR


@dataclass(frozen=True, eq=False)
class Case:
    """One scene ready to be painted and measured."""

    inputs: Inputs
    pair: Pair
    truth_u8: np.ndarray  # (h, w, 3)
    visible: np.ndarray  # (h, w) bool, object visible in the truth and in the placed cut-out
    same_pose: bool
    seed: int  # of the scene
    neighbours: list[Neighbour]
    depth_error: dict[str, float]  # of the background's estimated depth


def inference_inputs(inputs: Inputs, estimated_01: np.ndarray) -> Inputs:
    """Estimated depth, one depth number in its frame (0 = farthest of the background, 1 = nearest)."""
    low, high = float(inputs.background_depth_01.min()), float(inputs.background_depth_01.max())
    assert inputs.box01_xyxy is not None  # scenes have one
    centre = (sum(inputs.depth_range) / 2 - low) / max(high - low, 1e-6)
    extent = depth_extent(float(np.clip(centre, 0, 1)), inputs.box01_xyxy)
    return replace(inputs, background_depth_01=estimated_01, depth_range=extent, reference_depth_01=None)


def make_case(
    source: RenderedScenes, index: int, card: CompositorConfig, estimator: DepthEstimator, given_depth: bool
) -> Case | None:
    """None where too little of the object shows."""
    shown, facts = source.inputs(index), source.facts(index)
    truth = normalize(shown.background_depth_01)
    estimated = estimator.estimate(shown.background_u8)
    error = {
        "mae": float(np.abs(estimated - truth).mean()),
        "order": pixel_order(estimated, truth, np.random.default_rng(index)),
    }
    inputs = replace(shown if given_depth else inference_inputs(shown, estimated), target_u8=None)
    pair = build_pair(inputs, card.pair)
    cutout = stitch(pair.geometry, from_pm1(pair.paste_pm1)).visible_mask
    both = source.silhouette(index) & cutout
    if both.sum() < MIN_PIXELS or shown.target_u8 is None:
        return None
    beside = neighbours(facts, source.array("instances_u8", index), source.array("amodal", index))
    return Case(inputs, pair, shown.target_u8, both, facts.same_pose, facts.seed, beside, error)


def cases(
    source: RenderedScenes,
    card: CompositorConfig,
    count: int,
    estimator: DepthEstimator,
    given_depth: bool = False,
) -> list[Case]:
    """The first `count` scenes whose object shows enough pixels."""
    found: list[Case] = []
    for index in range(len(source)):
        case = make_case(source, index, card, estimator, given_depth)
        if case is not None:
            found.append(case)
        if len(found) == count:
            break
    return found
