"""The queue: turns, bounds, cancelling, what stays on the disk and what a later queue makes of it."""

import errno
import json
import shutil
import threading
import time

import pytest
import torch

from compose.serve.jobs import JobQueue, QueueFull
from ldm.denoise import Cancelled, Step


@pytest.fixture
def make_queue(tmp_path):
    queues = []

    def make(workers=1, **options):
        queues.append(JobQueue(tmp_path / "jobs", [f"networks {i}" for i in range(workers)], **options))
        return queues[-1]

    yield make
    for queue in queues:
        queue.close()


def write_result(job, networks):
    (job.folder / "0.png").write_bytes(b"image")
    return {"networks": networks}


def blocked(gate):
    def work(job, networks):
        gate.wait(20)
        return write_result(job, networks)

    return work


def run(queue, work=write_result, kind="compose"):
    job = queue.submit(queue.open(kind), work)
    return job.finished.result(20)


def files(job):
    return sorted(path.relative_to(job.folder).as_posix() for path in job.folder.rglob("*"))


def test_done_job_leaves_its_result_and_no_upload(make_queue):
    queue = make_queue()
    job = queue.open("compose")
    (job.inputs / "room.png").write_bytes(b"upload")
    queue.submit(job, write_result)
    assert job.finished.result(20).state == "done"
    assert job.result == {"networks": "networks 0"}
    assert files(job) == ["0.png", "job.json"]
    assert job.folder.stat().st_mode & 0o777 == 0o700
    assert json.loads((job.folder / "job.json").read_text())["state"] == "done"
    assert queue.get(job.id) is job


def test_jobs_run_in_turn_and_know_their_position(make_queue):
    queue, gate, order = make_queue(), threading.Event(), []
    first = queue.submit(queue.open("compose"), blocked(gate))
    later = [queue.submit(queue.open("compose"), lambda job, own: order.append(job.id) or {}) for _ in "abc"]
    assert [queue.position(job) for job in later] == [0, 1, 2] or first.state == "queued"
    gate.set()
    assert [job.finished.result(20).state for job in later] == ["done"] * 3
    assert order == [job.id for job in later]


def test_each_worker_has_its_own_networks(make_queue):
    queue, barrier = make_queue(workers=2), threading.Barrier(2)
    jobs = [
        queue.submit(queue.open("compose"), lambda job, own: barrier.wait(20) is None or {"own": own})
        for _ in "ab"
    ]
    assert {job.finished.result(20).result["own"] for job in jobs} == {"networks 0", "networks 1"}


def test_full_queue_says_when_to_come_back(make_queue):
    queue, gate = make_queue(waiting=12), threading.Event()
    running = queue.submit(queue.open("compose"), blocked(gate))
    while running.state == "queued":
        time.sleep(0.01)
    waiting = [queue.submit(queue.open("paint"), write_result) for _ in range(12)]
    with pytest.raises(QueueFull, match="12 jobs are waiting; try again in 3 s") as full:
        queue.open("compose")
    assert full.value.retry_after == 3
    gate.set()
    assert [job.finished.result(20).state for job in (running, *waiting)] == ["done"] * 13
    assert run(queue).state == "done"


def test_one_client_may_send_so_many_a_minute(make_queue, monkeypatch):
    queue = make_queue(per_minute=2)
    for _ in "ab":
        queue.open("compose", "anne")
    with pytest.raises(QueueFull, match="2 requests a minute are allowed to one client; try again in 60 s"):
        queue.open("compose", "anne")
    queue.open("compose", "bert")
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 61)
    queue.open("compose", "anne")
    assert [client for client, _ in queue.recent] == ["anne"]


def test_client_that_was_refused_leaves_no_trace(make_queue):
    queue = make_queue(waiting=1)
    job = queue.open("compose", "anne")
    with pytest.raises(QueueFull):
        queue.open("compose", "bert")
    queue.cancel(job)
    assert queue.open("compose", "carl").state == "queued"


@pytest.mark.parametrize(
    ("error", "invalid", "text"),
    [
        (ValueError("--box is too small"), True, "--box is too small"),
        (MemoryError(), False, "not enough memory"),
        (RuntimeError("CUDA out of memory"), False, "not enough memory"),
        (OSError(28, "No space left", "/srv/disk"), False, "the server could not do it"),
        (KeyError("secret"), False, "the server could not do it"),
    ],
)
def test_failed_job_says_why_in_words_and_leaves_no_file(make_queue, error, invalid, text):
    def work(job, networks):
        write_result(job, networks)
        raise error

    queue = make_queue()
    job = run(queue, work)
    assert (job.state, job.invalid, job.result) == ("failed", invalid, None)
    assert job.error.startswith(text)
    assert files(job) == ["job.json"]
    assert run(queue).state == "done"


def steps(job, total=5, before=lambda number: None):
    monitor = job.monitor(lambda step: b"preview %d" % step.index)
    for number in range(total):
        before(number)
        if monitor.cancelled():
            raise Cancelled
        monitor.on_step(Step(number, total, torch.zeros(1)))
    return {}


def test_progress_counts_steps_and_the_preview_is_made_for_who_looks(make_queue):
    seen = []

    def work(job, networks):
        def before(number):
            seen.append((job.step, job.total, job.look() if number in (2, 3) else None, job.seconds_left))

        return steps(job, before=before)

    job = run(make_queue(), work)
    assert [entry[:2] for entry in seen] == [(0, 0), (1, 5), (2, 5), (3, 5), (4, 5)]
    assert [entry[2] for entry in seen] == [None, None, None, b"preview 2", None]
    assert seen[1][3] is None
    assert seen[4][3] >= 0
    assert job.preview is None
    assert job.seconds_left is None


def test_running_job_is_cancelled_between_steps(make_queue):
    at_two = threading.Event()
    go_on = threading.Event()

    def before(number):
        if number == 2:
            at_two.set()
            go_on.wait(20)

    queue = make_queue()
    job = queue.submit(queue.open("compose"), lambda job, own: steps(job, before=before))
    at_two.wait(20)
    queue.cancel(job)
    go_on.set()
    assert job.finished.result(20).state == "cancelled"
    assert job.step == 2
    assert files(job) == ["job.json"]


@pytest.mark.parametrize("submitted", [False, True])
def test_waiting_job_is_cancelled_at_once_and_never_runs(make_queue, submitted):
    queue, gate, ran = make_queue(), threading.Event(), []
    queue.submit(queue.open("compose"), blocked(gate))
    job = queue.open("compose")
    if submitted:
        queue.submit(job, lambda *given: ran.append(given) or {})
    queue.cancel(job)
    assert job.finished.result(1).state == "cancelled"
    assert queue.get(job.id) is job
    assert files(job) == ["job.json"]
    queue.submit(job, lambda *given: ran.append(given) or {})
    gate.set()
    assert run(queue).state == "done"
    assert ran == []


def test_ended_job_that_is_cancelled_is_removed(make_queue):
    queue = make_queue()
    job = run(queue)
    queue.cancel(job)
    assert not job.folder.exists()
    with pytest.raises(KeyError):
        queue.get(job.id)


def test_results_go_when_their_time_is_over(make_queue, monkeypatch):
    queue = make_queue(keep_s=100)
    job, now = run(queue), time.time
    monkeypatch.setattr(time, "time", lambda: now() + 99)
    assert queue.get(job.id) is job
    monkeypatch.setattr(time, "time", lambda: now() + 101)
    with pytest.raises(KeyError):
        queue.get(job.id)
    assert not job.folder.exists()


def test_later_queue_hands_out_results_and_names_what_was_lost(make_queue, tmp_path):
    queue = make_queue()
    done, gate = run(queue), threading.Event()
    running = queue.submit(queue.open("compose"), blocked(gate))
    waiting = queue.open("paint")
    (waiting.inputs / "room.png").write_bytes(b"upload")
    stray, mine = tmp_path / "jobs" / f"job-{'0' * 32}", tmp_path / "jobs" / "mine"
    stray.mkdir()
    mine.mkdir()
    (stray / "half").touch()
    later = make_queue()  # as if the first had been killed
    assert later.get(done.id).as_json() == done.as_json()
    assert (later.get(done.id).folder / "0.png").read_bytes() == b"image"
    for job in (running, waiting):
        lost = later.get(job.id)
        assert (lost.state, lost.result) == ("failed", None)
        assert lost.error == "the server ended before this job was done; send it again"
        assert files(lost) == ["job.json"]
    assert not stray.exists()
    assert mine.exists()
    gate.set()


def test_result_that_cannot_be_stored_is_not_handed_out(make_queue):
    def work(job, networks):
        shutil.rmtree(job.folder)
        job.folder.write_bytes(b"a file in its place")
        return {"secret": 1}

    job = run(make_queue(), work)
    assert (job.state, job.result, job.error) == ("failed", None, "the server could not store the result")


def test_full_disk_takes_no_place_in_the_line(make_queue, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "no space left", "/srv/secret")

    queue = make_queue(waiting=1)
    monkeypatch.setattr("compose.serve.jobs.write_json", full)
    for _ in "ab":
        with pytest.raises(QueueFull, match="^the server cannot store a request now; try again in 60 s$"):
            queue.open("compose")
    monkeypatch.undo()
    assert list(queue.folder.glob("job-*")) == []
    assert run(queue).state == "done"


def test_folder_that_others_can_read_is_refused(tmp_path):
    tmp_path.chmod(0o755)
    with pytest.raises(ValueError, match="others can read it; chmod 700 it, or name another folder"):
        JobQueue(tmp_path, [None])
