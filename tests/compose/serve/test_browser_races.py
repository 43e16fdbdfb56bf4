"""The page in a real browser while the server answers late: what was done last is what counts."""

from __future__ import annotations

import json
import threading
import time

import pytest

from compose.serve import page, page_regions
from ldm.result import read_recipe
from tests.compose.serve.browsing import TENT

pytestmark = pytest.mark.slow
STROKES = [((0.15, 0.15), (0.3, 0.3)), ((0.6, 0.6), (0.8, 0.8))]
WRITTEN = "document.querySelector('#prompts [data-testid=cell-1-1]').innerText.trim() !== ''"
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


@pytest.mark.parametrize(("keys", "depth"), [(["End"], [1.0]), (["End", "ArrowLeft", "ArrowLeft"], [0.99])])
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


@pytest.fixture
def painted(visit, monkeypatch):
    """The visitor, with an image on the Regions tab and late answers; a job ends when `visit.end` is set."""
    visit.page.click("role=tab[name=Regions]")
    visit.give("painting", TENT / "room.png")
    visit.shows("painting")
    prompt, work, visit.end = page.as_url, page_regions.paint_work, threading.Event()
    monkeypatch.setattr(page, "as_url", lambda image_u8: time.sleep(LATE) or prompt(image_u8))

    def paint_work(*values, **more):
        assert visit.end.wait(60)
        return work(*values, **more)

    monkeypatch.setattr(page_regions, "paint_work", paint_work)
    yield visit
    visit.end.set()


def stroke(visit, number: int) -> None:
    """Paint in region 0 or 1; a new one is chosen in the list as soon as it is there."""
    if number:
        visit.page.click("#region input")
        visit.page.click(f"[role=option] >> text={number + 1} ")
    visit.drag("painting", *STROKES[number])


def type_into(visit, cell: str, text: str, key: str = "Enter") -> None:
    """cell: row and column, from 0; without a key it stays open."""
    visit.page.dblclick(f"#prompts [data-testid=cell-{cell}]")
    visit.page.wait_for_selector(f"#prompts [data-testid=cell-{cell}] textarea:focus")
    visit.page.keyboard.press("Control+A")
    visit.page.keyboard.type(text)
    if key:
        visit.page.keyboard.press(key)


def prompts_of(visit) -> list[tuple[str, str]]:
    """Prompts and negative prompts that the next painting is made with."""
    visit.end.clear()
    visit.page.click("#paint")
    visit.page.wait_for_selector("text=Preparing")  # no earlier result is there
    visit.end.set()
    visit.page.wait_for_selector("text=0 pixels changed outside the masks")
    image, report = visit.downloads()
    rows = json.loads(report.read_text(encoding="utf-8"))["prompts"]
    negatives = read_recipe(image)["settings"]["negatives"] or [""] * len(rows)
    return [(row["prompt"], negative) for row, negative in zip(rows, negatives, strict=True)]


@pytest.mark.parametrize("count", [1, 2])
def test_last_mask_is_painted(painted, count):
    for number in range(count):
        stroke(painted, number)
    assert len(prompts_of(painted)) == count


def test_prompt_of_the_first_region_may_be_typed_before_it_is_painted(painted):
    type_into(painted, "0-1", "a vase")
    type_into(painted, "0-2", "blurry")
    stroke(painted, 0)
    assert prompts_of(painted) == [("a vase", "blurry")]


@pytest.mark.parametrize("key", ["Enter", "Tab"])
def test_prompt_typed_while_a_region_is_added_stays(painted, key):
    stroke(painted, 0)
    painted.settled("painting")
    stroke(painted, 1)  # its answer is late
    type_into(painted, "0-1", "a vase", key)
    painted.until("#prompts", "2 green")
    type_into(painted, "1-1", "a plant")
    assert [prompt for prompt, _ in prompts_of(painted)] == ["a vase", "a plant"]


@pytest.mark.parametrize("button", ["write", "paint"])
def test_prompts_typed_while_others_are_written_stay(painted, button):
    for number in range(2):
        stroke(painted, number)
        painted.settled("painting")
    painted.until("#prompts", "2 green")
    painted.page.click(f"#{button}")
    painted.page.wait_for_selector("text=Preparing")
    type_into(painted, "0-1", "a vase")
    type_into(painted, "0-2", "blurry", "")  # is still open when the others come
    painted.end.set()
    painted.page.wait_for_function(WRITTEN)
    painted.page.keyboard.press("Enter")
    (first, negative), (second, _) = prompts_of(painted)
    assert (first, negative) == ("a vase", "blurry")
    assert second


def test_a_prompt_that_is_emptied_while_its_region_is_painted_stays_empty(painted):
    stroke(painted, 0)
    type_into(painted, "0-1", "a vase")
    painted.page.click("#paint")
    painted.page.wait_for_selector("text=Preparing")
    type_into(painted, "0-1", "", "Delete")
    painted.page.keyboard.press("Enter")
    painted.end.set()
    painted.page.wait_for_selector("text=0 pixels changed outside the masks")
    assert "a vase" not in painted.page.inner_text("#prompts")
