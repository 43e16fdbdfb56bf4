"""Does any cost grow faster than what it counts? Samples, regions, anchors, workers of training.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling     (a quarter of an hour on one core)

CPU seconds of the small networks, those of workers included, best of REPEATS in turn. `growth` is the
exponent between the last two counts: 1 = linear. A PNG beside the JSON shows the curves.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from benchmarks.engines import cpu_s
from benchmarks.harness import RESULTS, Out, write_figure, write_results
from ldm.files import read_json
from ldm.settings.cli import run_module, single_app

log = logging.getLogger(__name__)

REPEATS, EXAMPLES, BATCH = 2, 512, 8
PLACE, PROMPTS = Path("assets/examples/cone"), ("cube", "ball", "cone", "torus")
COUNTS = {"samples": (1, 2, 4, 8, 16, 32, 64), "regions": (1, 2, 5, 10, 20, 40),
          "anchors": (1, 2, 5, 10, 25, 50, 100, 200, 400, 800), "workers": (0, 1, 2)}  # fmt: skip


def samples_of_a_composite() -> Callable[[int], Any]:
    from compose import compose, load_models
    from compose.settings import ComposeSettings

    files: Any = {"background": PLACE / "room.png", "object": PLACE / "object.png"}
    settings = ComposeSettings(**files, background_depth=PLACE / "room_depth.png", box=(0.3, 0.3, 0.7, 0.8))
    models = load_models(settings)
    return lambda count: compose(replace(settings, num_samples=count), models, progress=False)


def regions_of_a_painting() -> Callable[[int], Any]:
    from inpainting.models.text_to_image.config import PaintOptions
    from inpainting.models.text_to_image.load import load_inpainter
    from inpainting.models.text_to_image.pipeline import paint

    pipe = load_inpainter("assets/tiny/inpainter", device="cpu")
    side, options = pipe.resolution, PaintOptions(steps=10, guidance=5.0, encoding="joint")
    image_u8 = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)

    def run(count: int) -> Any:
        """Cells of a grid, each with a prompt."""
        across = int(np.ceil(count**0.5))
        number = np.arange(side) * across // side
        grid = number[:, None] * across + number
        regions = [(grid == cell, PROMPTS[cell % len(PROMPTS)]) for cell in range(count)]
        return paint(image_u8, regions, pipe=pipe, options=options, progress=False)

    return run


def anchors_of_a_sentence() -> Callable[[int], Any]:
    from ldm.images import read_depth, read_image
    from llava_bifrost.placement.placer import Item
    from llava_bifrost.propose import propose
    from llava_bifrost.settings import GEOMETRIC, LocatorOptions

    image_u8, depth_01 = read_image(PLACE / "room.png").rgb_u8, read_depth(PLACE / "room_depth.png")
    options, known = LocatorOptions(locator=GEOMETRIC), read_json(PLACE / "anchors.json")
    known = dict(list(known.items())[:1])
    for number, (x, y) in enumerate(np.random.default_rng(0).uniform(0, 0.95, (COUNTS["anchors"][-1], 2))):
        known[f"thing {number}"] = {"box": [x, y, x + 0.04, y + 0.04]}
    sentence = f"Place the cup next to the {next(iter(known))}"

    def place(count: int) -> Any:
        return propose(options, sentence, image_u8, depth_01, dict(list(known.items())[:count]), Item(), None)

    return place


def workers_of_a_training() -> Callable[[int], Any]:
    from torch.utils.data import DataLoader

    from cldm.training.data import PairData, start_worker
    from datasets.examples import PairDataset
    from datasets.inputs import PairOptions
    from datasets.scenes.settings import StoreSettings
    from datasets.scenes.store import render_shards
    from datasets.sources.rendered import RenderedScenes

    folder = TemporaryDirectory()
    render_shards(StoreSettings(out=Path(folder.name), count=32))
    data = PairDataset([RenderedScenes(Path(folder.name))], PairOptions(size=(96, 96), reference_size=64), 0)
    more: Any = {"batch_size": BATCH, "collate_fn": PairData.collate, "worker_init_fn": start_worker}
    return lambda count: (folder, list(DataLoader(data, num_workers=count, sampler=range(EXAMPLES), **more)))


WORKS = dict(zip(COUNTS, (samples_of_a_composite, regions_of_a_painting, anchors_of_a_sentence,
                          workers_of_a_training), strict=True))  # fmt: skip


def measure_scaling(out: Out = RESULTS / "scaling.json") -> dict[str, Any]:
    """Measure how costs grow."""
    import torch
    from matplotlib.figure import Figure

    torch.set_num_threads(1)
    cv2.setNumThreads(1)  # before workers are forked, as in a training
    rows: dict[str, Any] = {}
    for name in COUNTS:
        run, best = WORKS[name](), dict[int, float]()
        run(COUNTS[name][0])
        for count in COUNTS[name] * REPEATS:
            started = cpu_s()
            run(count)
            best[count] = round(min(best.get(count, np.inf), cpu_s() - started), 3)
            log.info("%d %s: %.2f CPU s", count, name, best[count])
        half, last = COUNTS[name][-2:]
        growth = np.log(best[last] / best[half]) / np.log(last / half)
        spent = {str(count): seconds for count, seconds in best.items()}
        rows[name] = {"cpu_s": spent, "growth": round(growth, 2)}
        write_results(out, {"rows": rows, "examples_of_workers": EXAMPLES}, overwrite=True)
    # A panel for each count, with a line that grows as fast as the count.
    figure = Figure(figsize=(12, 3), layout="constrained")
    for axes, (name, row) in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows.items(), strict=True):
        counts, seconds = [int(count) for count in row["cpu_s"]], list(row["cpu_s"].values())
        axes.plot(counts, seconds, "o-", label="measured")
        if counts[0]:
            axes.plot(counts, [seconds[0] * count for count in counts], "--", label="linear")
            axes.set(xscale="log", yscale="log")
        axes.set(xlabel=name, ylabel="CPU s", ylim=(None if counts[0] else 0, None))
        axes.legend()
    write_figure(out, figure)
    return rows


build_app = single_app(measure_scaling)

if __name__ == "__main__":
    run_module(build_app)
