"""A visitor of the page in a browser, for its tests."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from compose.serve.app import make_app, make_queue
from compose.serve.settings import ServeSettings
from ldm.files import read_json
from tests.compose.serve.newcomer import CURSOR, READY
from tests.conftest import ROOT

TENT = ROOT / "assets/examples/tent"


@contextmanager
def served(folder: Path, **options: Any) -> Iterator[str]:
    """The address of a running server with the small networks."""
    settings = ServeSettings(out=folder, devices=("cpu",), **options)
    queue = make_queue(settings)
    with listening(make_app(settings, queue), settings.root_path) as address:
        yield address
    queue.close()


@contextmanager
def listening(app: Any, root_path: str = "") -> Iterator[str]:
    """The address of an application that listens on this machine."""
    config = uvicorn.Config(app, port=0, log_level="error", root_path=root_path, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(timeout=20)


def photographs(test_data: Path, case: str) -> tuple[Path, Path]:
    folder = test_data / "data"
    listed = read_json(folder / "composite/cases.json")["cases"]
    cases = {entry["id"]: entry for entry in listed}
    return folder / cases[case]["background"], folder / cases[case]["object"]


class Visit:
    """One visitor and the page."""

    def __init__(self, browser, address: str, **options) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        self.page, self.foreign, self.errors = self.context.new_page(), list[str](), list[str]()
        self.page.set_default_timeout(60_000)  # of a busy machine
        self.page.on("request", lambda sent: self.foreign.append(sent.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.address = address
        self.open()

    def open(self) -> None:
        """Load the page, until the server knows the visitor."""
        self.page.goto(self.address)
        self.page.wait_for_function(READY)

    def give(self, name: str, *paths: Path) -> None:
        self.page.locator(f"#{name} input[type=file]").set_input_files([str(path) for path in paths])

    def drop(self, where: str, path: Path) -> None:
        """Let a file fall on something."""
        script = """([where, name, text]) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], name, {type: 'image/png'}));
            const event = {dataTransfer: data, bubbles: true, cancelable: true};
            document.querySelector(where).dispatchEvent(new DragEvent('drop', event));
        }"""
        text = base64.b64encode(path.read_bytes()).decode()
        self.page.evaluate(script, [where, path.name, text])

    def prepare(self, background: Path = TENT / "room.png", item: Path = TENT / "object.png") -> None:
        """Background with its depth, and the object."""
        self.give("background", background)
        self.shows("background")
        self.until("#visible .prose", "")
        self.give("object", item)
        self.shows("object")

    def shows(self, canvas: str) -> None:
        """Wait until there is an image to draw on."""
        self.page.wait_for_function(CURSOR.format(canvas, "crosshair"))

    def settled(self, canvas: str) -> None:
        """Wait until the server has done all that was done on a surface."""
        self.page.wait_for_function(f"document.querySelector('#{canvas}-canvas canvas').acts.length === 0")

    def until(self, where: str, text: str) -> str:
        """Wait until an element says something; nothing at all for an empty text."""
        check = "says.includes(text)" if text else "says === ''"
        script = f"const says = document.querySelector(where)?.innerText.trim() ?? ''; return {check}"
        script = f"([where, text]) => {{{script}}}"
        self.page.wait_for_function(script, arg=[where, text])
        return self.page.inner_text(where)

    def at(self, canvas: str, x: float, y: float) -> tuple[float, float]:
        """Coordinates on the screen of a point of the image."""
        box = self.page.locator(f"#{canvas}-canvas canvas").bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def drag(self, canvas: str, *points: tuple[float, float]) -> None:
        self.page.locator(f"#{canvas}-canvas canvas").scroll_into_view_if_needed()
        self.page.mouse.move(*self.at(canvas, *points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.at(canvas, *point), steps=4)
        self.page.mouse.up()

    def set(self, **values: object) -> None:
        """Type settings of the Compose tab."""
        self.page.get_by_role("button", name="Settings").click()
        for name, value in values.items():
            self.page.fill(f"#ComposeSettings-{name} :is(input, textarea)", str(value))

    def click(self, canvas: str, x: float, y: float) -> None:
        self.page.locator(f"#{canvas}-canvas canvas").scroll_into_view_if_needed()
        self.page.mouse.click(*self.at(canvas, x, y))

    def compose(self) -> list[Path]:
        """Press the button; the files that can be downloaded."""
        self.page.click("#compose")
        self.page.wait_for_selector("text=pixels changed outside")
        return self.downloads()

    def downloads(self) -> list[Path]:
        links = self.page.locator(".downloads a[download]:visible")
        links.first.wait_for()
        paths = []
        for index in range(links.count()):
            with self.page.expect_download() as download:
                links.nth(index).click()
            path = Path(download.value.path())
            paths.append(path.rename(path.with_name(download.value.suggested_filename)))
        return paths
