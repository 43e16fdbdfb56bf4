"""Pre-processing against the published per-pixel loops, on a 1080p background, in one run.

    python -m benchmarks.preprocess [--out FILE]

The loops are written here as the published code does them: one Python step per pixel. Both sides must give
the same arrays. Times are CPU seconds, the best of a few runs.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import typer

from benchmarks.harness import RESULTS, best_seconds, write_report
from datasets.fusion import Cutout, collage, hidden_object, place_cutout_legacy
from datasets.inputs import AugmentationParams, Inputs, PairOptions
from datasets.masks import dilate
from datasets.pairs import build_pair
from ldm.settings.cli import run_module, single_app

SIZE = (1080, 1920)
BOX = (500, 300, 1100, 900)
EXTENT = (0.3, 0.8)


def loop_dilate(mask: np.ndarray, amount: float) -> np.ndarray:
    """Every set pixel sets a rectangle of offsets -k .. k-1."""
    h, w = mask.shape
    kh, kw = int(amount * h), int(amount * w)
    result = np.zeros_like(mask)
    for y in range(h):
        for x in range(w):
            if mask[y, x]:
                result[max(0, y - kh) : y + kh, max(0, x - kw) : x + kw] = True
    return result


def loop_collage(background_u8: np.ndarray, detail_u8: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Detail inside the mask, background outside."""
    result = detail_u8.copy()
    h, w = mask.shape
    for y in range(h):
        for x in range(w):
            if not mask[y, x]:
                result[y, x] = background_u8[y, x]
    return result


def loop_fusion(
    depth: np.ndarray, object_depth: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The object's depth where it is nearer than the background's."""
    result, visible = depth.copy(), np.zeros(depth.shape, bool)
    x0, y0, x1, y1 = BOX
    for y in range(y0, y1):
        for x in range(x0, x1):
            if mask[y - y0, x - x0] and object_depth[y - y0, x - x0] > depth[y, x]:
                result[y, x], visible[y, x] = object_depth[y - y0, x - x0], True
    return result, visible


def seconds(work: Callable[[], object], runs: int) -> float:
    """CPU seconds of the fastest run."""
    return best_seconds({"": work}, runs)[""]


def scene() -> tuple[np.ndarray, np.ndarray, Cutout, np.ndarray]:
    """Background (h, w, 3), its depth (h, w), an elliptic object of the box's size, its mask (h, w)."""
    rng = np.random.default_rng(0)
    background_u8 = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    depth = rng.random(SIZE).astype(np.float32)
    x0, y0, x1, y1 = BOX
    rows, columns = np.mgrid[: y1 - y0, : x1 - x0]
    inside = ((rows - 300) / 290) ** 2 + ((columns - 300) / 280) ** 2 < 1
    own = np.where(inside, rng.random(inside.shape), 0).astype(np.float32)
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = inside
    return background_u8, depth, Cutout(background_u8[y0:y1, x0:x1], inside, own), mask


def compare_loops() -> dict[str, dict[str, float]]:
    """Seconds and ratio of each step; raises if the results differ."""
    background_u8, depth, cutout, mask = scene()
    object_depth = EXTENT[0] + (EXTENT[1] - EXTENT[0]) * cutout.depth_01
    detail_u8 = 255 - background_u8
    full = mask.astype(np.float32)

    def fused() -> np.ndarray:
        x0, y0, x1, y1 = BOX
        result, size = depth.copy(), (y1 - y0, x1 - x0)
        placed, part = place_cutout_legacy(cutout, (0, 0, *size[::-1]), EXTENT, size), result[y0:y1, x0:x1]
        visible = (placed.alpha_01 > 0.5) & ~hidden_object(part, placed, EXTENT[1], "pixel")
        part[visible] = placed.depth_01[visible]
        return result

    pairs: dict[str, tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]] = {
        "mask dilation": (lambda: loop_dilate(mask, 0.02), lambda: dilate(mask, 0.02, shape="legacy-rect")),
        "collage masking": (
            lambda: loop_collage(background_u8, detail_u8, mask),
            lambda: collage(background_u8, detail_u8, full, mask),
        ),
        "fusion": (lambda: loop_fusion(depth, object_depth, cutout.mask)[0], fused),
    }
    rows = {}
    for name, (loop, ours) in pairs.items():
        if not np.array_equal(loop(), ours()):
            raise RuntimeError(f"{name}: the loop and our function differ")
        slow, fast = seconds(loop, 2), seconds(ours, 10)
        rows[name] = {"loop_s": round(slow, 5), "ours_s": round(fast, 5), "ratio": round(slow / fast, 1)}
    slow, fast = (sum(row[key] for row in rows.values()) for key in ("loop_s", "ours_s"))
    rows["all three"] = {"loop_s": round(slow, 5), "ours_s": round(fast, 5), "ratio": round(slow / fast, 1)}
    return rows


def example(size: tuple[int, int], reference: int) -> Inputs:
    """Smooth random images of (h, w) with an elliptic reference."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:reference, :reference] / reference - 0.5
    return Inputs(
        reference_u8=cv2.GaussianBlur(
            rng.integers(0, 256, (reference, reference, 3), dtype=np.uint8), (0, 0), 3
        ),
        reference_mask=(rows / 0.45) ** 2 + (columns / 0.3) ** 2 < 1,
        background_u8=cv2.GaussianBlur(rng.integers(0, 256, (*size, 3), dtype=np.uint8), (0, 0), 5),
        background_depth_01=np.repeat(np.linspace(0, 1, size[0], dtype=np.float32)[:, None], size[1], 1),
        box01_xyxy=(0.35, 0.4, 0.6, 0.8),
        depth_range=(0.7, 0.85),
        reference_depth_01=(rows + 0.5).astype(np.float32),
    )


def build_times() -> dict[str, float]:
    """Milliseconds of CPU per pair."""
    small = PairOptions(size=(96, 96), reference_size=64, hf_mode="cutout", show_background=True)
    training = example((96, 96), 112)
    choices = [AugmentationParams.sample(np.random.default_rng(seed), small) for seed in range(200)]
    per_pair = seconds(lambda: [build_pair(training, small, choice) for choice in choices], 3) / len(choices)
    large = {mode: PairOptions(hf_mode=mode) for mode in ("zero", "gray255")}
    photograph = example(SIZE, 900)
    rows = {"96 px crop, 112 px reference, training choices": per_pair}
    for mode, options in large.items():
        key = f"512 px crop of 1920 x 1080, 900 px reference, {mode}"
        rows[key] = seconds(partial(build_pair, photograph, options), 5)
    return {name: round(1000 * value, 2) for name, value in rows.items()}


def measure_preprocessing(
    out: Annotated[Path, typer.Option(help="JSON file to write")] = RESULTS / "preprocess.json",
) -> None:
    """Measure the pre-processing."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    write_report(out, {"size_hw": SIZE, "loops": compare_loops(), "build_pair_ms": build_times()})


build_app = single_app(measure_preprocessing)

if __name__ == "__main__":
    run_module(build_app)
