"""What each `--speed` costs and loses: the trained small compositor on held-out scenes, from noise.

    python -m datasets.scenes render --split eval --world wide --count 320 --out data/scenes/wide_eval
    python -m benchmarks.speed                  (200 scenes: three quarters of an hour on one core)

For steps and speed: CPU seconds of an image; over the visible object its PSNR to the image of
`full`, where everything runs at every step, and, paired with `full`, what PSNR to the truth, identity among
eight objects and order lose. Two images of 8 bits that differ at all are hardly nearer than 59 dB; so there
is also the PSNR of the crops before they are rounded, over their edit mask.
"""

import time
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness import RESULTS, Out, write_figure, write_results
from ldm.files import read_json
from ldm.settings.cli import run_module, single_app

STEPS = 20, 50
OPTIONS: dict[str, Any] = {"scheduler": "unipc", "guidance": 3.0, "init": "noise"}
SEED = 7  # of the noise of the first scene
HALF = "full in bf16"
FULL: dict[str, Any] = {"control_evaluations": 0}


def measure_speeds(
    scenes: Annotated[int, typer.Option(help="held-out scenes", min=2)] = 200,
    data: Annotated[Path, typer.Option(help="folder of rendered scenes")] = Path("data/scenes/wide_eval"),
    only: Annotated[str, typer.Option(help="such as: 20 steps; the other rows of the file stay")] = "",
    out: Out = RESULTS / "speed.json",
) -> None:
    """Measure cost and loss of every speed."""
    import numpy as np
    import torch
    from tqdm.auto import tqdm

    from cldm.config import SPEEDS, EvaluateSettings
    from cldm.evaluate.cases import find_cases, nearest_candidate, rendered_candidates
    from cldm.evaluate.run import Measurer, SceneScores, pooled_rates
    from cldm.model import load_compositor
    from cldm.pipeline import CompositorPipeline
    from datasets.sources.rendered import RenderedScenes
    from ldm.denoise import Monitor
    from ldm.metrics.numbers import mean_interval, psnr_over, squared_error

    measurer = Measurer(EvaluateSettings(data=data))
    half = CompositorPipeline(load_compositor(measurer.settings.model, torch.bfloat16)[0])
    speeds, quiet = {"full": FULL, **SPEEDS}, Monitor(progress=False)
    cases, _ = find_cases(RenderedScenes(data), measurer.config.pair, scenes, measurer.estimator, False)
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    orders: list[dict[str, list[bool]]] = []
    for number, case in enumerate(tqdm(cases, desc="scenes")):
        images, crops = {}, {}
        for steps, speed in product(STEPS, (*speeds, HALF)):
            shortcuts = {"steps": steps, **OPTIONS, **speeds.get(speed, FULL)}
            sampling = replace(measurer.config.sampling, **shortcuts)
            name, started = f"{steps} steps, {speed}", time.process_time()
            if not name.startswith(only):
                continue
            pipeline, seeds = half if speed == HALF else measurer.pipeline, [SEED + number]
            (crops[name],) = pipeline.paint(case.pair, seeds, sampling, monitor=quiet, rounded=False)
            values[name]["cpu_s"].append(time.process_time() - started)
            images[name] = measurer.finish(case, np.rint(crops[name]).astype(np.uint8), 0.0, SceneScores())
        objects = rendered_candidates(case.seed, measurer.options, case.truth_u8)
        for name, image in images.items():
            full, row, edit = f"{name.rsplit(', ', 1)[0]}, full", values[name], case.pair.edit_mask[0].numpy()
            row["psnr_to_full_db"].append(psnr_over(image, images[full], case.visible))
            error = squared_error(crops[name], crops[full], edit) / 255**2
            row["psnr_to_full_float_db"].append(float(-10 * np.log10(error + 1e-10)))  # 100 where they agree
            row["psnr_db"].append(psnr_over(image, case.truth_u8, case.visible))
            row["identity"].append(float(nearest_candidate(image, objects, case.visible) == 0))
            for measure in ("psnr_db", "identity"):
                row[f"{measure}_gain"].append(row[measure][-1] - values[full][measure][-1])
        scores = SceneScores()
        measurer.measure_order(case, images, scores)
        orders.append(scores.order)
    rates: dict[str, Any] = pooled_rates(orders)
    rows: dict[str, Any] = read_json(out)["rows"] if only and out.is_file() else {}
    for name, row in values.items():
        means = {measure: mean_interval(each) for measure, each in row.items()}
        rows[name] = {**means, "depth_order": rates.get(name)}
    body = {"scenes": len(cases), **OPTIONS, "speeds": speeds, "rows": rows}
    write_results(out, body, overwrite=bool(only))
    draw_losses(out)


def draw_losses(out: Path) -> None:
    """A PNG beside the results: over CPU seconds, PSNR to `full` and what PSNR to the truth changes by."""
    from matplotlib.figure import Figure

    figure, body = Figure(figsize=(10, 4), layout="constrained"), read_json(out)
    rows = body["rows"]
    texts = {"psnr_to_full_db": "PSNR to full, dB", "psnr_db_gain": "PSNR to the truth less that of full, dB"}
    for axes, (measure, label) in zip(figure.subplots(1, 2), texts.items(), strict=True):
        for part in sorted({name.rsplit(", ", 1)[0] for name in rows}):
            speeds = [s for s in body["speeds"] if f"{part}, {s}" in rows]
            speeds = speeds[measure == "psnr_to_full_db" :]  # that of full to itself says nothing
            points = [rows[f"{part}, {speed}"] for speed in speeds]
            cost, value = ([point[key]["mean"] for point in points] for key in ("cpu_s", measure))
            gaps = [[abs(p[measure]["mean"] - p[measure][end]) for p in points] for end in ("low", "high")]
            axes.errorbar(cost, value, yerr=gaps, marker="o", capsize=3, label=part)
            for speed, x, y in zip(speeds, cost, value, strict=True):
                axes.annotate(speed, (x, y), xytext=(6, 6), textcoords="offset points")
        axes.set(xlabel="CPU s an image", ylabel=label)
        axes.margins(0.25, 0.15)
        axes.legend()
    write_figure(out, figure)


build_app = single_app(measure_speeds)

if __name__ == "__main__":
    run_module(build_app)
