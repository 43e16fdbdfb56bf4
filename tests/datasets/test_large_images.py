"""Large images: work on parts of them, so that neither memory nor time grows by copies of the whole."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from datasets import pasteback
from datasets.fusion import Cutout, place_cutout
from datasets.geometry import Crop, mask_of_box
from datasets.masks import dilate, feather_inside
from datasets.pasteback import transfer_detail
from ldm.decode import LoadedImage
from ldm.images import normalize
from ldm.result import measure_drift, warn_if_alike
from ldm.sheet import grid

SIZE = (4096, 96)  # (h, w), tall: blocks of rows are a small part of it


def noise(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """(h, w, 3) uint8"""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


FIRST, SECOND, INSIDE = noise(SIZE), noise(SIZE, 1), mask_of_box((10, 60, 80, 4000), SIZE)
WEIGHT = INSIDE.astype(np.float32)
DEPTH = np.linspace(0, 1, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE)
SOLID = Cutout(FIRST, np.ones(SIZE, bool), DEPTH)
WHOLE = Crop((0, 0, SIZE[1], SIZE[0]), (0, 0, 0, 0), SIZE, SIZE)


def peak_per_pixel(work: Callable[[], object]) -> float:
    """Bytes that exist at most while `work` runs, over those before, per pixel of SIZE."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / (SIZE[0] * SIZE[1])
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("work", "most"),
    [  # what must exist, and less than one more plane of four bytes
        (lambda: transfer_detail(FIRST, SECOND, WEIGHT, 1.0, 160.0), 3 + 4 + 3),
        (lambda: LoadedImage(FIRST).painted(SECOND, WEIGHT, INSIDE), 3 + 1.5),
        (lambda: LoadedImage(FIRST, FIRST[..., 0]).painted(SECOND, WEIGHT, INSIDE), 3 + 1 + 1.5),
        (lambda: measure_drift(FIRST, SECOND, INSIDE), 0.5),
        (lambda: warn_if_alike([FIRST], INSIDE, 1), 0.1),
        (lambda: feather_inside(INSIDE, 9.0), 1 + 4 + 1.5),
        (lambda: normalize(DEPTH), 0.1),
        (lambda: WHOLE.take(FIRST), 0.1),
        (lambda: grid([[DEPTH]]), 1 + 1.5),
        (lambda: dilate(INSIDE, 0.1, frame=(160, 160)), 8 + 3.5),
        (lambda: place_cutout(SOLID, (0, 0, *SIZE[::-1]), (0.2, 0.4), SIZE), 12 + 12 + 8 + 3.5),
    ],
    ids=[
        "detail",
        "painted",
        "transparent",
        "drift",
        "alike",
        "feather",
        "normalize",
        "crop",
        "sheet",
        "dilate",
        "place",
    ],
)
def test_memory_is_that_of_the_result_and_a_few_rows(monkeypatch, work, most):
    monkeypatch.setattr(pasteback, "WHOLE", 0)
    assert peak_per_pixel(work) < most


@pytest.mark.parametrize("size", [(4096, 96), (65, 700), (64, 3), (1, 50), (50, 1), (301, 299)])
@pytest.mark.parametrize("sigma", [3.0, 8.0, 20.0, 300.0])
def test_detail_of_a_large_image_is_that_of_a_small_one(monkeypatch, size, sigma):
    weight = np.random.default_rng(2).random(size).astype(np.float32)
    small = transfer_detail(noise(size), noise(size, 1), weight, 1.0, sigma)
    monkeypatch.setattr(pasteback, "WHOLE", 0)
    large = transfer_detail(noise(size), noise(size, 1), weight, 1.0, sigma)
    different = np.abs(small.astype(int) - large)
    assert different.max() <= 1
    assert np.count_nonzero(different) <= 1e-3 * different.size


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (64, 5), (65, 64), (200, 130)])
@pytest.mark.parametrize("transparent", [False, True])
def test_painting_by_rows_is_the_formula(size, transparent):
    rng = np.random.default_rng(3)
    (h, w), part = size, np.s_[2 : 2 + size[0], 3 : 3 + size[1]]
    before, alpha = noise((h + 5, w + 4)), rng.integers(0, 256, (h + 5, w + 4), dtype=np.uint8)
    over, weight, edit = noise(size, 1), rng.random(size).astype(np.float32), rng.random(size) > 0.4
    done = LoadedImage(before, alpha if transparent else None).painted(over, weight, edit, part)
    under, opacity = before[part][edit].astype(np.float32), np.float32(1)
    if transparent:
        opacity = 1 - (1 - weight[edit]) * (1 - alpha[part][edit].astype(np.float32) / 255)
        alpha[part][edit] = np.rint(255 * opacity)
    share = (weight[edit] / np.maximum(opacity, 1e-6))[:, None] if transparent else weight[edit][:, None]
    before[part][edit] = np.rint(under + share * (over[edit] - under))
    assert np.array_equal(done.rgb_u8, before)
    assert not transparent or np.array_equal(done.alpha_u8, alpha)
