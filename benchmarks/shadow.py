"""Does a second region at the object's ground contact let the compositor paint the shadow of the object?

    OMP_NUM_THREADS=1 python -m benchmarks.shadow [--scenes 300] [--out FILE]

The region is a soft ellipse on what the object stands on, kept to the object's own depth. The same model
paints object and ellipse together. Measured on held-out rendered scenes, in the ellipse without the object
and its edit mask, for the painted colours and for their darkening alone:
recall: fraction of the true shadow's darkening that is there; precision: fraction of the painted darkening
that is true; psnr: against the true image, beside that of the background left alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np
import typer
from tqdm.auto import tqdm

from benchmarks.harness import RESULTS, Out, write_results
from cldm.config import CompositorConfig
from ldm.files import located
from ldm.images import from_pm1
from ldm.settings.cli import run_module, single_app

if TYPE_CHECKING:
    from cldm.evaluate.cases import SceneCase
    from cldm.model import Compositor

WIDE, BEHIND, BEFORE = 1.0, 0.6, 0.35  # half axes of the ellipse, in widths of the object's box
DARK = 0.03  # of luminance in [0, 1]; less darkening in the true image is not counted as shadow
SMOOTH = 2.0  # pixels; finer darkening is texture
LEAST = 20  # pixels of the region outside everything else
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
WAYS = ("nothing", "painted", "darkening alone")


def shadow_weight(case: SceneCase) -> np.ndarray:
    """(h, w) blend weight in [0, 1]: an ellipse round the object's ground contact, at its depth."""
    depth = case.inputs.background_depth_01
    h, w = depth.shape
    assert case.inputs.box01_xyxy is not None  # rendered scenes have a box
    x0, _, x1, y1 = case.inputs.box01_xyxy
    width, bottom = (x1 - x0) * w, y1 * h
    y, x = np.mgrid[:h, :w] + 0.5
    height = np.where(y < bottom, BEHIND, BEFORE) * width
    radius = np.hypot((x - (x0 + x1) / 2 * w) / (WIDE * width), (y - bottom) / height)
    far, near = case.inputs.depth_range
    there = (depth > 2 * far - near) & (depth < 2 * near - far)
    return np.where(there, np.clip(1.5 - 1.5 * radius, 0, 1), 0)


def luminance(image_u8: np.ndarray) -> np.ndarray:
    """(h, w, 3) -> (h, w) in [0, 1]"""
    return image_u8.astype(np.float32) @ LUMINANCE / 255


def shadow_sums(
    case: SceneCase, silhouette: np.ndarray, model: Compositor, config: CompositorConfig, seed: int
) -> dict[str, dict[str, float]] | None:
    """Sums of darkening and the PSNR of every way; None where the region has no room.

    silhouette: (h, w) bool, the object in the true image
    """
    from cldm.pipeline import CompositorPipeline
    from datasets.pairs import build_pair
    from datasets.pasteback import stitch
    from ldm.denoise import Monitor
    from ldm.metrics.similarity import psnr_over

    sampling, background, truth = config.sampling, case.inputs.background_u8, case.truth_u8
    mine = stitch(case.pair.geometry, from_pm1(case.pair.paste_pm1)).edit_mask
    weight = shadow_weight(case)
    both = replace(case.inputs, region=mine | (weight > 0))
    pair = build_pair(both, config.pair)
    painted = CompositorPipeline(model).paint(pair, [seed], sampling, monitor=Monitor(progress=False))[0]
    result = stitch(
        pair.geometry, painted, detail=sampling.detail, detail_scale=sampling.detail_scale
    ).result_u8
    zone = (weight > 0) & ~mine & ~silhouette
    if zone.sum() < LEAST:
        return None
    fall = luminance(background) - luminance(truth)
    true_fall = np.where(fall > DARK, fall, 0)
    # The background as much darker as the painted image is, hues and texture kept.
    before, after = (cv2.GaussianBlur(luminance(image), (0, 0), SMOOTH) for image in (background, result))
    darkened = background * np.minimum(after / np.maximum(before, 0.02), 1)[..., None]
    images = dict(zip(WAYS, (background, result.astype(np.float32), darkened), strict=True))
    rows = {}
    for name, image in images.items():
        mixed = background + weight[..., None] * (image - background)
        result_u8 = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
        fall = np.maximum(luminance(background) - luminance(result_u8), 0)
        shared = np.minimum(fall, true_fall)
        rows[name] = {
            "wanted": float(true_fall[zone].sum()), "there": float(fall[zone].sum()),
            "both": float(shared[zone].sum()), "psnr": psnr_over(result_u8, truth, zone),
        }  # fmt: skip
    return rows


def shadow_table(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Recall and precision of the pooled darkening and the mean PSNR, with 95 % bootstraps over scenes."""
    from ldm.metrics.intervals import percentile_interval

    both, wanted, there, psnr = (
        np.array([row[name] for row in rows]) for name in ("both", "wanted", "there", "psnr")
    )
    statistics = {
        "recall": lambda i: both[i].sum() / wanted[i].sum(),
        "precision": lambda i: both[i].sum() / max(there[i].sum(), 1e-6),
        "psnr_db": lambda i: psnr[i].mean(),
    }
    estimates, every = {}, np.arange(len(rows))
    for name, statistic in statistics.items():
        low, high = percentile_interval(statistic, len(rows))
        numbers = {"mean": statistic(every), "low": low, "high": high}
        estimates[name] = {key: round(float(value), 3) for key, value in numbers.items()}
    return estimates


def measure_shadow(
    scenes: Annotated[int, typer.Option(help="held-out scenes", min=2)] = 300,
    model: Annotated[Path, typer.Option(help="compositor folder")] = Path("assets/tiny/compositor"),
    data: Annotated[Path, typer.Option(help="scene shards of the eval split")] = Path("data/scenes/eval"),
    out: Out = RESULTS / "shadow.json",
) -> None:
    """Measure what a shadow region would bring."""
    from cldm.evaluate.cases import find_cases
    from cldm.pretrained import load_compositor
    from datasets.sources.rendered import RenderedScenes
    from ldm.experts.depth import DepthEstimator

    compositor, config = load_compositor(located(model))
    depth = DepthEstimator.load(located("assets/tiny/depth"))
    source = RenderedScenes(data, augment=False)
    chosen = find_cases(source, config, scenes, depth)
    at = {source.facts(index).seed: index for index in range(len(source))}
    measured = [
        shadow_sums(case, source.silhouette(at[case.seed]), compositor, config, seed)
        for seed, case in enumerate(tqdm(chosen, disable=None))
    ]
    rows = [row for row in measured if row is not None]
    table = {name: shadow_table([row[name] for row in rows]) for name in WAYS}
    write_results(out, {"scenes": len(rows), "model": str(model), **table})


build_app = single_app(measure_shadow)

if __name__ == "__main__":
    run_module(build_app)
