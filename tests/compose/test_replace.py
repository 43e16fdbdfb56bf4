"""Mode replace without a target mask: what the box names goes first, all of it, and the report says so."""

import dataclasses
import logging

import numpy as np
import pytest

from compose import ComposeSettings, compose, load_models, sources
from compose.pipeline import ignored_options
from compose.recipe import settings_of_recipe
from compose.sources import replaced_region, where_it_covers
from ldm.images import write_mask, write_png
from tests.compose.test_pipeline import settings_of

H, W = 96, 128
Y, X = np.mgrid[0:H, 0:W]
WALL_U8, OLD_U8 = np.array([90, 120, 150], np.uint8), np.array([220, 60, 40], np.uint8)


def scene(*things: np.ndarray) -> np.ndarray:
    """A wall with a little texture, and red things on it."""
    image = np.broadcast_to(WALL_U8, (H, W, 3)).copy()
    image += ((X * 7 + Y * 13) % 9).astype(np.uint8)[..., None]
    for thing in things:
        image[thing] = OLD_U8 + ((X + Y) % 5).astype(np.uint8)[thing][..., None]
    return image


def block(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return (x0 * W <= X) & (x1 * W > X) & (y0 * H <= Y) & (y1 * H > Y)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    return np.hypot(X - x * W, Y - y * H) < radius * H


SHAPES = {
    "block": block(0.35, 0.3, 0.65, 0.8),
    "disc": disc(0.5, 0.55, 0.25),
    "tall": block(0.44, 0.2, 0.56, 0.85),
    "two parts": block(0.4, 0.45, 0.6, 0.8) | disc(0.5, 0.38, 0.12),
}


def settings(**changes: object) -> ComposeSettings:
    given = {"background": "a.png", "object": "b.png", "box": (0.3, 0.2, 0.7, 0.9), "mode": "replace"}
    return ComposeSettings(**{**given, "cutout": "grabcut", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SHAPES)
def test_the_object_in_the_box_is_found_also_where_it_leaves_the_box(name: str) -> None:
    old = SHAPES[name]
    x0, x1 = (np.flatnonzero(old.any(0))[[0, -1]] + [0, 1]) / W
    y0, y1 = (np.flatnonzero(old.any(1))[[0, -1]] + [0, 1]) / H
    for box in ((x0, y0, x1, y1), (x0, y0 + 0.08 * (y1 - y0), x1, y1)):  # exact, and a little too low
        mask, by = replaced_region(settings(), scene(old), tuple(map(float, box)))
        assert by == "grabcut"
        assert (mask & old).sum() > 0.97 * old.sum()
        assert (mask & ~old).sum() < 0.05 * old.sum()


TAILS = {  # parts that the network misses
    "bent tail": block(0.65, 0.3, 0.72, 0.36) | block(0.69, 0.2, 0.72, 0.36),
    "hanging tail": block(0.48, 0.84, 0.53, 0.95),
    "ear": block(0.42, 0.22, 0.46, 0.3),
    "whole": block(0.35, 0.3, 0.36, 0.31),
}


@pytest.mark.parametrize("name", TAILS)
def test_what_the_network_misses_of_an_object_goes_too(name: str, monkeypatch) -> None:
    old, tail = block(0.35, 0.3, 0.65, 0.8), TAILS[name]
    beside = block(0.05, 0.3, 0.15, 0.8)  # like it, but outside its box
    monkeypatch.setattr(sources, "object_mask", lambda *given: (old, "u2netp"))
    box = (0.34, 0.19, 0.73, 0.96)
    mask, by = replaced_region(settings(cutout="auto"), scene(old | tail | beside), box)
    assert by == "u2netp"
    assert (mask & (old | tail)).sum() > 0.98 * (old | tail).sum()
    assert (mask & ~(old | tail)).sum() < 0.02 * old.sum()


CUTS = {  # name: object's mask (rows, columns), box, rows of the target, where it goes
    "cut off below": (np.s_[10:, 5:25], (0.25, 0.1, 0.5, 0.9), np.s_[24:48], (24, 56)),
    "cut off, target at the top": (np.s_[10:, 5:25], (0.25, 0.1, 0.5, 0.9), np.s_[10:30], (10, 42)),
    "whole": (np.s_[10:28, 5:25], (0.25, 0.1, 0.5, 0.9), np.s_[24:48], None),
    "cut off, as high as the box": (np.s_[10:, 5:9], (0.25, 0.1, 0.5, 0.9), np.s_[24:48], None),
}


@pytest.mark.parametrize("name", CUTS)
def test_an_object_that_its_image_cuts_off_goes_where_it_covers_most(name: str) -> None:
    part, box, rows, expected = CUTS[name]
    cut, target = np.zeros((30, 30), bool), np.zeros((H, W), bool)
    cut[part], target[rows, 40:56] = True, True
    found = where_it_covers(cut, target, box)
    if expected is None:
        assert found == box
    else:
        top, bottom = expected
        assert (found[0], found[2]) == (box[0], box[2])
        assert found[1] * H <= rows.start
        assert found[3] * H >= rows.stop
        assert (found[3] - found[1]) * H == pytest.approx(bottom - top)


@pytest.mark.parametrize(
    "box", [(0.4, 0.75, 0.5, 0.95), (0.05, 0.5, 0.15, 0.7), (0.8, 0.05, 0.95, 0.2)], ids=str
)
@pytest.mark.parametrize("painter", ["paste", "bifrost"])
def test_all_of_the_target_goes_also_far_from_the_new_object(box: tuple[float, ...], painter: str) -> None:
    old = SHAPES["tall"]
    given = {"painter": painter, "eraser": "opencv", "steps": 1, "depth": (0.9,), "cutout": "grabcut"}
    thing = np.dstack([np.full((20, 20, 3), 60, np.uint8), np.full((20, 20), 255, np.uint8)])
    thing[:2, :, 3] = 0
    asked = ComposeSettings(
        background=scene(old), background_depth=np.full((H, W), 0.5, np.float32), object=thing, box=box,
        mode="replace", target_mask=old, **given,
    )  # fmt: skip
    result = compose(asked, load_models(asked), progress=False)
    assert (result.edit_mask | ~old).all()
    assert result.changed_outside == 0
    if painter == "paste":
        red = result.images_u8[0][..., 0].astype(int) - result.images_u8[0][..., 2]
        assert red[old].max() < 60  # 180 and more before


@pytest.mark.parametrize(
    "background",
    [scene(), np.full((H, W, 3), 128, np.uint8), scene(block(0.68, 0.0, 1.0, 1.0))],
    ids=["empty wall", "one colour", "beside the box"],
)
def test_without_an_object_the_whole_box_goes_and_a_warning_says_so(
    background: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    mask, by = replaced_region(settings(), background, (0.3, 0.2, 0.6, 0.9))
    assert by == "box"
    assert np.array_equal(mask, block(38 / W, 19 / H, 77 / W, 86 / H))
    assert "no object is found in --box 0.3,0.2,0.6,0.9: all that it shows is replaced" in caplog.text


def test_the_whole_box_on_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        mask, by = replaced_region(settings(erase="box"), scene(SHAPES["disc"]), (0.25, 0.25, 0.75, 0.75))
    assert (by, int(mask.sum()), caplog.text) == ("box", H * W // 4, "")


def test_a_missing_network_is_an_error_and_not_another_way(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    with pytest.raises(ValueError, match="registry pull u2netp"):
        replaced_region(settings(cutout="u2netp"), scene(SHAPES["disc"]), (0.2, 0.2, 0.8, 0.9))
    with pytest.raises(ValueError, match="SAM folder"):
        replaced_region(settings(sam=tmp_path / "sam"), scene(SHAPES["disc"]), (0.2, 0.2, 0.8, 0.9))


@pytest.mark.parametrize(
    ("changes", "erases"),
    [
        ({}, "object"),
        ({"erase": "box"}, "box"),
        ({"erase": "nothing"}, "nothing"),
        ({"mode": "place"}, "nothing"),
        ({"target_mask": "mask.png"}, "nothing"),
        ({"mode": "inpaint", "target_mask": "mask.png"}, "nothing"),
        ({"compat": "bifrost"}, "nothing"),
    ],
)
def test_what_is_removed_first(changes: dict, erases: str) -> None:
    assert settings(**changes).erases == erases


def test_the_old_object_does_not_stand_behind_the_new_one(case) -> None:
    old = block(0.35, 0.1, 0.65, 0.9)
    write_png(case.folder / "room.png", scene(old))
    box = (0.35, 0.2, 0.65, 0.9)  # its head is not in the box
    given = settings_of(case, mode="replace", box=box, depth=(0.99,), cutout="grabcut")
    result = compose(given, load_models(given), progress=False)
    assert result.report["erased"]["by"] == "grabcut"
    assert result.report["erased"]["pixels"] == pytest.approx(old.sum(), rel=0.03)
    assert result.edit_mask[old].mean() > 0.99  # the mask counts it, and so does the drift
    assert result.report["drift"][0]["edit_fraction"] >= 0.97 * old.mean()
    assert result.report["drift"][0]["changed_outside"] == 0
    kept = compose(dataclasses.replace(given, erase="nothing"), load_models(given), progress=False)
    assert "erased" not in kept.report
    assert not kept.edit_mask[old & (0.12 * H > Y)].any()
    target = case.folder / "target.png"
    write_mask(target, old)
    masked = dataclasses.replace(given, target_mask=target)
    assert compose(masked, load_models(given), progress=False).report["erased"]["by"] == "file"


def test_a_sentence_erases_what_it_names(case) -> None:
    old = block(0.35, 0.1, 0.65, 0.9)
    write_png(case.folder / "room.png", scene(old))
    (case.folder / "anchors.json").write_text('{"pillar": {"box": [0.35, 0.1, 0.65, 0.9], "depth": 0.99}}')
    given = settings_of(
        case, box=None, depth=None, instruction="Replace the pillar with the vase", locator="geometric",
        anchors=case.folder / "anchors.json", cutout="grabcut",
    )  # fmt: skip
    result = compose(given, load_models(given), progress=False)
    assert (result.report["mode"], result.report["erased"]["by"]) == ("replace", "grabcut")
    assert result.edit_mask[old].mean() > 0.99
    result.save(0, case.folder / "again.png")
    again, _ = settings_of_recipe(case.folder / "again.png")
    assert (again.erase, again.mode) == ("object", "replace")


def test_an_option_without_effect_is_said(case) -> None:
    sampling = load_models(settings_of(case)).config.sampling
    for mode, said in (("place", 1), ("replace", 0)):
        notes = ignored_options(settings_of(case, erase="box", mode=mode), sampling)
        assert sum("--erase has no effect" in note for note in notes) == said
