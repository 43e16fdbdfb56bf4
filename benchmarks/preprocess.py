"""Pre-processing against the published per-pixel loops, on a 1080p background, in one run.

    python -m benchmarks.preprocess [--out FILE]

The loops are written here as the published code does them: one Python step per pixel. Both sides must give
the same arrays. Times are CPU seconds, the best of a few runs.
"""

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import torch

from benchmarks.harness import RESULTS, Out, best_seconds, write_results
from datasets.fusion import Cutout, collage, dilate, hidden_object, place_cutout
from datasets.inputs import AugmentationParams, Inputs, PairOptions
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


def loop_paste(below: np.ndarray, above: np.ndarray, mask: np.ndarray, nearer: bool = False) -> np.ndarray:
    """`above` inside the mask, with `nearer` only where it is larger; `below` elsewhere."""
    result = below.copy()
    h, w = mask.shape
    for y in range(h):
        for x in range(w):
            if mask[y, x] and (not nearer or above[y, x] > below[y, x]):
                result[y, x] = above[y, x]
    return result


def compare_loops() -> dict[str, dict[str, float]]:
    """Seconds and ratio of each step; raises if the results differ."""
    rng = np.random.default_rng(0)
    background_u8 = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    depth = rng.random(SIZE).astype(np.float32)
    x0, y0, x1, y1 = BOX
    rows, columns = np.mgrid[: y1 - y0, : x1 - x0]
    inside = ((rows - 300) / 290) ** 2 + ((columns - 300) / 280) ** 2 < 1
    relief = np.where(inside, rng.random(inside.shape), 0).astype(np.float32)
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = inside
    cutout, part = Cutout(background_u8[y0:y1, x0:x1], inside, relief), depth[y0:y1, x0:x1]
    object_depth = EXTENT[0] + (EXTENT[1] - EXTENT[0]) * cutout.depth_01
    detail_u8 = 255 - background_u8
    full = mask.astype(np.float32)

    def fused() -> np.ndarray:
        size = inside.shape
        placed = place_cutout(cutout, (0, 0, *size[::-1]), EXTENT, size, legacy=True)
        visible = (placed.alpha_01 > 0.5) & ~hidden_object(part, placed, EXTENT[1], "pixel")
        return np.where(visible, placed.depth_01, part)

    pairs: dict[str, tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]] = {
        "mask dilation": (lambda: loop_dilate(mask, 0.02), lambda: dilate(mask, 0.02, shape="legacy-rect")),
        "collage masking": (
            lambda: loop_paste(detail_u8, background_u8, ~mask),
            lambda: collage(background_u8, detail_u8, full, mask),
        ),
        "fusion": (lambda: loop_paste(part, object_depth, inside, nearer=True), fused),
    }
    taken: dict[str, dict[str, float]] = {}
    for name, (loop, ours) in pairs.items():
        if not np.array_equal(loop(), ours()):
            raise RuntimeError(f"{name}: the loop and our function differ")
        taken[name] = best_seconds({"loop_s": loop, "ours_s": ours}, 3)
    taken["all three"] = {key: sum(row[key] for row in taken.values()) for key in ("loop_s", "ours_s")}
    ratios = {name: round(row["loop_s"] / row["ours_s"], 1) for name, row in taken.items()}
    rounded = {name: {key: round(value, 5) for key, value in row.items()} for name, row in taken.items()}
    return {name: {**row, "ratio": ratios[name]} for name, row in rounded.items()}


def example(size: tuple[int, int], reference: int) -> Inputs:
    """Smooth random images of (h, w) with an elliptic reference."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:reference, :reference] / reference - 0.5
    noise = [rng.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in ((reference, reference), size)]
    return Inputs(
        reference_u8=cv2.GaussianBlur(noise[0], (0, 0), 3),
        reference_mask=(rows / 0.45) ** 2 + (columns / 0.3) ** 2 < 1,
        background_u8=cv2.GaussianBlur(noise[1], (0, 0), 5),
        background_depth_01=np.repeat(np.linspace(0, 1, size[0], dtype=np.float32)[:, None], size[1], 1),
        box01_xyxy=(0.35, 0.4, 0.6, 0.8),
        depth_range=(0.7, 0.85),
        reference_depth_01=(rows + 0.5).astype(np.float32),
    )


def measure_preprocessing(out: Out = RESULTS / "preprocess.json") -> None:
    """Measure the pre-processing."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    small = PairOptions(size=(96, 96), reference_size=64, hf_mode="cutout", show_background=True)
    training = example((96, 96), 112)
    choices = [AugmentationParams.sample(np.random.default_rng(seed), small) for seed in range(200)]
    photograph, first = example(SIZE, 900), "96 px crop, 112 px reference, training choices"
    works = {first: lambda: [build_pair(training, small, choice) for choice in choices]} | {
        f"512 px crop of 1920 x 1080, 900 px reference, {mode}": partial(
            build_pair, photograph, PairOptions(hf_mode=mode)
        )
        for mode in ("zero", "gray255")
    }
    taken = best_seconds(works, 4)
    taken[first] /= len(choices)
    times = {name: round(1000 * value, 2) for name, value in taken.items()}
    write_results(out, {"size_hw": SIZE, "loops": compare_loops(), "build_pair_ms": times})


build_app = single_app(measure_preprocessing)

if __name__ == "__main__":
    run_module(build_app)
