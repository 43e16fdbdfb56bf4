"""Networks that look at an image take it as an array, a path, or a PIL image: the same answer for each."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.experts.depth import DepthEstimator
from ldm.images import read_image, rgb_of
from llava_bifrost.locator import Locator


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


def forms(folder: Path) -> dict[str, Any]:
    """The same image in every form that is taken."""
    rgb_u8, path = pixels(), folder / "a.png"
    Image.fromarray(rgb_u8).save(path)
    opaque_u8 = np.dstack([rgb_u8, np.full(rgb_u8.shape[:2], 255, np.uint8)])
    return {
        "array": rgb_u8, "path": path, "text": str(path), "PIL": Image.open(path), "read": read_image(path),
        "RGBA": opaque_u8,
    }  # fmt: skip


@pytest.fixture(scope="module")
def depth(small_depth_network: Path) -> DepthEstimator:
    return DepthEstimator.load(small_depth_network)


FORMS = ("array", "path", "text", "PIL", "read", "RGBA")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pixels(tmp_path: Path, form: str) -> None:
    given = forms(tmp_path)[form]
    assert np.array_equal(rgb_of(given), pixels())
    assert form != "array" or rgb_of(given) is given


@pytest.mark.parametrize("form", FORMS)
def test_depth_is_the_same_of_every_form(tmp_path: Path, depth: DepthEstimator, form: str) -> None:
    given = forms(tmp_path)[form]
    assert np.array_equal(depth.estimate(given), depth.estimate(pixels()))


@pytest.mark.parametrize("form", FORMS)
def test_the_locator_sees_the_same_of_every_form(tmp_path: Path, form: str) -> None:
    seen: list[np.ndarray] = []
    shell = SimpleNamespace(
        understand=lambda text: None,
        question=lambda text, request=None: text,
        answer=lambda images, questions, *rest: seen.extend(images) or ["answer"],
    )
    given = forms(tmp_path)[form]
    assert Locator.locate(shell, given, "Place it") == ["answer"]  # type: ignore[arg-type]
    assert Locator.locate_many(shell, [given, given], ["a", "b"]) == ["answer"]  # type: ignore[arg-type]
    assert len(seen) == 3
    assert all(np.array_equal(image, pixels()) for image in seen)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            pixels() / 255,
            r"image must be a path, a PIL image, or an array.*got ndarray float64 \(12, 16, 3\)",
        ),
        (np.zeros((2, 12, 16, 3), np.uint8), r"got ndarray uint8 \(2, 12, 16, 3\)"),
        (["a.png"], "got list"),
        (None, "got NoneType"),
        ("nothing.png", "nothing.png"),
    ],
)
def test_what_is_no_image_is_refused_by_name(depth: DepthEstimator, given: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        depth.estimate(given)
    assert "\n" not in str(error.value)
