"""A newcomer in a browser: from the start of the server to a downloaded composite of photographs; the slider.

    BIFROST_TEST_DATA=FOLDER python -m tests.compose.serve.newcomer [--out FILE]

Needs Playwright and Chromium. Every newcomer comes to a server that has just started.
"""

import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.harness import RESULTS, Out, photographs, write_results
from benchmarks.serve import serving
from ldm.files import read_json
from ldm.images import read_image, resize, write_png
from ldm.settings.cli import run_module, single_app

CASE, SENTENCE = "d05_wolf_behind_motorcycle", "Place the wolf plushie behind the motorcycle"
PLACE, MOTORCYCLE = ((0.35, 0.2), (0.75, 0.8)), ((0.14, 0.3), (0.93, 0.93))  # boxes, corners (x, y)
CURSOR = "document.querySelector('#{}-canvas canvas')?.style.cursor === '{}'"
READY = CURSOR.format("background", "pointer")  # the server knows the visitor
LARGE, MOVES = (3000, 4000), 30  # (h, w) of a phone's photograph; moves of the slider


def newcomer(page: Any, url: str, way: str, background: Path, item: Path) -> Path:
    """Compose two images by a dragged box, or by a named thing and a sentence; returns the downloaded PNG."""

    def drag(*corners: tuple[float, float]) -> None:
        (canvas := page.locator("#background-canvas canvas")).scroll_into_view_if_needed()
        at = canvas.bounding_box()
        (x0, y0), (x1, y1) = ((at["x"] + x * at["width"], at["y"] + y * at["height"]) for x, y in corners)
        page.mouse.move(x0, y0)
        page.mouse.down()
        page.mouse.move(x1, y1, steps=4)
        page.mouse.up()

    page.set_default_timeout(120_000)  # what a composite may take
    page.goto(url)
    page.wait_for_function(READY)
    page.set_input_files("#background input", background)
    page.wait_for_selector("text=The depth is being estimated")
    page.wait_for_selector("text=The depth is being estimated", state="hidden")
    page.set_input_files("#object input", item)
    page.wait_for_function(CURSOR.format("object", "crosshair"))
    if way == "box":
        drag(*PLACE)
    else:
        page.click("text=name a thing")
        page.wait_for_selector("#name")
        drag(*MOTORCYCLE)
        time.sleep(1)  # until the hand is at the keyboard
        page.fill("#name :is(input, textarea)", "motorcycle")
        page.keyboard.press("Enter")
        page.wait_for_function("document.querySelector('#name :is(input, textarea)').value === ''")
        page.click("text=place the object")
        page.fill("#sentence :is(input, textarea)", SENTENCE)
        page.click("#propose")
    page.wait_for_selector("text=% visible")
    page.click("#compose")
    page.wait_for_selector("text=pixels changed outside")
    with page.expect_download() as download:
        page.click(".downloads a >> nth=0")
    return Path(download.value.path())


def slider_ms(page: Any) -> dict[str, float]:
    """Milliseconds until the browser has the answer to a move of the depth slider, image included."""
    taken = []
    for move in range(MOVES):
        with page.expect_response("**/run/predict") as answer:
            page.press("#depth input[type=range]", "ArrowLeft" if move < MOVES // 2 else "ArrowRight")
        answer.value.finished()
        taken.append(answer.value.request.timing["responseEnd"])
    return {"moves": MOVES, "median": round(float(np.median(taken)), 1), "worst": round(max(taken), 1)}


def measure(out: Out = RESULTS / "page.json") -> None:
    """Compose photographs by box and by sentence in Chromium; write how long that took."""
    from playwright.sync_api import sync_playwright

    files, rows = photographs(), dict[str, Any]()
    [case] = [entry for entry in read_json(files / "composite/cases.json")["cases"] if entry["id"] == CASE]
    background, item = files / case["background"], files / case["object"]
    with sync_playwright() as playwright, TemporaryDirectory() as name:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        write_png(large := Path(name) / "large.png", resize(read_image(background).rgb_u8, LARGE))
        visits = {"box": background, "sentence": background, "box, large": large}
        for number, (way, file) in enumerate(visits.items()):
            page, start = browser.new_page(), time.monotonic()
            (folder := Path(name) / str(number)).mkdir()
            with serving(folder) as server:
                before = time.monotonic()
                newcomer(page, str(server.client.base_url), way.partition(",")[0], file, item)
                done = time.monotonic()
                seconds = {"start": round(before - start, 1), "composite": round(done - before, 1)}
                rows[way] = {"seconds": seconds, "slider_ms": slider_ms(page)}
    write_results(out, rows)


build_app = single_app(measure)

if __name__ == "__main__":
    run_module(build_app)
