"""What each `--speed` costs and loses: the trained small compositor on held-out scenes, from noise.

    python -m datasets.scenes render --split eval --world wide --count 320 --out data/scenes/wide_eval
    python -m benchmarks.speed                                    (200 scenes: half an hour on one core)

For steps, guidance and speed: CPU seconds of an image; over the visible object its PSNR to the image of
`exact` and, paired with `exact`, what PSNR to the truth, identity among eight objects and order lose.
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

STEPS, GUIDANCE, SCHEDULER = (20, 50), (1.0, 3.0), "unipc"
SEED = 7  # of the noise of the first scene


def measure_speeds(
    scenes: Annotated[int, typer.Option(help="held-out scenes", min=2)] = 200,
    data: Annotated[Path, typer.Option(help="folder of rendered scenes")] = Path("data/scenes/wide_eval"),
    only: Annotated[
        str, typer.Option(help="such as: 20 steps, guidance 3; the other rows of the file stay")
    ] = "",
    out: Out = RESULTS / "speed.json",
) -> None:
    """Measure cost and loss of every speed."""
    import torch
    from tqdm.auto import tqdm

    from cldm.config import SPEEDS, EvaluateSettings
    from cldm.evaluate.cases import find_cases, nearest_candidate, rendered_candidates
    from cldm.evaluate.run import Measurer, SceneScores, pooled_rates
    from cldm.model import load_compositor
    from cldm.pipeline import CompositorPipeline
    from datasets.sources.rendered import RenderedScenes
    from ldm.denoise import Monitor
    from ldm.metrics.numbers import mean_interval, psnr_over

    measurer = Measurer(EvaluateSettings(data=data))
    half = CompositorPipeline(load_compositor(measurer.settings.model, torch.bfloat16)[0])
    speeds: dict[str, Any] = {**SPEEDS, "exact in bf16": {}}
    cases, _ = find_cases(RenderedScenes(data), measurer.config.pair, scenes, measurer.estimator, False)
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    orders: list[dict[str, list[bool]]] = []
    for number, case in enumerate(tqdm(cases, desc="scenes")):
        images = {}
        for steps, guidance, (speed, shortcuts) in product(STEPS, GUIDANCE, speeds.items()):
            options = {"scheduler": SCHEDULER, "steps": steps, "guidance": guidance, "init": "noise"}
            sampling = replace(measurer.config.sampling, **options, **shortcuts)
            name, started = f"{steps} steps, guidance {guidance:g}, {speed}", time.process_time()
            if not name.startswith(only):
                continue
            pipeline = half if speed not in SPEEDS else measurer.pipeline
            (painted,) = pipeline.paint(case.pair, [SEED + number], sampling, monitor=Monitor(progress=False))
            values[name]["cpu_s"].append(time.process_time() - started)
            images[name] = measurer.finish(case, painted, 0.0, SceneScores())
        objects = rendered_candidates(case.seed, measurer.options, case.truth_u8)
        for name, image in images.items():
            exact, row = f"{name.rsplit(', ', 1)[0]}, exact", values[name]
            row["psnr_to_exact_db"].append(min(psnr_over(image, images[exact], case.visible), 99.0))
            row["psnr_db"].append(psnr_over(image, case.truth_u8, case.visible))
            row["identity"].append(float(nearest_candidate(image, objects, case.visible) == 0))
            for measure in ("psnr_db", "identity"):
                row[f"{measure}_gain"].append(row[measure][-1] - values[exact][measure][-1])
        scores = SceneScores()
        measurer.measure_order(case, images, scores)
        orders.append(scores.order)
    rates: dict[str, Any] = pooled_rates(orders)
    rows: dict[str, Any] = read_json(out)["rows"] if only and out.is_file() else {}
    for name, row in values.items():
        means = {measure: mean_interval(each) for measure, each in row.items()}
        rows[name] = {**means, "depth_order": rates.get(name)}
    body = {"scenes": len(cases), "scheduler": SCHEDULER, "speeds": SPEEDS, "rows": rows}
    write_results(out, body, overwrite=bool(only))
    draw_losses(out)


def draw_losses(out: Path) -> None:
    """A PNG beside the results: over CPU seconds, PSNR to `exact` and what PSNR to the truth changes by."""
    from matplotlib.figure import Figure

    figure, rows = Figure(figsize=(10, 4), layout="constrained"), read_json(out)["rows"]
    labels = {
        "psnr_to_exact_db": "PSNR to exact, dB",
        "psnr_db_gain": "PSNR to the truth less that of exact, dB",
    }
    for axes, (measure, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        for part in sorted({name.rsplit(", ", 1)[0] for name in rows}):
            speeds = [s for s in ("exact", "balanced", "fast") if f"{part}, {s}" in rows]
            points: list[Any] = [
                (rows[f"{part}, {s}"]["cpu_s"], rows[f"{part}, {s}"][measure], s) for s in speeds
            ]
            points = points[measure == "psnr_to_exact_db" :]  # that of exact to itself says nothing
            cost, value = ([point[i]["mean"] for point in points] for i in (0, 1))
            ends = [[abs(p[1]["mean"] - p[1][end]) for p in points] for end in ("low", "high")]
            axes.errorbar(cost, value, yerr=ends, marker="o", capsize=3, label=part)
            for (_, _, speed), x, y in zip(points, cost, value, strict=True):
                axes.annotate(speed, (x, y), xytext=(6, 6), textcoords="offset points")
        axes.set(xlabel="CPU s an image", ylabel=label)
        axes.margins(0.25, 0.15)
        axes.legend()
    write_figure(out, figure)


build_app = single_app(measure_speeds)

if __name__ == "__main__":
    run_module(build_app)
