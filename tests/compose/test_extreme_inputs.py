"""Inputs at the edge of what is sensible: strips of one pixel, many objects and regions, long sentences."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inpainting.models.text_to_image.pipeline import paint
from ldm.images import write_depth, write_png
from tests.images import Case, refusal, room
from tests.inpainting.small_inpainter import QUICK, random_image, small_inpainter

WORDS = ("red", "blue", "green", "white", "black", "brown", "gray", "small")


@pytest.mark.parametrize(
    ("size", "box", "words"),
    [
        ((300, 1), "0.3,0.2,0.7,0.9", ""),
        ((300, 1), "0,0,1,1", ""),
        ((1, 1), "0,0,1,1", ""),
        ((2, 300), "0,0,1,1", ""),
        ((300, 3), "0,0.2,1,0.6", ""),
        (
            (1, 300),
            "0.3,0.2,0.7,0.9",
            "error: --box 0.3,0.2,0.7,0.9 is too small: the object would cover less",
        ),
        ((1, 300), "0,0,1,1", "error: --box 0,0,1,1 is too small: the object would cover less than a pixel"),
        ((2, 300), "0,0.2,1,0.6", "error: --box 0,0.2,1,0.6 is too small"),
    ],
)
def test_strips_are_composed_or_refused_in_one_line(case: Case, capsys, size, box, words) -> None:
    background_u8 = room(*size)
    write_png(case.folder / "room.png", background_u8)
    write_depth(case.folder / "depth.png", np.zeros(size, np.float32))
    if words:
        assert refusal(case, lambda: case.run("--box", box), capsys).startswith(words)
    else:
        assert case.run("--box", box) == 0
        case.unchanged_outside(background_u8)


def crates(count: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Known objects in the right half, a little apart from each other."""
    for index in range(count):
        name = " ".join(WORDS[index // 8**place % 8] for place in range(3)) + " crate"
        x, y = 0.66 + 0.01 * (index % 20), 0.45 + 0.01 * (index // 20)
        yield name, {"box": [x, y, x + 0.02, y + 0.3], "depth": 0.64}


@pytest.fixture
def flags(case: Case) -> list[str | Path]:
    """Ask the geometric locator, which knows 200 objects."""
    path = case.folder / "anchors.json"
    path.write_text(json.dumps(dict(crates(200))))
    return ["--locator", "geometric", "--anchors", path]


@pytest.mark.parametrize("named", [1, 20, 58])  # 58 clauses have 2,000 characters
def test_many_anchors_and_long_sentences_place_the_object(case: Case, flags, named) -> None:
    names = [name for name, _ in crates(200)][:named]
    sentence = "Place the thing " + " and ".join(f"to the left of the {name}" for name in names)
    assert named < 58 or len(sentence) > 2000
    assert case.run("--instruction", sentence, *flags, without=["--box"]) == 0
    placement = case.report()["placement"]
    assert placement["instruction"] == sentence
    assert set(placement["anchors"]) >= set(names)
    assert len(placement["satisfied"]) == named
    assert all(placement["satisfied"].values())
    case.unchanged_outside(room())


@pytest.mark.parametrize(
    "sentence",
    ["x" * 2000, "Place the dog " + "very " * 400, "Place the dog to the left of the " + "y" * 1970],
    ids=["no words", "no place", "unknown object"],
)
def test_a_long_sentence_that_makes_no_sense_is_refused_in_one_line(case, capsys, flags, sentence) -> None:
    argv = ["--instruction", sentence, *flags]
    assert refusal(case, lambda: case.run(*argv, without=["--box"]), capsys).startswith("error: ")


@pytest.mark.parametrize("count", [1, 40])
def test_many_regions_are_painted_in_one_pass(tmp_path: Path, count: int) -> None:
    before, regions = random_image(64, 96), []
    for index in range(count):
        mask = np.zeros((64, 96), bool)
        top, left = 10 * (index // 8), 12 * (index % 8)
        mask[top : top + 8, left : left + 9] = True
        regions.append((mask, f"a {'red' if index % 2 else 'green'} cube"))
    result = paint(before, regions, small_inpainter(tmp_path), 3, QUICK, progress=False)
    changed = (result.image_u8 != before).any(axis=2)
    assert not changed[~np.any([mask for mask, _ in regions], axis=0)].any()
    assert all(changed[mask].any() for mask, _ in regions)
    assert result.report["drift"][0]["changed_outside"] == 0
