"""Metrics of painted images: batches give what images alone give, with fewer calls of the networks."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.small_models import write_clip
from inpainting.models.text_to_image.evaluation.generate import pending_batches
from inpainting.models.text_to_image.evaluation.measure import (
    Backbones,
    InpaintedImage,
    in_batches,
    measure_images,
)
from ldm.metrics.backbones import INCEPTION_SIDE, Lpips, inception_features
from ldm.metrics.clip import Clip
from tests.ldm.small_metrics import write_squeezenet


class Means(nn.Module):
    """In the place of Inception: the means of 16 parts of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2:] == (INCEPTION_SIDE, INCEPTION_SIDE)
        self.batches.append(len(images))
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def test_features_of_images_of_any_size_come_in_batches():
    rng, network = np.random.default_rng(1), Means()
    images = [rng.integers(0, 256, (20 + k, 30 - k % 7, 3), np.uint8) for k in range(40)]
    rows = inception_features(network, images, torch.device("cpu"))
    assert network.batches == [32, 8]
    for number in (0, 31, 32, 39):
        alone = inception_features(network, images[number : number + 1], torch.device("cpu"))
        np.testing.assert_allclose(rows[number], alone[0], rtol=1e-5)


def test_a_batch_is_measured_as_its_images_alone_and_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of many regions; every network is called once for each BATCH of images."""
    rng = np.random.default_rng(0)
    clip = Clip.load(write_clip(tmp_path / "clip"))
    networks = Backbones(
        lpips=Lpips.load(write_squeezenet(tmp_path / "squeezenet.pth")), clip=clip, clip_iqa=clip,
        inception=Means(),
    )  # fmt: skip
    images = []
    for number in range(3):
        truth, result = rng.integers(0, 256, (2, 40, 48, 3), np.uint8)
        masks = [np.zeros((40, 48), bool) for _ in range(number + 1)]
        for place, mask in enumerate(masks):
            mask[4 + place : 20, 6 : 30 - 3 * number] = True
        captions = [f"a red cube {place}" for place in range(number + 1)]
        text = None if number == 1 else "a room"
        images.append(InpaintedImage(str(number), truth, result, masks, captions, text))
    alone = [measure_images([image], networks, torch.device("cpu"))[0] for image in images]
    called: list[int] = []
    whole = clip.images
    monkeypatch.setattr(clip, "images", lambda given: called.append(len(given)) or whole(given))
    together = measure_images(images, networks, torch.device("cpu"))
    assert called == [3, 6, 6, 6, 6, 6, 2]  # quality twice, views twice, boxes twice, whole images
    for one, other in zip(alone, together, strict=True):
        assert one.numbers.keys() == other.numbers.keys()
        assert (one.stem, one.regions, one.masked_pixels) == (other.stem, other.regions, other.masked_pixels)
        for name, values in one.numbers.items():
            assert other.numbers[name] == pytest.approx(values, abs=1e-5), name
        for name, rows in one.features.items():
            assert rows.shape == other.features[name].shape
            np.testing.assert_allclose(rows, other.features[name], atol=1e-4)
    assert "clip_score_text2image_global" not in together[1].numbers
    assert len(together[2].numbers["masked_clip_iqa"]) == 3
    parts: list[int] = []
    rows = in_batches(lambda part: parts.append(len(part)) or np.array(part), [[1] * 30, [], [2] * 40])
    assert parts == [32, 32, 6]
    assert [len(group) for group in rows] == [30, 0, 40]
    assert rows[2].tolist() == [2] * 40


class Numbered:
    """Seven items that know their own number."""

    stems = tuple("abcdefg")

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, number: int) -> int:
        return number


@pytest.mark.parametrize(
    ("done", "asked", "lists"),
    [
        ("", "abcdefg", ["abc", "def", "g"]),
        ("abc", "abcdefg", ["def", "g"]),
        ("abd", "abcdefg", ["abc", "def", "g"]),
        ("abcdef", "abcdefg", ["g"]),
        ("abcdefg", "abcdefg", []),
        ("c", "aceg", ["ace", "g"]),
        ("ace", "aceg", ["g"]),
        ("ac", "", []),
    ],
)
def test_lists_are_those_of_a_run_without_interruption(done: str, asked: str, lists: list[str]):
    config: Any = SimpleNamespace(batch=3, workers=0)
    numbered: Any = Numbered()
    found: Any = pending_batches(config, numbered, asked, done.__contains__, "")
    assert ["".join(Numbered.stems[number] for number in items) for items in found] == lists


class Watched(Numbered):
    """Notes which process and thread reads each item; item `bad` cannot be read."""

    def __init__(self, bad: int = -1) -> None:
        self.bad, self.read = bad, list[tuple[int, int, str]]()

    def __getitem__(self, number: int) -> int:
        self.read.append((number, os.getpid(), threading.current_thread().name))
        if number == self.bad:
            raise ValueError("a.png: damaged")
        return number


@pytest.mark.parametrize("workers", [0, 1, 2, 8])
def test_items_are_read_in_threads_of_this_process(workers: int):
    data: Any = Watched()
    config: Any = SimpleNamespace(batch=3, workers=workers)
    assert list(pending_batches(config, data, "abcdefg", set().__contains__, "")) == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
    ]
    assert {process for _, process, _ in data.read} == {os.getpid()}
    assert threading.main_thread().name not in {name for _, _, name in data.read}


def test_callers_in_threads_read_beside_each_other():
    config: Any = SimpleNamespace(batch=2, workers=4)

    def call(number: int) -> list[list[int]]:
        data: Any = Watched()
        return list(pending_batches(config, data, "abcdefg", set().__contains__, str(number)))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(20))) == [[[0, 1], [2, 3], [4, 5], [6]]] * 20


@pytest.mark.parametrize("bad", [0, 3, 6])
def test_an_item_that_cannot_be_read_says_so_after_those_before_it(bad: int):
    data: Any = Watched(bad)
    config: Any = SimpleNamespace(batch=1, workers=2)
    seen = list[list[int]]()
    with pytest.raises(ValueError, match="^a.png: damaged$"):
        seen.extend(pending_batches(config, data, "abcdefg", set().__contains__, ""))
    assert seen == [[number] for number in range(bad)]


def test_a_reader_that_stops_ends_the_threads():
    data: Any = Watched()
    config: Any = SimpleNamespace(batch=1, workers=1)
    before = threading.active_count()
    batches: Any = pending_batches(config, data, "abcdefg", set().__contains__, "")
    assert next(batches) == [0]
    batches.close()
    gc.collect()
    assert threading.active_count() == before
    assert len(data.read) < 7
