"""Scenes per second of the renderer: description, full view, counterfactual and reference view together.

OMP_NUM_THREADS=1 python -m benchmarks.scenes [--count 40] [--out FILE]
"""

import time
from itertools import product
from typing import Annotated, Any

import typer

from benchmarks.harness import RESULTS, Out, write_results
from datasets.scenes import SceneOptions, train_seed
from ldm.settings.cli import run_module, single_app

REPEATS = 3
QUALITIES = {"1 ray": (1, False), "1 ray, smooth edges": (1, True), "2 x 2 rays": (2, True)}


def measure_renderer(
    out: Out = RESULTS / "scenes.json",
    count: Annotated[int, typer.Option(help="scenes per setting", min=1)] = 40,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Measure the renderer: scenes per second by the clock and by CPU time, best of REPEATS runs."""
    import torch

    from datasets.scenes import render, sample_scene

    torch.set_num_threads(1)
    table: list[dict[str, Any]] = []
    for window, size, quality in product(("full", "object"), (64, 96, 128), QUALITIES):
        supersample, smooth = QUALITIES[quality]
        options = SceneOptions(size=(size, size), supersample=supersample, smooth_edges=smooth, window=window)
        render([sample_scene(train_seed(count), options)], options, device)
        runs = []
        for _ in range(REPEATS):
            start, start_cpu = time.perf_counter(), time.process_time()
            scenes = [sample_scene(train_seed(index), options) for index in range(count)]
            described = time.process_time() - start_cpu
            render(scenes, options, device).image_01.cpu()  # waits for the device
            runs.append((time.perf_counter() - start, time.process_time() - start_cpu, described))
        clock, processor, description = (min(column) for column in zip(*runs, strict=True))
        row = {"size": size, "quality": quality, "window": window, "scenes": count}
        rates = {"scenes_per_second": count / clock, "scenes_per_cpu_second": count / processor}
        row |= {name: round(rate, 1) for name, rate in rates.items()}
        table.append({**row, "description_ms": round(1000 * description / count, 2)})
    write_results(out, {"rates": table}, device)


build_app = single_app(measure_renderer)

if __name__ == "__main__":
    run_module(build_app)
