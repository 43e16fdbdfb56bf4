"""Requests in several threads against the same requests alone: every one must give the same bytes.

Composites, paintings, answers of the locator and depth maps take turns, in images of mixed sizes; the small
networks of composites and answers are loaded by the threads themselves.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compose import ComposeSettings
from inpainting.models.text_to_image.config import PaintOptions
from ldm.files import located
from ldm.images import resize

REQUESTS, THREADS = 40, 4
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


@pytest.mark.slow
def test_requests_in_threads_give_the_bytes_of_the_same_requests_alone() -> None:
    kinds, works = zip(*make_requests(REQUESTS), strict=True)
    with ThreadPoolExecutor(THREADS) as pool:  # first, so that the threads load the networks
        together = list(pool.map(digest, works))
    alone = map(digest, works)
    pairs = zip(kinds, together, alone, strict=True)
    assert {i: kind for i, (kind, a, b) in enumerate(pairs) if a != b} == {}
