"""Requests in several threads against the same requests alone: every one must give the same bytes.

    OMP_NUM_THREADS=1 python -m benchmarks.threads [--requests 200] [--threads 4] [--out FILE]

Composites, paintings, answers of the locator and depth maps take turns, in images of mixed sizes; the small
networks of composites and answers are loaded by the threads themselves.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import RESULTS, Out, write_results
from compose import ComposeSettings
from inpainting.models.text_to_image.config import PaintOptions
from ldm.files import located
from ldm.images import resize
from ldm.settings.cli import run_module, single_app

SIZES = ((96, 128), (160, 96), (64, 64), (120, 200), (256, 192))  # (h, w) in pixels; chosen: four aspects
OPTIONS, LOCATOR = PaintOptions(steps=2), located("assets/tiny/locator")
SENTENCE = "Place the red cube behind the green sphere"


def make_requests(count: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(kind, request) of each of `count` requests; request i is always the same."""
    from compose import compose, load_models
    from inpainting.models.text_to_image.load import load_inpainter
    from inpainting.models.text_to_image.pipeline import paint

    models = load_models(ComposeSettings(Path(), Path(), box=(0.0, 0.0, 1.0, 1.0), depth=(1.0,)))
    painter = load_inpainter(located("assets/tiny/inpainter"), device="cpu")
    for index in range(count):
        h, w = SIZES[index // 4 % len(SIZES)]
        image_u8 = resize(np.random.default_rng(index).integers(0, 256, (6, 8, 3), np.uint8), (h, w))
        mask = np.zeros((h, w), bool)
        mask[h // 3 : h // 2, w // 4 : w // 2] = True
        given: Any = {"background": image_u8, "object": image_u8, "object_mask": mask, "seed": index}
        settings = ComposeSettings(**given, box=(0.3, 0.3, 0.7, 0.8), depth=(0.9,), steps=2)
        regions = [(mask, "a red cube")]
        kinds: dict[str, Any] = {
            "composite": partial(compose, settings, models, progress=False),
            "painting": partial(paint, image_u8, regions, painter, index, OPTIONS, progress=False),
            "answer": lambda u8=image_u8, seed=index: models.locator(LOCATOR).locate(u8, SENTENCE, 2, seed),
            "depth": lambda u8=image_u8: models.depth.estimate(u8),
        }
        yield list(kinds.items())[index % len(kinds)]


def digest(request: Callable[[], Any]) -> str:
    """SHA-256 of the pixels, depths or answers of a request."""
    made = request()
    made = np.stack(made.images_u8) if hasattr(made, "images_u8") else made
    return hashlib.sha256(made.tobytes() if isinstance(made, np.ndarray) else repr(made).encode()).hexdigest()


def measure_threads(
    requests: Annotated[int, typer.Option(help="how many", min=4)] = 200,
    threads: Annotated[int, typer.Option(help="that work at once", min=2)] = 4,
    out: Out = RESULTS / "threads.json",
) -> dict[str, Any]:
    """Compare requests in threads with the same requests alone; exit code 1 where one differs."""
    kinds, works = zip(*make_requests(requests), strict=True)
    with ThreadPoolExecutor(threads) as pool:  # first, so that the threads load the networks
        together = list(pool.map(digest, works))
    alone = map(digest, works)
    wrong = {i: kind for i, (kind, a, b) in enumerate(zip(kinds, together, alone, strict=True)) if a != b}
    write_results(out, {"requests": requests, "threads": threads, "failed": wrong})
    return {"failed": wrong}


build_app = single_app(measure_threads)

if __name__ == "__main__":
    run_module(build_app)
