"""What a visitor prepares: files in their roles, boxes, clicks, names, strokes, settings, replay."""

import json
from pathlib import Path

import numpy as np
import pytest

from cldm.config import load_compositor_config
from compose.commands import run_image
from compose.serve.desk import Desk, stroke_mask
from compose.serve.settings import anywhere
from compose.settings import CompositeSettings
from ldm.images import read_image, read_mask, write_mask, write_png
from tests.images import Case, room, room_depth, thing


@pytest.fixture
def desk(case: Case) -> Desk:
    """With background, object, their mask and depth."""
    config = case.folder / "compose.yaml"
    config.write_text(f"model: {case.model}\ndepth_model: {case.depth_model}\n", encoding="utf-8")
    desk = Desk(config, load_compositor_config(case.model).pair)
    files = {"background": "room", "object": "thing", "object_mask": "mask", "background_depth": "depth"}
    for name, file in files.items():
        desk.take(name, case.folder / f"{file}.png")
    return desk


def record(*boxes, chosen=0, far=0.3, near=0.5):
    candidates = [{"box": list(box), "depth": 0.4, "far": far, "near": near} for box in boxes]
    return [{"candidates": candidates, "chosen": index, "instruction": "a"} for index in range(len(boxes))]


# strokes


@pytest.mark.parametrize("radius", [0.0, 0.02, 0.1])
def test_a_stroke_is_a_round_brush(radius):
    mask = stroke_mask((100, 200), [[0.5, 0.5]], radius)
    area, expected = mask.sum(), max(1, np.pi * (radius * 200) ** 2)
    assert mask[50, 100]
    assert abs(area - expected) <= 0.3 * expected + 4
    line = stroke_mask((100, 200), [[0.1, 0.5], [0.9, 0.5]], radius)
    assert line[50, 20:180].all()
    assert line.sum() > area


@pytest.mark.parametrize("point", [(0, 0), (1, 1), (0, 1)])
def test_a_stroke_at_the_border_stays_inside(point):
    mask = stroke_mask((30, 40), [point], 0.05)
    assert mask[round(point[1] * 29), round(point[0] * 39)]


# files


@pytest.mark.parametrize("name", ["object_mask", "background_depth", "target_mask"])
def test_what_belongs_to_an_image_comes_after_it(case: Case, name):
    with pytest.raises(ValueError, match=f"the {name.replace('_', ' ')} comes after its image"):
        Desk(None, load_compositor_config(case.model).pair).take(name, case.folder / "mask.png")


def test_a_new_background_forgets_what_belonged_to_the_old_one(desk: Desk, case: Case):
    desk.draw(False, (0.1, 0.1, 0.5, 0.5), [])
    desk.draw(True, (0.1, 0.1, 0.5, 0.5), [])
    desk.name("post")
    desk.take("target_mask", case.folder / "target.png")
    write_png(case.folder / "other.png", room(60, 80))
    desk.take("background", case.folder / "other.png")
    assert (desk.box, desk.named, desk.target, desk.depth_01, desk.records) == (None, {}, None, None, [])
    assert set(desk.files) == {"background", "object", "object_mask"}


def test_an_outline_that_is_estimated_is_said(desk: Desk, case: Case):
    assert "estimated" in desk.take("object", case.folder / "thing.png")
    assert "object_mask" not in desk.files
    rgb_u8, mask = thing()
    write_png(case.folder / "cut.png", np.dstack([rgb_u8, mask * np.uint8(255)]))
    assert desk.take("object", case.folder / "cut.png") == ""
    assert np.array_equal(desk.cut, mask)
    write_png(case.folder / "plain.png", np.full((64, 64, 3), 200, np.uint8))
    assert "paint the object" in desk.take("object", case.folder / "plain.png")
    assert desk.preview("place") is None


def test_damaged_and_foreign_files_change_nothing(desk: Desk, case: Case):
    before = dict(desk.files)
    (case.folder / "text.png").write_text("no image", encoding="utf-8")
    write_mask(case.folder / "small.png", np.ones((5, 5), bool))
    for name, file in (
        ("background", "text"),
        ("object", "text"),
        ("object_mask", "small"),
        ("target_mask", "small"),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 -- the readers' own messages
            desk.take(name, case.folder / f"{file}.png")
    assert desk.files == before
    assert np.array_equal(desk.background.rgb_u8, room())


# outline


def test_brush_and_clicks_correct_the_outline(desk: Desk):
    before = desk.cut.copy()
    desk.correct([[0.05, 0.05]], 0.03, adds=True, finds=False)
    assert (desk.cut & ~before).sum() == stroke_mask((64, 64), [[0.05, 0.05]], 0.03).sum()
    desk.correct([[0.05, 0.05]], 0.05, adds=False, finds=False)
    assert np.array_equal(desk.cut, before)
    desk.correct([[0.5, 0.5]], 0.02, adds=False, finds=True)
    assert not desk.cut[32, 32]
    desk.draw(False, [0.3, 0.2, 0.7, 0.9], [])
    assert np.array_equal(read_mask(desk.settings({}).object_mask), desk.cut)
    with pytest.raises(ValueError, match="nothing is left of the object mask"):
        desk.correct([[0.5, 0.5]], 1.0, adds=False, finds=False)


# place


def test_boxes_clicks_and_names(desk: Desk):
    desk.draw(False, [0.3, 0.2, 0.7, 0.9], [[0.3, 0.2]])
    assert desk.box == (0.3, 0.2, 0.7, 0.9)
    assert desk.centre() == pytest.approx(np.quantile(room_depth()[84:86], 0.25), abs=0.02)
    desk.act("background", {"depth": 0.25})
    assert desk.centre() == 0.25
    assert desk.settings({}).depth == (0.25,)
    desk.act("background", {"depth": None})
    assert desk.settings({}).depth is None
    with pytest.raises(ValueError, match="draw a box round the thing, or click on it"):
        desk.name("post")
    desk.draw(True, None, [[0.1, 0.5]])
    x0, y0, x1, y1 = desk.pending
    assert x0 <= 0.1 <= x1 <= 1
    assert 0 <= y0 <= 0.5 <= y1
    desk.name("  The Post ")
    assert list(desk.named) == ["the post"]
    assert desk.box == (0.3, 0.2, 0.7, 0.9)


@pytest.mark.parametrize("box", [(0.5, 0.5, 0.5, 0.9), (0.2, 0.2, 1.2, 0.9), (float("nan"), 0, 1, 1)])
def test_a_box_that_is_none_is_refused(desk: Desk, box):
    with pytest.raises(ValueError, match="box must be x1,y1,x2,y2"):
        desk.draw(False, box, [])
    assert desk.box is None


def test_proposed_places_are_chosen_by_click(desk: Desk):
    one, two = (0.1, 0.1, 0.5, 0.6), (0.4, 0.3, 0.9, 0.9)
    desk.records = record(one, two)
    desk.choose(0)
    assert (desk.box, desk.depth, desk.record["chosen"]) == (one, (0.3, 0.5), 0)
    desk.draw(False, None, [[0.45, 0.5]])  # in both: the one that is not used
    assert (desk.box, desk.record["chosen"]) == (two, 1)
    desk.draw(False, None, [[0.45, 0.5]])
    assert desk.box == one
    desk.draw(False, None, [[0.95, 0.05]])  # in none
    assert desk.box == one
    desk.draw(False, (0.1, 0.1, 0.6, 0.6), [])
    assert (desk.record, desk.depth) == (None, None)


def test_settings_are_those_of_the_command_line(desk: Desk, case: Case):
    with pytest.raises(ValueError, match="drag a box on the background, or say in a sentence where"):
        desk.settings({})
    named = desk.settings({"seed": 3, "steps": None, "mode": "place"}, "Place the cup behind the post")
    assert (named.instruction, named.box, named.seed, named.steps) == (
        "Place the cup behind the post",
        None,
        3,
        None,
    )
    desk.draw(True, [0.0, 0.0, 0.25, 1.0], [])
    desk.name("post")
    desk.draw(False, [0.3, 0.2, 0.7, 0.9], [])
    anchors = desk.settings({}, "Place the cup behind the post").anchors
    assert json.loads(anchors.read_text(encoding="utf-8")) == {"post": {"box": [0.0, 0.0, 0.25, 1.0]}}
    placed = desk.settings({"mode": "place", "detail": 0.5})
    assert (placed.box, placed.anchors, placed.instruction, placed.detail) == (
        (0.3, 0.2, 0.7, 0.9),
        None,
        None,
        0.5,
    )
    desk.paint_target([[0.5, 0.5]], 0.1)
    assert desk.settings({"mode": "place"}).target_mask is None
    assert desk.settings({"mode": "replace"}).target_mask is not None
    with pytest.raises(ValueError, match="steps must be in \\[1, 1000\\], got 0"):
        desk.settings({"steps": 0})


@pytest.mark.parametrize("mode", ["place", "replace", "id-transfer", "inpaint"])
def test_preview_follows_the_mode(desk: Desk, mode):
    assert desk.preview(mode) is None
    desk.paint_target([[0.5, 0.6]], 0.2)
    assert (desk.preview(mode) is None) == (mode == "place")
    desk.draw(False, [0.3, 0.2, 0.7, 0.9], [])
    assert desk.preview(mode).visible_fraction > 0.3


def test_preview_follows_depth_and_outline(desk: Desk):
    desk.draw(False, [0.0, 0.2, 0.5, 0.9], [])
    fractions = []
    for d in (0.1, 0.5, 1.0):
        desk.act("background", {"depth": d})
        fractions.append(desk.preview("place").visible_fraction)
    assert fractions[0] < 1 == fractions[2]
    area = desk.preview("place").visible.sum()
    desk.correct([[0.5, 0.2], [0.5, 0.4]], 0.2, adds=False, finds=False)
    assert desk.preview("place").visible.sum() < area


# replay


def made(desk: Desk, case: Case, **changes) -> Path:
    """A composite that the command line makes of the same files."""
    values = {
        field: getattr(desk.settings({}), field)
        for field in ("background", "object", "object_mask", "background_depth")
    }
    more = {"box": (0.3, 0.2, 0.7, 0.9), "depth": (0.6,), "model": case.model, "seed": 5, "steps": 2}
    run_image(CompositeSettings(**{**values, **more, **changes}, out=case.out, sheet=False))
    return case.out


def test_a_result_gives_back_all_its_settings(desk: Desk, case: Case):
    desk.draw(False, [0.1, 0.1, 0.2, 0.2], [])
    image = made(desk, case, mode="replace", detail=0.25)
    values, missing = desk.replay(image)
    assert missing == []
    assert (desk.box, desk.depth) == ((0.3, 0.2, 0.7, 0.9), (0.6,))
    again = desk.settings({name: values[name] for name in ("seed", "steps", "mode", "detail")})
    assert (again.seed, again.steps, again.mode, again.detail) == (5, 2, "replace", 0.25)
    assert np.array_equal(read_image(again.background).rgb_u8, room())


def test_settings_without_a_control_come_back_too(desk: Desk, case: Case):
    desk.draw(False, [0.1, 0.1, 0.2, 0.2], [])
    more = {"detail_scale": 0.3, "depth_weight": 0.5, "invert_target_mask": True, "mode": "replace"}
    image = made(
        desk, case, **more, target_mask=case.folder / "target.png", object_depth=case.folder / "mask.png"
    )
    for name, file in (("target_mask", "target"), ("object_depth", "mask")):
        desk.take(name, case.folder / f"{file}.png")
    values, missing = desk.replay(image)
    again = desk.settings({"mode": values["mode"]})
    assert missing == []
    assert {name: getattr(again, name) for name in more} == more
    assert again.object_depth == case.folder / "mask.png"
    assert np.array_equal(desk.target, ~read_mask(case.folder / "target.png"))
    assert desk.preview("replace").visible_fraction > 0
    desk.paint_target([[0.1, 0.1]], 0.01)
    assert not desk.settings({"mode": "replace"}).invert_target_mask
    desk.take("background", case.folder / "room.png")
    desk.draw(False, [0.1, 0.1, 0.2, 0.2], [])
    assert desk.settings({}).detail_scale is None


def test_files_that_are_not_here_are_named_and_checked(desk: Desk, case: Case):
    desk.draw(False, [0.1, 0.1, 0.2, 0.2], [])
    image = made(desk, case)
    new = Desk(desk.config, desk.options)
    _, missing = new.replay(image)
    assert missing == [
        "background (room.png)",
        "object (thing.png)",
        "object mask (mask.png)",
        "background depth (depth.png)",
    ]
    write_png(case.folder / "other.png", room()[::-1])
    assert "is not the background that the image was made from" in new.take(
        "background", case.folder / "other.png"
    )
    values, missing = new.replay(image)
    assert new.take("background", case.folder / "room.png") == ""
    assert (new.box, new.depth) == ((0.3, 0.2, 0.7, 0.9), (0.6,))


@pytest.mark.parametrize("file", ["room.png", "text.png"])
def test_what_carries_no_recipe_is_said(desk: Desk, case: Case, file):
    (case.folder / "text.png").write_text("no image", encoding="utf-8")
    with pytest.raises(ValueError, match=r"carries no recipe|not an image|cannot"):
        desk.replay(case.folder / file)


def test_no_settings_name_no_networks_but_those_of_the_server():
    assert anywhere(None, {"model": "models/x"}).model == Path("models/x")
