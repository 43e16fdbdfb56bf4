"""What is done on a surface of the page is done once, in its order, whichever event brings it first."""

import random

import pytest

from compose.serve.desk import MASK, NAME, PLACE, Desk, Visit
from compose.serve.page_regions import RegionsDesk
from tests.compose.serve.test_desk import desk  # noqa: F401
from tests.images import Case

FIRST, LAST = [0.1, 0.1, 0.4, 0.4], [0.3, 0.3, 0.6, 0.7]


class Recorder(Visit):
    """Keeps what is done."""

    def act(self, surface, act):
        self.__dict__.setdefault("acts", []).append((surface, act["number"]))


def box(number: int, value: list[float], tool: str = PLACE) -> dict:
    return {
        "number": number,
        "means": [tool, "paint in"],
        "box": value,
        "points": [value[:2]],
        "radius": 0.05,
    }


def test_events_that_overtake_each_other_do_each_act_once():
    visit, acts = Recorder(), [{"number": number} for number in range(1, 6)]
    events = [acts[first:last] for first in range(5) for last in range(first + 1, 6) if first == 0]
    random.Random(0).shuffle(events)
    for event in events:
        visit.catch_up({"background": event, "object": event[:1]})
    assert [number for surface, number in visit.acts if surface == "background"] == [1, 2, 3, 4, 5]
    assert [number for surface, number in visit.acts if surface == "object"] == [1]


@pytest.mark.parametrize("tool", [PLACE, NAME])
def test_an_older_box_that_comes_later_does_not_replace_the_last(desk: Desk, tool):  # noqa: F811
    desk.catch_up({"background": [box(2, LAST, tool)]})
    desk.catch_up({"background": [box(1, FIRST, tool)]})
    assert (desk.pending if tool == NAME else desk.box) == tuple(LAST)


def test_an_older_depth_that_comes_later_does_not_replace_the_last(desk: Desk):  # noqa: F811
    desk.catch_up({"background": [box(1, FIRST), {"number": 3, "depth": 0.25}]})
    desk.catch_up({"background": [{"number": 2, "depth": 0.75}]})
    assert desk.depth == (0.25,)
    assert desk.done["background"] == 3


def test_a_box_drawn_before_the_tool_changed_is_a_box(desk: Desk):  # noqa: F811
    desk.catch_up({"background": [box(1, FIRST, MASK)]})
    assert (desk.box, desk.target) == (tuple(FIRST), None)


def test_what_fails_is_done_once_and_what_follows_is_not_lost(desk: Desk):  # noqa: F811
    log = {"background": [box(1, [0.5, 0.5, 0.4, 0.6]), box(2, LAST)]}
    with pytest.raises(ValueError, match="it is inverted"):
        desk.catch_up(log)
    desk.catch_up(log)
    assert desk.box == tuple(LAST)


def test_strokes_of_regions_keep_their_order(case: Case):
    painting = RegionsDesk()
    painting.take(case.folder / "room.png")
    stroke = {"points": [[0.2, 0.2], [0.4, 0.4]], "radius": 0.05}
    paint, rub = {**stroke, "number": 1, "means": [0, True]}, {**stroke, "number": 2, "means": [0, False]}
    painting.catch_up({"painting": [paint, rub]})
    painting.catch_up({"painting": [paint]})
    assert painting.masks == []
