"""Measure a compositor on stored scenes, through the path that inference takes.

    python -m cldm.evaluate --scenes 300 --out benchmarks/results/compositor.json

For every start (noise, paste), strength and share of detail: PSNR against the true render over the pixels
where the object is visible in both the true picture and the placed cut-out, beside two yardsticks: the
depth-tested cut-out as it is, and the autoencoder's round trip of the truth.  95 % bootstrap intervals.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import typer
from scipy.stats import bootstrap
from tqdm.auto import tqdm

from cldm.model import Compositor
from cldm.pipeline import decode, encode, paint
from cldm.pretrained import Card, Sampling, load_compositor
from datasets.inputs import Inputs
from datasets.pairs import Pair, build_pair
from datasets.pasteback import stitch
from datasets.rendered import RenderedScenes
from ldm.config import check_settings, setting, to_plain
from ldm.device import pick_device
from ldm.files import write_atomic
from ldm.images import from_pm1
from ldm.options import command, run_app

logger = logging.getLogger(__name__)

MIN_PIXELS = 40  # of the object, fewer make a meaningless PSNR


@dataclass(frozen=True)
class EvaluateSettings:
    """What is measured and where the numbers go."""

    model: Path = setting(Path("assets/tiny/compositor"), help="compositor folder")
    scenes: int = setting(300, low=2, help="scenes to measure")
    data: Path = setting(Path("data/scenes/eval"), help="folder of scene shards of the eval split")
    strengths: tuple[float, ...] = setting((0.2, 0.4, 0.6, 1.0), help="strengths of init paste")
    details: tuple[float, ...] = setting((0.0, 1.0), help="shares of the cut-out's fine detail")
    steps: int = setting(20, low=1, help="sampling steps of a full run")
    guidance: tuple[float, ...] = setting((1.0,), help="classifier-free guidance")
    noise: bool = setting(True, help="also measure the start from noise")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    out: Path | None = setting(None, help="JSON file for the numbers")

    def __post_init__(self) -> None:
        check_settings(self)


def psnr_over(result_u8: np.ndarray, truth_u8: np.ndarray, mask: np.ndarray) -> float:
    """PSNR in dB of (h, w, 3) uint8 pictures over mask (h, w) bool."""
    error = np.square(result_u8[mask].astype(np.float64) - truth_u8[mask]).mean()
    return float(10 * np.log10(255.0**2 / max(error, 1e-2)))


def variants(settings: EvaluateSettings, card: Card) -> dict[str, Sampling]:
    """Every sampler setting that is measured, by name (the share of detail is varied afterwards)."""
    base = replace(card.sampling, steps=settings.steps)
    named: dict[str, Sampling] = {}
    for guidance in settings.guidance:
        if settings.noise:
            named[f"noise, guidance {guidance:g}"] = replace(base, init="noise", guidance=guidance)
        for strength in settings.strengths:
            name = f"paste, strength {strength:g}, guidance {guidance:g}"
            named[name] = replace(base, init="paste", strength=strength, guidance=guidance)
    return named


@dataclass(frozen=True, eq=False)
class Case:
    """One scene ready to be painted and measured."""

    inputs: Inputs
    pair: Pair
    truth_u8: np.ndarray  # (h, w, 3)
    visible: np.ndarray  # (h, w) bool, object visible in the truth and in the placed cut-out
    same_pose: bool


def cases(source: RenderedScenes, card: Card, count: int) -> list[Case]:
    """The first `count` scenes whose object shows enough pixels."""
    found = []
    for index in range(len(source)):
        shown = source.inputs(index)
        inputs = replace(shown, target_u8=None)
        pair = build_pair(inputs, card.pair)
        cutout = stitch(inputs, card.pair, pair.crop, from_pm1(pair.paste_pm1)).visible_mask
        both = source.silhouette(index) & cutout
        if both.sum() >= MIN_PIXELS and shown.target_u8 is not None:
            found.append(Case(inputs, pair, shown.target_u8, both, source.facts(index).same_pose))
        if len(found) == count:
            break
    return found


def measure_case(
    model: Compositor, card: Card, case: Case, settings: EvaluateSettings, seed: int
) -> dict[str, float]:
    """PSNR of every variant on one scene."""
    device, options = pick_device(settings.device), card.pair
    numbers = {}

    def score(name: str, painted_u8: np.ndarray, detail: float) -> None:
        stitched = stitch(case.inputs, options, case.pair.crop, painted_u8, detail=detail)
        numbers[name] = psnr_over(stitched.result_u8, case.truth_u8, case.visible)
        changed = (stitched.result_u8 != case.inputs.background_u8).any(axis=2) & ~stitched.edit_mask
        numbers["bytes changed outside the mask"] = numbers.get("bytes changed outside the mask", 0) + int(
            changed.sum()
        )

    score("cut-out as it is", from_pm1(case.pair.paste_pm1), 1.0)
    numbers["background left alone"] = psnr_over(case.inputs.background_u8, case.truth_u8, case.visible)
    truth = build_pair(replace(case.inputs, target_u8=case.truth_u8), options).target_pm1
    ceiling = decode(model, encode(model, truth, device, False), device, False)[0]
    score("autoencoder of the truth", ceiling, 0.0)
    for name, sampling in variants(settings, card).items():
        painted = paint(model, case.pair, [seed], sampling, device=device, progress=False)[0]
        for detail in settings.details:
            score(f"{name}, detail {detail:g}", painted, detail)
    return numbers


def summary(values: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Mean and 95 % percentile-bootstrap interval over scenes."""
    interval = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(seed)
    )
    low, high = interval.confidence_interval
    return {
        "mean": round(float(values.mean()), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
    }


def evaluate(settings: EvaluateSettings) -> dict:
    """All numbers, over all scenes and apart for references in the target's pose and in another one."""
    model, card = load_compositor(settings.model)
    model.to(pick_device(settings.device))
    chosen = cases(RenderedScenes(settings.data, augment=False), card, settings.scenes)
    if len(chosen) < 2:
        raise ValueError(f"{settings.data}: only {len(chosen)} scenes show enough of their object")
    rows = [
        measure_case(model, card, case, settings, index)
        for index, case in enumerate(tqdm(chosen, desc="scenes"))
    ]
    same = np.array([case.same_pose for case in chosen])
    groups = {"all": np.ones(len(rows), bool), "same pose": same, "other pose": ~same}
    drift = int(sum(row.pop("bytes changed outside the mask") for row in rows))
    table = {
        name: {
            group: {"n": int(which.sum()), **summary(values[which])}
            for group, which in groups.items()
            if which.sum() > 1
        }
        for name in rows[0]
        if (values := np.array([row[name] for row in rows])) is not None
    }
    return {
        "settings": to_plain(settings),
        "scenes": len(rows),
        "changed_outside": drift,
        "psnr_visible_db": table,
    }


def show(result: dict) -> str:
    """The numbers as a text table."""
    lines = [f"{'PSNR over the visible object, dB':58}{'all':>22}{'same pose':>12}{'other pose':>12}"]
    for name, groups in result["psnr_visible_db"].items():
        whole = groups["all"]
        parts = "".join(
            f"{groups[group]['mean']:12.2f}" if group in groups else " " * 12
            for group in ("same pose", "other pose")
        )
        lines.append(f"{name:58}{whole['mean']:8.2f} [{whole['low']:.2f}, {whole['high']:.2f}]{parts}")
    return "\n".join([*lines, f"pixels changed outside the mask: {result['changed_outside']}"])


def run(settings: EvaluateSettings) -> None:
    """Measure a compositor on held-out scenes."""
    result = evaluate(settings)
    logger.info("%s", show(result))
    if settings.out is not None:
        write_atomic(settings.out, (json.dumps(result, indent=1) + "\n").encode())


def build_app() -> typer.Typer:
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(command(EvaluateSettings, run))
    return app


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(run_app(build_app, sys.argv[1:]))
