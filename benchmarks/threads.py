"""Requests in several threads against the same requests alone: every one must give the same bytes.

    OMP_NUM_THREADS=1 python -m benchmarks.threads [--requests 200] [--threads 4] [--out FILE]

Composites, paintings, answers of the locator and depth maps take turns, in images of mixed sizes; the small
networks are loaded by the threads themselves.
"""

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import RESULTS, Out, write_results
from compose import ComposeSettings, compose, load_models
from inpainting.models.text_to_image.config import PaintOptions
from inpainting.models.text_to_image.load import load_inpainter
from inpainting.models.text_to_image.pipeline import paint
from ldm.files import located
from ldm.images import resize
from ldm.settings.cli import run_module, single_app

SIZES = ((96, 128), (160, 96), (64, 64), (120, 200), (256, 192))  # (h, w) in pixels; chosen: four aspects
SENTENCE = "Place the red cube behind the green sphere"


def make_requests(count: int) -> list[tuple[str, Callable[[], np.ndarray]]]:
    """(kind, request) of each of `count` requests; request i is always the same."""
    models = load_models(ComposeSettings(Path(), Path(), box=(0.0, 0.0, 1.0, 1.0), depth=(1.0,)))
    painter = load_inpainter(located("assets/tiny/inpainter"))

    def request(index: int) -> tuple[str, Callable[[], np.ndarray]]:
        h, w = SIZES[index // 4 % len(SIZES)]
        image_u8 = resize(np.random.default_rng(index).integers(0, 256, (6, 8, 3), np.uint8), (h, w))
        mask = np.zeros((h, w), bool)
        mask[h // 3 : h // 2, w // 4 : w // 2] = True

        def composite() -> np.ndarray:
            files: Any = {"background": image_u8, "object": image_u8, "object_mask": mask}
            place: Any = {"box": (0.3, 0.3, 0.7, 0.8), "depth": (0.9,)}
            settings = ComposeSettings(**files, **place, seed=index, steps=2)
            return compose(settings, models, progress=False).images_u8[0]

        def painting() -> np.ndarray:
            options = PaintOptions(steps=2)
            return paint(image_u8, [(mask, "a red cube")], painter, index, options, progress=False).image_u8

        def answer() -> np.ndarray:
            found = models.locator(located("assets/tiny/locator")).locate(image_u8, SENTENCE, 2, index)
            return np.array([candidate.text for candidate in found])

        kinds = (composite, painting, answer, lambda: models.depth.estimate(image_u8))
        return ("composite", "painting", "answer", "depth")[index % 4], kinds[index % 4]

    return [request(index) for index in range(count)]


def measure_threads(
    requests: Annotated[int, typer.Option(help="how many", min=4)] = 200,
    threads: Annotated[int, typer.Option(help="that work at once", min=2)] = 4,
    out: Out = RESULTS / "threads.json",
) -> dict[str, Any]:
    """Compare requests in threads with the same requests alone; exit code 1 where one differs."""
    kinds, works = zip(*make_requests(requests), strict=True)
    hashes, seconds = [], []
    for count in (threads, 1):  # the threads first, so that they load the networks
        started = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            arrays = pool.map(lambda work: work(), works)
            hashes.append([hashlib.sha256(array.tobytes()).hexdigest() for array in arrays])
        seconds.append(round(time.perf_counter() - started, 1))
    wrong = {i: kind for i, (kind, a, b) in enumerate(zip(kinds, *hashes, strict=True)) if a != b}
    times = dict(zip(("in threads, with loading", "alone"), seconds, strict=True))
    write_results(out, {"requests": requests, "threads": threads, "seconds": times, "failed": wrong})
    return {"failed": wrong}


build_app = single_app(measure_threads)

if __name__ == "__main__":
    run_module(build_app)
