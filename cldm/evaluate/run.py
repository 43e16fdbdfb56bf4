"""Measure a compositor on held-out rendered scenes, through the path that inference takes.

The model gets the background, its estimated depth, the reference image, the box and one depth number, never
the target's mask or depth.  For every start (noise, paste), strength and share of detail, beside yardsticks
(depth-tested cut-out as it is, background left alone, autoencoder of the truth): PSNR and SSIM over the
pixels where the object is visible in both the true image and the placed cut-out; identity among eight
candidates; depth order re-estimated on the output.  Then ablations, and the depth network itself.  95 %
bootstrap intervals.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from cldm.evaluate.candidates import candidates, flipped_image, scene_options
from cldm.evaluate.cases import Case, cases
from cldm.evaluate.measures import nearest_candidate, occlusion_is_right, order_is_right
from cldm.evaluate.report import (
    BACKGROUND,
    CEILING,
    CUTOUT,
    DEFAULT,
    FLIPPED,
    TRUTH,
    Row,
    report,
    show,
    write_sheets,
)  # fmt: skip
from cldm.model import Compositor
from cldm.pipeline import Weights, decode, encode, paint
from cldm.pretrained import CompositorConfig, Sampling, load_compositor
from datasets.pairs import Pair, build_pair
from datasets.pasteback import stitch
from datasets.scenes import SceneOptions
from datasets.sources.rendered import RenderedScenes
from ldm.device import pick_device
from ldm.experts.depth import DepthEstimator
from ldm.files import write_atomic
from ldm.images import from_pm1
from ldm.metrics.similarity import psnr_over, ssim_over
from ldm.settings.config import CheckedSettings, setting, to_plain

logger = logging.getLogger(__name__)

EVERYTHING = Weights()


@dataclass(frozen=True)
class EvaluateSettings(CheckedSettings):
    """What is measured and where the numbers go."""

    model: Path = setting(Path("assets/tiny/compositor"), help="compositor folder")
    scenes: int = setting(300, low=2, help="scenes to measure")
    data: Path = setting(Path("data/scenes/eval"), help="folder of scene shards of the eval split")
    depth_model: Path = setting(
        Path("assets/tiny/depth"), help="depth network for backgrounds and for the order in results"
    )
    given_depth: bool = setting(
        False, help="give the scene's true background depth and object range instead of what users have"
    )
    strengths: tuple[float, ...] = setting((0.2, 0.4, 0.6, 1.0), help="strengths of init paste")
    details: tuple[float, ...] = setting((0.0, 1.0), help="shares of the relit cut-out in the result")
    steps: int = setting(20, low=1, help="sampling steps of a full run of init paste")
    noise_steps: tuple[int, ...] = setting((1, 4, 20), help="sampling steps of the start from noise")
    guidance: tuple[float, ...] = setting((1.0,), help="classifier-free guidance")
    ablations: int = setting(100, low=0, help="scenes of the ablations; 0 = none")
    identity: bool = setting(True, help="also measure identity among eight rendered candidates")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    out: Path | None = setting(None, help="JSON file for the numbers; table and sheets go beside it")


def variants(settings: EvaluateSettings, card: CompositorConfig) -> dict[str, Sampling]:
    """Every sampler setting that is measured, by name (the share of detail is varied afterwards)."""
    base = replace(card.sampling, steps=settings.steps)
    named: dict[str, Sampling] = {}
    for guidance in settings.guidance:
        for steps in settings.noise_steps:
            name = f"noise, {steps} steps, guidance {guidance:g}"
            named[name] = replace(base, init="noise", steps=steps, guidance=guidance)
        for strength in settings.strengths:
            name = f"paste, strength {strength:g}, guidance {guidance:g}"
            named[name] = replace(base, init="paste", strength=strength, guidance=guidance)
    return named


class Measurer:
    """Paints and measures cases with one model."""

    def __init__(
        self, model: Compositor, card: CompositorConfig, settings: EvaluateSettings,
        estimator: DepthEstimator, options: SceneOptions,
    ) -> None:  # fmt: skip
        self.model, self.card, self.settings = model, card, settings
        self.estimator, self.options = estimator, options
        self.device = pick_device(settings.device)

    def paint(self, pair: Pair, sampling: Sampling, seed: int, weights: Weights = EVERYTHING) -> np.ndarray:
        return paint(self.model, pair, [seed], sampling, weights, device=self.device, progress=False)[0]

    def finish(self, case: Case, painted_u8: np.ndarray, detail: float, row: Row) -> np.ndarray:
        """The painted crop in the background; drift is counted."""
        scale = self.card.sampling.detail_scale
        stitched = stitch(case.pair.geometry, painted_u8, detail=detail, detail_scale=scale)
        changed = (stitched.result_u8 != case.inputs.background_u8).any(axis=2) & ~stitched.edit_mask
        row.changed_outside += int(changed.sum())
        return stitched.result_u8

    def images(self, case: Case, seed: int, row: Row) -> dict[str, np.ndarray]:
        """Every image that is measured, (h, w, 3) uint8."""
        cutout = self.finish(case, from_pm1(case.pair.paste_pm1), 1.0, row)
        truth = build_pair(replace(case.inputs, target_u8=case.truth_u8), self.card.pair).target_pm1
        ceiling = decode(self.model, encode(self.model, truth, self.device, False), self.device, False)[0]
        found = {
            CUTOUT: cutout,
            BACKGROUND: case.inputs.background_u8,
            CEILING: self.finish(case, ceiling, 0.0, row),
        }
        for name, sampling in variants(self.settings, self.card).items():
            painted = self.paint(case.pair, sampling, seed)
            for detail in self.settings.details:
                found[f"{name}, detail {detail:g}"] = self.finish(case, painted, detail, row)
        own = self.card.sampling
        found[DEFAULT] = self.finish(case, self.paint(case.pair, own, seed), own.detail, row)
        return found

    def measure(self, case: Case, seed: int) -> Row:
        """All numbers of one scene. seed: of the noise."""
        row = Row()
        found = self.images(case, seed, row)
        row.default_u8, row.cutout_u8 = found[DEFAULT], found[CUTOUT]
        for name, result in found.items():
            row.psnr[name] = psnr_over(result, case.truth_u8, case.visible)
            row.ssim[name] = ssim_over(result, case.truth_u8, case.visible)
        if self.settings.identity:
            shown = candidates(case.seed, self.options, case.truth_u8)
            for name, result in found.items():
                row.identity[name] = float(nearest_candidate(result, shown, case.visible) == 0)
        self.measure_order(case, {TRUTH: case.truth_u8, **found}, row)
        return row

    def measure_order(self, case: Case, found: dict[str, np.ndarray], row: Row) -> None:
        """Order against every neighbour, as seen and as re-estimated, with a control that must fail."""
        if not case.neighbours:
            return
        depths = dict(zip(found, self.estimator.estimate_many(list(found.values())), strict=True))
        for beside in case.neighbours:
            wrong = flipped_image(case.seed, self.options, beside, case.truth_u8, case.inputs.background_u8)
            asked = beside.placed_is_nearer
            judged = {
                name: order_is_right(depth, beside.placed, beside.other, asked)
                for name, depth in depths.items() if name != BACKGROUND
            }  # fmt: skip
            both = beside.overlap & (beside.placed | beside.other)
            for name, result in {**found, FLIPPED: wrong}.items():
                if both.any() and name != BACKGROUND:
                    right = occlusion_is_right(result, case.truth_u8, wrong, both)
                    row.occlusion.setdefault(name, []).append(right)
            drawn = beside.flipped()
            judged[FLIPPED] = order_is_right(self.estimator.estimate(wrong), drawn.placed, drawn.other, asked)
            for name, seen in judged.items():
                if seen is not None:
                    row.order.setdefault(name, []).append(seen)

    def ablate(self, case: Case, seed: int) -> dict[str, float]:
        """PSNR from noise, without detail transfer, with one part of the conditions taken away at a time."""
        sampling = replace(self.card.sampling, init="noise", steps=self.settings.steps)
        pair = case.pair
        tried = {
            "everything": (pair, EVERYTHING),
            "no depth branch": (pair, Weights(depth=0.0)),
            "no detail branch": (pair, Weights(detail=0.0)),
            "no identity tokens": (
                replace(pair, reference_01=torch.zeros_like(pair.reference_01)), EVERYTHING),
        }  # fmt: skip
        for mode in ("zero", "gray255", "color", "cutout"):
            if mode != self.card.pair.hf_mode:
                other = build_pair(case.inputs, replace(self.card.pair, hf_mode=mode))
                tried[f"hf_mode {mode} instead of {self.card.pair.hf_mode}"] = (other, Weights())
        numbers = {}
        for name, (given, weights) in tried.items():
            result = self.finish(case, self.paint(given, sampling, seed, weights), 0.0, Row())
            numbers[name] = psnr_over(result, case.truth_u8, case.visible)
        return numbers


def evaluate(settings: EvaluateSettings) -> tuple[dict, list[Case], list[Row]]:
    """All numbers, over all scenes and apart for references in the target's pose and in another one."""
    model, card = load_compositor(settings.model)
    estimator = DepthEstimator.load(settings.depth_model)
    model.to(pick_device(settings.device))
    source = RenderedScenes(settings.data, augment=False)
    chosen = cases(source, card, settings.scenes, estimator, settings.given_depth)
    if len(chosen) < 2:
        raise ValueError(f"{settings.data}: only {len(chosen)} scenes show enough of their object")
    measurer = Measurer(model, card, settings, estimator, scene_options(settings.data))
    rows = [measurer.measure(case, seed) for seed, case in enumerate(tqdm(chosen, desc="scenes"))]
    few = chosen[: settings.ablations]
    ablated = [measurer.ablate(case, seed) for seed, case in enumerate(tqdm(few, desc="ablations"))]
    result = report(rows, [case.same_pose for case in chosen], ablated, [case.depth_error for case in chosen])
    return {"settings": to_plain(settings), "scenes": len(rows), **result}, chosen, rows


def run(settings: EvaluateSettings) -> None:
    """Measure a compositor on held-out scenes."""
    result, chosen, rows = evaluate(settings)
    table = show(result)
    logger.info("%s", table)
    if settings.out is not None:
        write_atomic(settings.out, (json.dumps(result, indent=1) + "\n").encode())
        write_atomic(settings.out.with_suffix(".txt"), (table + "\n").encode())
        write_sheets(settings.out, chosen, rows)
