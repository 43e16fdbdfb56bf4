"""Images and masks of Python's doors: arrays, paths and PIL images are the same."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inpainting.models.text_to_image.config import PaintOptions
from inpainting.models.text_to_image.load import load_inpainter
from inpainting.models.text_to_image.pipeline import RegionPrompt, paint
from inpainting.painting import dream
from ldm.images import read_depth, read_image, read_mask, write_mask, write_png
from tests.images import room, room_depth

MASK = np.zeros((96, 128), bool)
MASK[20:60, 30:70] = True
KINDS = ("array", "path", "text", "PIL")


def given(kind: str, array: np.ndarray, folder: Path) -> object:
    path = folder / f"{array.ndim}.png"
    (write_mask if array.dtype == bool else write_png)(path, array)
    return {"array": array, "path": path, "text": str(path), "PIL": Image.open(path)}[kind]


@pytest.fixture(scope="module")
def pipe():
    return load_inpainter("assets/tiny/inpainter")


@pytest.mark.parametrize("kind", KINDS)
def test_paint_and_dream_take_every_kind(pipe, tmp_path: Path, kind: str) -> None:
    image, mask = given(kind, room(), tmp_path), given(kind, MASK, tmp_path)
    options = PaintOptions(steps=1)
    painted_u8 = paint(image, [(mask, "a red cube")], pipe, options=options, progress=False).image_u8
    expected = paint(room(), [(MASK, "a red cube")], pipe, options=options, progress=False)
    assert np.array_equal(painted_u8, expected.image_u8)
    again = dream(image, [mask], None, pipe, ["a red cube"], options=options)
    assert np.array_equal(again.image_u8, painted_u8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_readers_take_every_kind(tmp_path: Path, kind: str) -> None:
    assert np.array_equal(read_image(given(kind, room(), tmp_path)).rgb_u8, room())
    assert np.array_equal(read_mask(given(kind, MASK, tmp_path), size=(96, 128)), MASK)
    assert np.array_equal(RegionPrompt(given(kind, MASK, tmp_path), "a").mask, MASK)
    depth_u8 = (room_depth() * 255).astype(np.uint8)
    assert np.abs(read_depth(depth_u8) - room_depth()).max() < 0.01


@pytest.mark.parametrize("reader", [read_image, read_mask, read_depth])
def test_what_is_no_image_is_refused(reader) -> None:
    with pytest.raises(ValueError, match="must be a path, a PIL image, or an array"):
        reader(3)
