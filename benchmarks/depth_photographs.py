"""How well the order of things in photographs is estimated where no depth network for photographs is present.

    BIFROST_TEST_DATA=FOLDER python -m benchmarks.depth_photographs [--model FOLDER] [--out FILE]

Measured on four photographs with a depth map (three from DPT-Large, the garage from stereo cameras), as the
fraction of random pixel pairs, more than a tenth of the range apart, in the right order; and on pairs that
depth_photographs.yaml marks, with Wilson's 95 % interval.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from benchmarks.harness import RESULTS, Out, fraction, photographs, write_results
from ldm.files import located, read_text
from ldm.images import read_depth, read_image, read_mask
from ldm.registry.models import BUILTIN_DEPTH, cutout_network
from ldm.settings.cli import run_module, single_app

PAIRS, APART = 200_000, 0.1
MARKED = Path(__file__).with_suffix(".yaml")


def measure_depth_order(
    out: Out = RESULTS / "depth_photographs.json",
    model: Annotated[Path | None, typer.Option(help="another network, alone and with the rules")] = None,
) -> None:
    """Compare the rules for photographs with the image row alone and with the small network."""
    folder = photographs()
    cutout_network("u2netp")  # or its error: `rules` would be those without it
    from ldm.experts.depth import DepthEstimator, depth_by_rules, full_size

    small = DepthEstimator.load(located("assets/tiny/depth"))
    rules = DepthEstimator.load(located(BUILTIN_DEPTH))
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "image row": lambda u8: np.indices(u8.shape[:2], np.float32)[0],
        "small network": small.estimate,
        "rules without U2-Netp": lambda u8: full_size(depth_by_rules(u8, None), u8.shape[:2]),
        "rules": rules.estimate,
    }
    if model is not None:
        other = DepthEstimator.load(model).estimate
        ways["other network"] = other
        ways["mean of it and the rules"] = lambda u8: (other(u8) + rules.estimate(u8)) / 2
    maps = sorted((folder / "composite/depth").glob("*.png"))
    truths = [path for path in maps if not path.stem.endswith("_valid")]
    marked, rows = yaml.safe_load(read_text(MARKED)), dict[str, Any]()
    for name, estimate in ways.items():
        started, orders, right = time.process_time(), dict[str, float](), dict[str, list[bool]]()
        for path in truths:
            rgb_u8 = read_image(folder / f"composite/backgrounds/{path.stem}.jpg").rgb_u8
            size, mask = (rgb_u8.shape[0], rgb_u8.shape[1]), path.with_stem(f"{path.stem}_valid")
            valid = read_mask(mask, size=size) if mask.is_file() else np.ones(size, bool)
            # Fraction of pairs of valid pixels (h, w), `APART`, whose order is right.
            pixels = np.flatnonzero(valid)
            first, second = pixels[np.random.default_rng(0).integers(pixels.size, size=(2, PAIRS))]
            flat = (map_01.ravel() for map_01 in (estimate(rgb_u8), read_depth(path, size=size)))
            ours, true = (map_01[first] - map_01[second] for map_01 in flat)
            orders[path.stem] = float((np.sign(ours) == np.sign(true))[np.abs(true) > APART].mean())
        for image, pairs in marked.items():
            depth_01 = estimate(read_image(folder / image).rgb_u8)
            points = np.array(pairs).reshape(-1, 2, 2)  # (pair, nearer or farther, x y)
            x, y = np.moveaxis((points * depth_01.shape[::-1]).astype(int), -1, 0)
            right[image] = [bool(value) for value in depth_01[y[:, 0], x[:, 0]] > depth_01[y[:, 1], x[:, 1]]]
        rows[name] = {
            "order": {"mean": float(np.mean([*orders.values()])), **orders},
            "marked pairs": fraction([hit for hits in right.values() for hit in hits]),
            "marked pairs of each": {image: f"{sum(hits)} of {len(hits)}" for image, hits in right.items()},
            "cpu_s": (time.process_time() - started) / (len(truths) + len(marked)),
        }
    write_results(out, rows)


build_app = single_app(measure_depth_order)

if __name__ == "__main__":
    run_module(build_app)
