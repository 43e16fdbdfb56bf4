"""The page in a real browser while the server answers late: what was done last is what counts."""

from __future__ import annotations

import json
import time

import pytest

from compose.serve import page
from ldm.result import read_recipe
from tests.compose.serve.browsing import TENT

pytestmark = pytest.mark.slow
LATE = 0.4  # seconds; several times what lies between two acts below


@pytest.fixture
def late(visit, monkeypatch):
    """The visitor, prepared; from now on every answer that draws on a surface is late."""
    visit.prepare()
    prompt = page.as_url

    def as_url(image_u8):
        time.sleep(LATE)
        return prompt(image_u8)

    monkeypatch.setattr(page, "as_url", as_url)
    return visit


def composed(visit):
    """Report and recipe of a composite of what was done until now."""
    image, report, *_ = visit.compose()
    return json.loads(report.read_text(encoding="utf-8")), read_recipe(image)


@pytest.mark.parametrize(
    ("drags", "box"),
    [
        ([((0.2, 0.2), (0.5, 0.6))], [0.2, 0.2, 0.5, 0.6]),
        ([((0.2, 0.2), (0.5, 0.6)), ((0.35, 0.4), (0.45, 0.5))], [0.3, 0.3, 0.6, 0.7]),  # the whole box moves
        ([((0.2, 0.2), (0.5, 0.6)), ((0.5, 0.6), (0.7, 0.8))], [0.2, 0.2, 0.7, 0.8]),  # a corner moves
        ([((0.1, 0.1), (0.3, 0.3)), ((0.6, 0.5), (0.9, 0.9))], [0.6, 0.5, 0.9, 0.9]),  # a new one
        ([((0.6, 0.6), (1.1, 1.02))], [0.6, 0.6, 1, 1]),  # beyond the image
    ],
    ids=["one", "moved", "corner", "new", "beyond"],
)
def test_last_box_is_composed(late, drags, box):
    for points in drags:
        late.drag("background", *points)
    report, _ = composed(late)
    assert report["box"] == pytest.approx(box, abs=0.01)


@pytest.mark.parametrize(
    ("keys", "depth"), [(["Home"], [0.0]), (["Home", "ArrowRight", "ArrowRight"], [0.01])]
)
def test_last_depth_is_composed(late, keys, depth):
    late.drag("background", (0.2, 0.2), (0.5, 0.6))
    for key in keys:
        late.page.press("#depth input[type=range]", key)
    _, recipe = composed(late)
    assert recipe["settings"]["depth"] == pytest.approx(depth)


def test_depth_of_the_ground_comes_back(late):
    late.drag("background", (0.2, 0.2), (0.5, 0.6))
    late.page.press("#depth input[type=range]", "Home")
    late.until("#visible .prose", "depth 0.00")
    late.page.click("text=Depth of the ground")
    report, recipe = composed(late)
    assert recipe["settings"]["depth"] is None
    assert report["depth"]["near"] > 0


def test_last_stroke_on_the_object_is_composed(late):
    late.drag("background", (0.2, 0.2), (0.5, 0.6))
    late.page.click("text=rub out")
    late.drag("object", (0.5, 0.2), (0.5, 0.5))
    _, recipe = composed(late)
    assert recipe["inputs"]["object_mask"]


def test_box_round_a_thing_is_there_when_it_is_named(late):
    late.page.click("text=name a thing")
    late.drag("background", (0.3, 0.4), (0.45, 0.9))
    late.page.fill("#name textarea, #name input", "vase")
    late.page.keyboard.press("Enter")
    late.page.wait_for_function("document.querySelector('#name textarea, #name input').value === ''")


def test_last_mask_is_painted(visit, monkeypatch):
    visit.page.click("role=tab[name=Regions]")
    visit.give("painting", TENT / "room.png")
    visit.page.wait_for_function(
        "getComputedStyle(document.querySelector('#painting-canvas canvas')).cursor == 'crosshair'"
    )
    prompt = page.as_url
    monkeypatch.setattr(page, "as_url", lambda image_u8: time.sleep(LATE) or prompt(image_u8))
    visit.drag("painting", (0.15, 0.15), (0.3, 0.3))
    visit.page.click("#paint")
    visit.page.wait_for_selector("text=0 pixels changed outside the masks")
