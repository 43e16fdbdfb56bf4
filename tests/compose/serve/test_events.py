"""What an answer of the page says: what goes on, its number, errors; and the depth of every background."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

from compose.serve import page, page_compose
from compose.serve.desk import PLACE, Desk, Visit
from compose.serve.jobs import DEPTH, JobQueue, QueueFull
from compose.serve.page import GONE, Events, nothing, status_of_work
from compose.serve.page_jobs import JobsDesk
from compose.serve.settings import ServeSettings
from ldm.images import write_png
from tests.images import room

REQUEST = SimpleNamespace(client=SimpleNamespace(host="127.0.0.1"))
LOOKS = (PLACE, "paint in", "scene", "blend")


def answered(act=nothing, show=lambda visit: ["shown"], visit=None, go_on=lambda visit: "text", **event):
    """The answer to an event; with `work` to a question."""
    with gr.Blocks():
        status, out = status_of_work(), gr.HTML()
        made = []
        Events(status, [gr.State()], [], go_on).on(
            lambda run, *how, **more: made.append(run), act, show, [out]
        )
    target = status if "work" in event else out
    return made[0](visit, {}, SimpleNamespace(target=target, **event), REQUEST)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("mask /tmp/bifrost-images-x/a.png is empty"), "mask a.png is empty"),
        (ValueError("steps must be in [1, 1000], got 0"), "steps must be in [1, 1000], got 0"),
        (ValueError("<b>name of /home/anne/secret/dog.png"), "&lt;b&gt;name of dog.png"),
        (QueueFull("32 jobs are waiting", 4), "32 jobs are waiting; try again in 4 s"),
    ],
)
@pytest.mark.parametrize("where", ["act", "show", "go_on"])
def test_errors_are_said_without_folders_and_markup(error, said, where):
    def fails(*values):
        raise error

    visit = Visit()
    visit.text = "the last result"
    shown, told = answered(visit=visit, **{where: fails})
    assert shown == gr.skip()
    assert (told["error"], told["number"], told["text"]) == (
        said,
        0,
        "text" if where == "show" else visit.text,
    )
    assert answered(visit=visit)[1]["number"] == 1  # after a number that is none the page asks for everything


def test_a_visit_that_ended_is_said():
    shown, told = answered()
    assert (shown, told) == (gr.skip(), {"work": [], "number": 0, "text": "", "error": GONE})


def test_answers_are_numbered_and_carry_what_the_visitor_should_know():
    visit = Visit()
    acts = (lambda visit, event: "The outline is estimated"), nothing
    told = [answered(act, visit=visit)[1] for act in acts]
    assert [one["number"] for one in told] == [1, 2]
    assert [one["info"] for one in told] == ["The outline is estimated", None]
    assert visit.client == "127.0.0.1"


@pytest.mark.parametrize(
    ("known", "now", "is_shown"),
    [
        (["depth"], ["depth"], False),
        (["depth", "compose"], ["compose"], True),
        (["depth"], [], True),
        (None, ["depth"], True),  # answers were lost
        (None, [], True),
    ],
)
def test_a_question_is_answered_with_everything_where_something_is_over(known, now, is_shown):
    visit = Visit()
    visit.jobs = {kind: SimpleNamespace(state="running") for kind in now}
    shown, told = answered(visit=visit, work=known)
    assert shown == ("shown" if is_shown else gr.skip())
    assert (told["work"], told["text"]) == (now, "text")


def test_what_ends_while_the_answer_is_made_is_asked_for_again():
    visit = Visit()
    visit.jobs["compose"] = job = SimpleNamespace(state="running")
    _, told = answered(show=lambda visit: setattr(job, "state", "done") or [1], visit=visit)
    assert told["work"] == ["compose"]


# the depth of a background


@pytest.fixture
def tab(tmp_path):
    """The Compose tab; its depth network answers when `may` is set, with `error` if there is one."""

    def estimate(background):
        assert tab.may.wait(20)
        if tab.error:
            raise tab.error
        return np.full(background.size, background.rgb_u8.mean() / 255)

    models = SimpleNamespace(depth=SimpleNamespace(estimate=estimate))
    networks = SimpleNamespace(device="cpu", of=lambda settings: models)
    queue = JobQueue(tmp_path / "jobs", [networks], waiting=2)
    with gr.Blocks():
        tab = page_compose.ComposeTab(page.Site(queue, ServeSettings()), gr.State())
    tab.may, tab.error = threading.Event(), None
    yield tab
    tab.may.set()
    queue.close()


@pytest.fixture
def desk(tmp_path):
    made = Desk(None, None)
    give(made, tmp_path / "a.png", 20)
    return made


def give(desk, path, side):
    write_png(path, room(side, side))
    desk.take("background", path)


def over(desk):
    """Wait until the jobs of a visitor have ended."""
    end = time.monotonic() + 20
    while desk.work:
        assert time.monotonic() < end
        time.sleep(0.005)


def words(desk):
    return page_compose.scene(desk, *LOOKS)[1]


def test_the_depth_is_said_while_it_is_estimated(tab, desk):
    tab.go_on(desk)
    tab.go_on(desk)
    assert (desk.work, words(desk), len(tab.site.queue.jobs)) == ([DEPTH], "The depth is being estimated", 1)
    tab.may.set()
    over(desk)
    assert (words(desk), desk.depth_01.shape) == ("", (20, 20))


def test_a_background_that_comes_during_the_depth_of_another_gets_its_own(tab, desk, tmp_path):
    tab.go_on(desk)
    give(desk, tmp_path / "b.png", 30)
    assert desk.work == [DEPTH]
    tab.go_on(desk)
    tab.may.set()
    over(desk)
    assert (words(desk), desk.depth_01.shape) == ("", (30, 30))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("background: <b> is empty"), "background: &lt;b&gt; is empty"),
        (RuntimeError("secret"), "the server could not do it; its log says why"),
    ],
)
def test_a_depth_that_fails_is_said_and_can_be_tried_again(tab, desk, tmp_path, error, said):
    tab.may.set()
    tab.error = error
    tab.go_on(desk)
    over(desk)
    tab.go_on(desk)
    assert (words(desk), desk.work) == (f"The depth could not be estimated: {said}", [])
    tab.error = None
    give(desk, tmp_path / "b.png", 30)
    tab.go_on(desk)
    over(desk)
    assert words(desk) == ""


def test_the_button_cancel_leaves_the_depth(tab, desk):
    tab.go_on(desk)
    tab.site.begin(desk, "compose", {}, lambda files: lambda job, networks: {})
    tab.site.cancel(desk)
    assert desk.jobs["compose"].state == "cancelled"
    assert tab.go_on(desk) == "Cancelled after 0 of 0 steps"
    tab.may.set()
    over(desk)
    assert words(desk) == ""


def test_a_full_queue_is_asked_again(tab, desk):
    waiting = [tab.site.queue.open("test") for _ in range(2)]
    tab.go_on(desk)
    assert (desk.work, words(desk), desk.jobs) == ([DEPTH], "The depth is being estimated", {})
    for job in waiting:
        tab.site.queue.cancel(job)
    tab.may.set()
    tab.go_on(desk)
    over(desk)
    assert words(desk) == ""


def test_a_depth_map_ends_the_wait(tab, desk, tmp_path):
    tab.go_on(desk)
    write_png(tmp_path / "depth.png", np.full((20, 20), 40000, np.uint16))
    desk.take("background_depth", tmp_path / "depth.png")
    given = desk.depth_01
    assert words(desk) == ""
    tab.may.set()
    over(desk)
    assert desk.depth_01 is given


# jobs


def test_one_job_of_a_kind_at_a_time(tab, desk):
    for kind in ("compose", "compose", "place"):
        tab.site.begin(desk, kind, {}, lambda files: lambda job, networks: tab.may.wait(20) and {} or {})
    assert [job.kind for job in tab.site.queue.jobs.values()] == ["compose", "place"]
    assert [*desk.jobs] == ["compose", "place"]
    tab.may.set()
    desk.depth_01 = np.zeros((20, 20))
    over(desk)
    assert tab.go_on(desk) == ""
    tab.site.begin(desk, "compose", {}, lambda files: lambda job, networks: {})
    assert [*desk.jobs] == ["place", "compose"]  # the newest is what the tab tells of


def test_a_job_that_fails_says_so_as_long_as_it_is_the_last(tab, desk):
    def fails(job, networks):
        raise ValueError("steps <b> must be in [1, 1000]")

    desk.depth_01 = np.zeros((20, 20))
    tab.site.begin(desk, "compose", {}, lambda files: fails)
    over(desk)
    for _ in range(2):
        assert tab.go_on(desk) == "<p role='alert'>steps &lt;b&gt; must be in [1, 1000]</p>"


def test_a_file_of_jobs_goes_on_until_all_have_ended():
    desk = JobsDesk()
    assert desk.work == []
    desk.listed = [SimpleNamespace(name="a"), SimpleNamespace(name="b")]
    desk.jobs = {"compose 0": SimpleNamespace(state="done")}
    assert desk.work == ["b"]
    for state, work in {"queued": ["compose 1"], "running": ["compose 1"], "failed": []}.items():
        desk.jobs["compose 1"] = SimpleNamespace(state=state)
        assert desk.work == work
