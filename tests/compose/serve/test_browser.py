"""The page in a real browser: what a visitor drags, types, drops and downloads.

Needs Playwright and Chromium: pip install playwright, and Debian's chromium (apt-get install chromium) or
`python -m playwright install chromium`; BIFROST_CHROMIUM names another executable.
"""

from __future__ import annotations

import json

import numpy as np
import psutil
import pytest

from benchmarks.serve import serving
from compose.commands import replay
from compose.settings import ReplaySettings
from ldm.images import read_image, read_mask, write_png
from ldm.result import read_recipe
from tests.compose.serve.browsing import TENT, Visit, photographs
from tests.compose.serve.newcomer import CASE, newcomer, slider_ms
from tests.compose.serve.newcomer import SENTENCE as SAID
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
SENTENCE = "Place the checkered cyan pyramid behind the dotted teal prism"


def test_a_box_is_dragged_and_every_byte_outside_the_mask_survives(visit, tmp_path):
    rgb_u8 = read_image(TENT / "room.png").rgb_u8
    noisy_u8 = np.random.default_rng(0).integers(0, 256, (*rgb_u8.shape[:2], 4), dtype=np.uint8)
    noisy_u8[..., 3] |= 128
    write_png(tmp_path / "noisy.png", noisy_u8)  # what a lossy format would change everywhere
    visit.prepare(tmp_path / "noisy.png")
    visit.drag("background", (0.2, 0.2), (0.5, 0.6))
    assert "% visible" in visit.until("#visible .prose", "% visible")
    visit.drag("background", (0.35, 0.4), (0.45, 0.5))  # the whole box moves
    image, report, *_ = visit.compose()
    said = json.loads(report.read_text(encoding="utf-8"))
    assert said["box"] == pytest.approx([0.3, 0.3, 0.6, 0.7], abs=0.01)
    after = read_image(image)
    changed = (np.dstack([after.rgb_u8, after.alpha_u8]) != noisy_u8).any(axis=2)
    h, w = changed.shape
    y, x = np.nonzero(changed)
    assert changed.any()
    assert x.min() / w > 0.21  # a contact shadow lies beside the object
    assert y.min() / h > 0.25
    assert x.max() / w < 0.69
    assert y.max() / h < 0.79
    assert said["drift"]["changed_outside"] == 0
    assert said["drift"]["changed_inside"] == (after.rgb_u8 != noisy_u8[..., :3]).any(axis=2).sum()


def test_the_slider_previews_the_occlusion(visit):
    visit.prepare()
    visit.drag("background", (0.25, 0.35), (0.5, 0.9))
    visit.until("#visible .prose", "% visible")
    visit.settled("background")
    near = visit.page.inner_text("#visible .prose").strip()
    assert not near.startswith("0 %")
    slider = visit.page.locator("#depth input[type=range]")
    slider.focus()
    slider.press("Home")  # how fast the answer comes: tests/compose/test_preview.py
    visit.page.wait_for_function(
        "document.querySelector('#visible .prose').innerText.startsWith('0 % visible')"
    )
    visit.page.click("text=Depth of the ground")
    assert visit.until("#visible .prose", near.split(",")[0]) == near


def test_a_sentence_proposes_places_that_are_clicked(visit):
    visit.prepare()
    visit.page.fill("#sentence textarea, #sentence input", SENTENCE)
    visit.page.click("#propose")
    first = visit.until("#visible .prose", "% visible")
    _, report, *_ = visit.compose()
    said = json.loads(report.read_text(encoding="utf-8"))
    assert said["placement"]["instruction"] == SENTENCE
    assert said["placement"]["chosen"] == 0
    x0, y0, x1, y1 = said["box"]
    others = [place["box"] for place in said["placement"]["candidates"][1:]]
    inside = next(box for box in others if box != said["box"])
    visit.click("background", (inside[0] + inside[2]) / 2, (inside[1] + inside[3]) / 2)
    visit.page.wait_for_function(
        "text => document.querySelector('#visible .prose').innerText.trim() !== text", arg=first.strip()
    )


def test_things_are_named_and_a_sentence_uses_them(visit):
    visit.prepare()
    visit.page.click("text=name a thing")
    visit.page.wait_for_selector("#name")
    visit.click("background", 0.38, 0.7)
    visit.page.fill("#name textarea, #name input", "vase")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_function("document.querySelector('#name textarea, #name input').value === ''")
    visit.page.click("text=place the object")
    visit.page.fill("#sentence textarea, #sentence input", "Place the pyramid to the left of the vase")
    visit.page.click("#propose")
    visit.until("#visible .prose", "% visible")


def test_the_outline_is_corrected_by_click_and_brush(visit):
    visit.prepare()
    visit.page.click("text=rub out")
    visit.drag("background", (0.2, 0.2), (0.5, 0.6))
    visit.until("#visible .prose", "100 % visible")
    visit.drag("object", (0.5, 0.2), (0.5, 0.5))
    visit.set(num_samples=2, steps=4)
    image, second, *_ = visit.compose()
    assert [read_recipe(sample)["sample"] for sample in (image, second)] == [0, 1]
    assert read_recipe(image)["inputs"]["object_mask"]
    visit.page.locator(".samples img").last.click()
    visit.page.wait_for_selector("img.after[src$='/1.png']")


def test_a_job_shows_its_steps_and_is_cancelled(visit):
    visit.prepare()
    visit.drag("background", (0.2, 0.2), (0.5, 0.6))
    visit.until("#visible .prose", "% visible")
    visit.set(steps=200, strength=1)
    visit.page.click("#compose")
    shown = visit.until("#status", "Step ")
    assert "of 200" in shown
    visit.page.wait_for_selector("#status img[alt=preview]")
    visit.until("#status", "left")
    visit.page.click("#cancel")
    assert "Cancelled after" in visit.until("#status", "Cancelled after")


def test_a_result_that_is_dropped_brings_its_settings_back(visit, tmp_path):
    visit.prepare()
    visit.drag("background", (0.2, 0.2), (0.5, 0.6))
    visit.until("#visible .prose", "% visible")
    visit.set(seed=7)
    image, *_ = visit.compose()
    visit.open()
    visit.drop("#replay", image)
    visit.page.wait_for_selector("text=must be given again")
    visit.page.wait_for_function("document.querySelector('#ComposeSettings-seed input').value === '7'")
    visit.prepare()
    visit.until("#visible .prose", "% visible")  # at the same place
    files = {"background": TENT / "room.png", "object": TENT / "object.png"}
    again = replay(ReplaySettings(image=image, out=tmp_path / "again.png", **files))
    assert np.array_equal(read_image(tmp_path / "again.png").rgb_u8, read_image(image).rgb_u8)
    assert again["seed"] == 7 if "seed" in again else again["seeds"] == [7]


def test_errors_are_said_in_words(visit, tmp_path):
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    visit.page.click("#compose")
    visit.page.wait_for_selector("text=give a background and an object first")
    visit.give("background", tmp_path / "text.png")
    visit.page.wait_for_selector("text=text.png is not an image")
    visit.prepare()
    visit.page.click("#compose")
    visit.page.wait_for_selector("text=drag a box on the background, or say in a sentence")
    assert str(tmp_path) not in visit.page.content()


def test_two_visitors_see_only_what_is_theirs(visit, browser, address):
    visit.drop("#background-canvas canvas", TENT / "room.png")
    visit.shows("background")
    visit.until("#visible .prose", "")
    visit.drop("#object-canvas canvas", TENT / "object.png")
    other = Visit(browser, address)
    other.page.click("#compose")
    other.page.wait_for_selector("text=give a background and an object first")
    other.context.close()
    visit.drag("background", (0.2, 0.2), (0.5, 0.6))
    visit.until("#visible .prose", "% visible")


def test_regions_are_painted_loaded_and_filled(visit):
    visit.page.click("role=tab[name=Regions]")
    visit.give("painting", TENT / "room.png")
    visit.shows("painting")
    visit.drag("painting", (0.15, 0.15), (0.3, 0.3))
    visit.give("masks", ROOT / "assets/regions/right.png")
    visit.until("#prompts", "2 green")
    visit.page.click("#write")
    visit.until("#prompts", "a ")
    visit.page.click("#paint")
    visit.page.wait_for_selector("text=0 pixels changed outside the masks")
    image, report = visit.downloads()
    said = json.loads(report.read_text(encoding="utf-8"))
    assert sorted(row["color"] for row in said["prompts"]) == ["green", "red"]
    assert all(row["prompt"] for row in said["prompts"])
    before, after = read_image(TENT / "room.png").rgb_u8, read_image(image).rgb_u8
    outside = ~read_mask(ROOT / "assets/regions/right.png")
    outside[: before.shape[0] // 2, : before.shape[1] // 2] = False  # the stroke
    assert np.array_equal(before[outside], after[outside])


def test_a_file_of_jobs_is_done(visit, tmp_path):
    lines = [
        {"background": "room.png", "object": "object.png", "box": [0.1, 0.1, 0.5, 0.6], "name": name}
        for name in "ab"
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    visit.page.click("role=tab[name=Jobs]")
    files = [tmp_path / "jobs.jsonl", TENT / "room.png", TENT / "object.png"]
    visit.give("jobs", *files)
    visit.until("#states", "jobs.jsonl")
    visit.page.click("#all")
    visit.page.wait_for_function(
        "document.querySelector('#states').innerText.split('0 pixels changed outside').length === 3"
    )


def cpu_seconds(server) -> float:
    """Of the server until now: what its work takes on an idle machine, whatever else runs here."""
    return sum(psutil.Process(server.process.pid).cpu_times()[:2])


@pytest.mark.parametrize("way", ["box", "sentence"])
def test_a_newcomer_composes_photographs_in_two_minutes(browser, test_data, tmp_path, way):
    background, item = photographs(test_data, CASE)
    with serving(tmp_path) as server, browser.new_context(accept_downloads=True) as context:
        page = context.new_page()
        image = newcomer(page, str(server.client.base_url), way, background, item)
        used = [cpu_seconds(server)]
        moves = slider_ms(page)["moves"]
        used.append(cpu_seconds(server))
        before, after, recipe = read_image(background).rgb_u8, read_image(image).rgb_u8, read_recipe(image)
    assert used[0] < 120
    assert (used[1] - used[0]) / moves < 0.15
    assert 0 < (before != after).any(axis=2).mean() < 0.6
    assert (recipe.get("placement") or {}).get("instruction") == {"sentence": SAID}.get(way)


def test_a_phone_has_room_for_everything(browser, address):
    phone = Visit(browser, address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    phone.prepare()
    for name in ("background", "object"):
        box = phone.page.locator(f"#{name}-canvas canvas").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["width"] > 150
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    phone.page.locator("#background-canvas canvas").scroll_into_view_if_needed()
    phone.drag("background", (0.2, 0.2), (0.5, 0.6))
    phone.until("#visible .prose", "% visible")
    phone.compose()
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    phone.context.close()
    assert not phone.errors
