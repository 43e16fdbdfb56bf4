"""Measure a compositor on held-out rendered scenes, through the path that inference takes.

The model gets what a user has, never the target's mask or depth. Every start (noise, paste), strength and
fraction of detail is measured beside baselines, over the pixels where the object is visible in both the true
image and the placed cut-out (docs/compositor.md, "Evaluating").
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from cldm.config import EvaluateSettings, Sampling
from cldm.evaluate.cases import SceneCase, find_cases, nearest_candidate, rendered_candidates
from cldm.model import load_compositor
from cldm.pipeline import CompositorPipeline, Weights
from datasets.pairs import Pair, build_pair
from datasets.pasteback import stitch
from datasets.relations import order_is_right
from datasets.scenes.store import read_options
from datasets.sources.rendered import RenderedScenes, shard_files
from ldm.denoise import Monitor
from ldm.device import pick_device
from ldm.experts.depth import DepthEstimator
from ldm.files import json_bytes
from ldm.images import encode_png, from_pm1
from ldm.metrics.numbers import Estimate, mean_interval, psnr_over, ssim_over
from ldm.registry.models import depth_folder, warn_of_small
from ldm.result import write_result
from ldm.settings.config import to_plain
from ldm.sheet import grid

logger = logging.getLogger(__name__)

EVERYTHING = Weights()
CUTOUT, DEFAULT = "cut-out as it is", "the model's own settings"
BACKGROUND, CEILING = "background left alone", "autoencoder of the truth"  # images by name
TRUTH, FLIPPED = "true render", "wrong one in front"
COLUMNS = ("background", "reference", "cut-out", "result", "truth")
ON_SHEET = 6  # scenes per sheet
GROUPS = ("all", "same pose", "other pose")  # of scenes, by the pose of the reference
TITLES = {  # of the tables in the text
    "psnr_visible_db": "PSNR over the visible object, dB",
    "ssim_visible": "SSIM over the visible object",
    "gain_over_cutout_db": "PSNR above that of the cut-out in the same scene, dB",
    "wins_against_cutout": "fraction of scenes closer to ground truth than the cut-out",
    "identity_1_of_8": "fraction of scenes: the right one of 8 objects is nearest",
    "ablations_psnr_db": "PSNR from noise without one part, dB",
    "occlusion_order": "fraction of neighbours: the right one is seen in front",
    "depth_order": "fraction of neighbours in the right order, re-estimated",
    "depth_network": "depth network on the backgrounds",
}
POOLED = ("occlusion_order", "depth_order", "depth_network")  # tables without groups
Table = dict[str, dict[str, Estimate]]


@dataclass(eq=False)
class SceneScores:
    """What was measured on one scene; every table is by the name of an image."""

    psnr: dict[str, float] = field(default_factory=dict)
    ssim: dict[str, float] = field(default_factory=dict)
    identity: dict[str, float] = field(default_factory=dict)
    order: dict[str, list[bool]] = field(default_factory=dict)
    occlusion: dict[str, list[bool]] = field(default_factory=dict)
    changed_outside: int = 0  # pixels
    default_u8: np.ndarray | None = None  # (h, w, 3) result with the model's own settings
    cutout_u8: np.ndarray | None = None


class Measurer:
    def __init__(self, settings: EvaluateSettings) -> None:
        self.options = read_options(shard_files(settings.data, "datasets.scenes render --split eval")[0])
        device = pick_device(settings.device)
        model, self.config = load_compositor(settings.model)
        self.pipeline = CompositorPipeline(model.to(device), device)
        folder = depth_folder(settings.depth_model)
        warn_of_small(settings.model, folder)
        self.settings, self.estimator = replace(settings, depth_model=folder), DepthEstimator.load(folder)

    def paint(self, pair: Pair, sampling: Sampling, seed: int, weights: Weights = EVERYTHING) -> np.ndarray:
        return self.pipeline.paint(pair, [seed], sampling, weights, Monitor(progress=False))[0]

    def finish(self, case: SceneCase, crop_u8: np.ndarray, detail: float, scores: SceneScores) -> np.ndarray:
        """The painted crop in the background; drift is counted."""
        scale = self.config.sampling.detail_scale
        stitched = stitch(case.pair.geometry, crop_u8, detail=detail, detail_scale=scale)
        changed = (stitched.result_u8 != case.inputs.background_u8).any(axis=2) & ~stitched.edit_mask
        scores.changed_outside += int(changed.sum())
        return stitched.result_u8

    def images(self, case: SceneCase, seed: int, scores: SceneScores) -> dict[str, np.ndarray]:
        """Every image that is measured, (h, w, 3) uint8."""
        truth = build_pair(replace(case.inputs, target_u8=case.truth_u8), self.config.pair).target_pm1
        ceiling = self.pipeline.decode(self.pipeline.encode(truth))[0]
        images = {CUTOUT: self.finish(case, from_pm1(case.pair.paste_pm1), 1.0, scores)}
        images |= {BACKGROUND: case.inputs.background_u8, CEILING: self.finish(case, ceiling, 0.0, scores)}
        settings, default = self.settings, self.config.sampling
        base, starts = replace(default, steps=settings.steps), dict[str, Sampling]()
        for guidance in settings.guidance:
            for steps in settings.noise_steps:
                name = f"noise, {steps} steps, guidance {guidance:g}"
                starts[name] = replace(base, init="noise", steps=steps, guidance=guidance)
            for strength in settings.strengths:
                name = f"paste, strength {strength:g}, guidance {guidance:g}"
                starts[name] = replace(base, init="paste", strength=strength, guidance=guidance)
        for name, sampling in starts.items():
            painted = self.paint(case.pair, sampling, seed)
            for detail in settings.details:
                images[f"{name}, detail {detail:g}"] = self.finish(case, painted, detail, scores)
        painted = self.paint(case.pair, default, seed)
        images[DEFAULT] = self.finish(case, painted, default.detail, scores)
        return images

    def measure(self, case: SceneCase, seed: int) -> SceneScores:
        scores = SceneScores()
        images = self.images(case, seed, scores)
        scores.default_u8, scores.cutout_u8 = images[DEFAULT], images[CUTOUT]
        objects = []
        if self.settings.identity:
            objects = rendered_candidates(case.seed, self.options, case.truth_u8)
        for name, result in images.items():
            scores.psnr[name] = psnr_over(result, case.truth_u8, case.visible)
            scores.ssim[name] = ssim_over(result, case.truth_u8, case.visible)
            if objects:
                scores.identity[name] = float(nearest_candidate(result, objects, case.visible) == 0)
        if case.neighbours:
            del images[BACKGROUND]
            self.measure_order(case, {TRUTH: case.truth_u8, **images}, scores)
        return scores

    def measure_order(self, case: SceneCase, images: dict[str, np.ndarray], scores: SceneScores) -> None:
        """Order against every neighbour, as seen and as re-estimated, with a control that must fail."""
        depths = dict(zip(images, self.estimator.estimate_many(list(images.values())), strict=True))
        for beside in case.neighbours:
            wrong = beside.flipped_image(case.seed, self.options, case.truth_u8, case.inputs.background_u8)
            nearer, flipped = beside.placed_is_nearer, beside.flipped()
            either = beside.overlap & (beside.placed | beside.other)
            for name, result in {**images, FLIPPED: wrong}.items():
                if either.any():
                    right = nearest_candidate(result, [case.truth_u8, wrong], either) == 0
                    scores.occlusion.setdefault(name, []).append(right)
                depth = self.estimator.estimate(wrong) if name == FLIPPED else depths[name]
                masks = flipped if name == FLIPPED else beside
                seen = order_is_right(depth, masks.placed, masks.other, nearer)
                if seen is not None:
                    scores.order.setdefault(name, []).append(seen)

    def ablate(self, case: SceneCase, seed: int) -> dict[str, float]:
        """PSNR from noise, without detail transfer, with one part of the conditions taken away at a time."""
        sampling = replace(self.config.sampling, init="noise", steps=self.settings.steps)
        pair, options = case.pair, self.config.pair
        blank = replace(pair, reference_u8=torch.zeros_like(pair.reference_u8))
        tried = {
            "everything": (pair, EVERYTHING),
            "no depth branch": (pair, Weights(depth=0.0)),
            "no detail branch": (pair, Weights(detail=0.0)),
            "no identity tokens": (blank, EVERYTHING),
        }
        for mode in ("zero", "gray255", "color", "cutout"):
            if mode != options.hf_mode:
                other = build_pair(case.inputs, replace(options, hf_mode=mode))
                tried[f"hf_mode {mode} instead of {options.hf_mode}"] = (other, EVERYTHING)
        numbers = {}
        for name, (given, weights) in tried.items():
            result = self.finish(case, self.paint(given, sampling, seed, weights), 0.0, SceneScores())
            numbers[name] = psnr_over(result, case.truth_u8, case.visible)
        return numbers


def by_pose(scenes: Sequence[dict[str, float]], same_pose: Sequence[bool]) -> Table:
    """{image: {group: estimate}} of the first scenes, for all and apart by the pose of the reference."""
    same = np.array(same_pose[: len(scenes)])
    groups = dict(zip(GROUPS, (np.ones(len(scenes), bool), same, ~same), strict=True))
    groups = {group: which for group, which in groups.items() if which.sum() > 1}
    table: Table = {}
    for name in scenes[0] if scenes else ():
        values = np.array([scene[name] for scene in scenes])
        table[name] = {group: mean_interval(values[which]) for group, which in groups.items()}
    return table


def pooled_rates(scenes: Sequence[dict[str, list[bool]]]) -> dict[str, Estimate]:
    """Fraction of right answers over the pairs of neighbours of all scenes."""
    names = dict.fromkeys(name for scene in scenes for name in scene)
    return {name: mean_interval([right for row in scenes for right in row.get(name, ())]) for name in names}


def text_tables(result: dict) -> str:
    lines = []
    for key, title in TITLES.items():
        table = {name: {"all": row} for name, row in result[key].items()} if key in POOLED else result[key]
        if not table and key not in POOLED:
            continue
        shown = GROUPS[:1] if key in POOLED else GROUPS
        lines.append(f"{title:58}" + "".join(f"{group:>{28 if i else 26}}" for i, group in enumerate(shown)))
        for name, groups in table.items():
            line = f"{name:58}"
            for i, numbers in enumerate(groups[group] for group in GROUPS if group in groups):
                cell = f"- n = {numbers.get('n', 0)}"
                if "mean" in numbers:
                    bounds = [f"{numbers[side]:.3f}" for side in ("low", "high") if side in numbers]
                    interval = f"[{', '.join(bounds)}]" if bounds else ""
                    cell = f"{numbers['mean']:.3f} {interval:>18}"
                line += f"{cell:>{28 if i else 26}}"
            lines.append(line)
        lines.append("")
    return "\n".join([*lines, f"pixels changed outside the mask: {result['changed_outside']}"])


def ranked(scores: Sequence[SceneScores], count: int = ON_SHEET) -> dict[str, list[int]]:
    """Scenes by their gain in PSNR over the cut-out: the best, the middle and the worst `count`."""
    gains = np.array([row.psnr[DEFAULT] - row.psnr[CUTOUT] for row in scores])
    order = np.argsort(-gains, kind="stable").tolist()
    middle = max(0, (len(order) - count) // 2)
    return {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:]}


def evaluate(settings: EvaluateSettings) -> None:
    """Measure a compositor on held-out scenes."""
    source, measurer = RenderedScenes(settings.data, augment=False), Measurer(settings)
    pair, network = measurer.config.pair, measurer.estimator
    found, failed = find_cases(source, pair, settings.scenes, network, settings.given_depth)
    cases, scores, ablated = list[SceneCase](), list[SceneScores](), list[dict[str, float]]()
    for seed, case in enumerate(tqdm(found, desc="scenes")):
        try:
            scores.append(measurer.measure(case, seed))
            if seed < settings.ablations:
                ablated.append(measurer.ablate(case, seed))
            cases.append(case)
        except ValueError as error:
            failed[case.seed] = str(error)
            del scores[len(cases) :]
    for scene, reason in failed.items():
        logger.warning("scene %d failed: %s", scene, reason)
    if len(cases) < 2:
        raise ValueError(f"{settings.data}: only {len(cases)} scenes can be measured; failed: {failed}")
    same_pose = [case.same_pose for case in cases]
    gains = [{name: value - row.psnr[CUTOUT] for name, value in row.psnr.items()} for row in scores]
    wins = [{name: float(gain > 0) for name, gain in row.items()} for row in gains]
    errors = {name: [case.depth_error[name] for case in cases] for name in ("mae", "order")}
    tables = {"psnr_visible_db": [row.psnr for row in scores], "ssim_visible": [row.ssim for row in scores]}
    tables |= {"gain_over_cutout_db": gains, "wins_against_cutout": wins}
    tables |= {"identity_1_of_8": [row.identity for row in scores]}
    result: dict[str, Any] = {
        "failed": {str(scene): reason for scene, reason in failed.items()},
        "changed_outside": sum(row.changed_outside for row in scores),
        **{name: by_pose(values, same_pose) for name, values in tables.items()},
        "occlusion_order": pooled_rates([row.occlusion for row in scores]),
        "depth_order": pooled_rates([row.order for row in scores]),
        "ablations_psnr_db": by_pose(ablated, same_pose) if len(ablated) > 1 else {},
        "depth_network": {name: mean_interval(values) for name, values in errors.items()},
    }
    text = text_tables(result)
    logger.info("%s", text)
    if settings.out is not None:
        body = {"settings": to_plain(measurer.settings), "scenes": len(scores), **result}
        files = {settings.out: json_bytes(body), settings.out.with_suffix(".txt"): (text + "\n").encode()}
        for name, indices in ranked(scores).items():
            rows = [[cases[i].inputs.background_u8, cases[i].inputs.reference_u8, scores[i].cutout_u8,
                     scores[i].default_u8, cases[i].truth_u8] for i in indices]  # fmt: skip
            labels = [f"{scores[i].psnr[CUTOUT]:.1f} to {scores[i].psnr[DEFAULT]:.1f} dB" for i in indices]
            sheet = encode_png(grid(rows, COLUMNS, labels, cell=160))
            files[settings.out.with_name(f"{settings.out.stem}_{name}.png")] = sheet
        write_result(files, settings.overwrite)
