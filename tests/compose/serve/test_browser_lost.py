"""The page in a real browser while answers are lost or late: no text stays whose end was not heard of."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from compose.models import JobNetworks
from compose.serve import page
from compose.serve.app import make_app, make_queue
from compose.serve.settings import ServeSettings
from tests.compose.serve.browsing import TENT, listening

pytestmark = pytest.mark.slow
BEING = "The depth is being estimated"


class ClosesLate:
    """What ends a stream of several answers comes after the next event has joined it."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def late(message):
            if b'"close_stream"' in message.get("body", b""):
                await asyncio.sleep(1)
            await send(message)

        await self.app(scope, receive, late)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    queue = make_queue(ServeSettings(out=tmp_path_factory.mktemp("serve") / "out", devices=("cpu",)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "LATE", 500)
        app = make_app(ServeSettings(out=queue.folder), queue)
    with listening(ClosesLate(app)) as address:
        yield address
    queue.close()


@pytest.fixture
def depth(monkeypatch):
    """Depth is estimated when it is set."""
    may, load = threading.Event(), JobNetworks.of
    monkeypatch.setattr(JobNetworks, "of", lambda *given: may.wait(60) and load(*given))
    yield may
    may.set()


def test_no_answer_is_lost_where_a_stream_closes_late(visit):
    time.sleep(1.5)  # that of the first answers
    visit.page.set_default_timeout(20_000)
    visit.prepare()
    visit.drag("background", (0.2, 0.2), (0.5, 0.6))
    visit.until("#visible .prose", "% visible")
    visit.compose()


def questions(visit, what):
    """what(route, number): instead of the answer to a question of the page; None: it is answered"""
    count = 0

    def handle(route):
        nonlocal count
        asks = "work" in (route.request.post_data_json.get("event_data") or {})
        count += asks
        if not asks or what(route, count) is None:
            route.continue_()

    visit.page.route("**/run/predict", handle)


@pytest.mark.parametrize("lost", [{1}, {1, 2, 3}, {2, 4}], ids=str)
def test_lost_answers_are_asked_for_again(visit, depth, lost):
    visit.give("background", TENT / "room.png")
    visit.until("#visible .prose", BEING)
    questions(visit, lambda route, number: number in lost or None)
    depth.set()
    visit.until("#visible .prose", "")
    visit.settled("background")


def test_an_answer_that_was_overtaken_is_corrected(visit, depth):
    held = []

    def hold(route):
        if not held and route.request.post_data_json.get("event_data") == {}:  # of the stroke
            held.append((route, route.fetch()))
        else:
            route.continue_()

    visit.give("background", TENT / "room.png")
    visit.until("#visible .prose", BEING)
    visit.page.route("**/run/predict", hold)
    visit.click("background", 0.5, 0.5)
    while not held:
        visit.page.wait_for_timeout(20)
    depth.set()
    visit.until("#visible .prose", "")
    visit.page.evaluate(
        """() => {
            window.seen = [];
            const look = () => window.seen.push(document.querySelector('#visible').innerText);
            new MutationObserver(look).observe(document.body, {subtree: true, childList: true});
        }"""
    )
    route, answer = held[0]
    route.fulfill(response=answer)
    visit.page.wait_for_function(f"seen.some((text) => text.includes('{BEING}'))")
    visit.until("#visible .prose", "")


def test_the_depth_of_a_second_background_is_told(visit, depth, tmp_path):
    visit.give("background", TENT / "room.png")
    visit.until("#visible .prose", BEING)
    visit.give("background", TENT / "object.png")
    visit.page.wait_for_timeout(1000)
    depth.set()
    visit.until("#visible .prose", "")


def test_a_depth_that_fails_is_said(visit, monkeypatch):
    def fails(*given):
        raise ValueError("no depth network is here")

    monkeypatch.setattr(JobNetworks, "of", fails)
    visit.give("background", TENT / "room.png")
    visit.until("#visible .prose", "The depth could not be estimated: no depth network is here")


def test_the_button_cancel_leaves_the_depth(visit, depth):
    visit.give("background", TENT / "room.png")
    visit.until("#visible .prose", BEING)
    visit.page.click("#cancel")
    visit.page.wait_for_timeout(500)
    depth.set()
    visit.until("#visible .prose", "")


@pytest.mark.parametrize("lost", [{1}, {1, 2}], ids=str)
def test_a_composite_is_told_though_answers_are_lost(visit, lost):
    visit.prepare()
    visit.drag("background", (0.2, 0.2), (0.5, 0.6))
    visit.until("#visible .prose", "% visible")
    questions(visit, lambda route, number: number in lost or None)
    visit.compose()
