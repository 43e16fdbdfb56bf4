"""Jobs of the server: a bounded queue, a worker per device, results kept on the disk for a stated time.

A job is the folder DIR/job-<32 hex digits> that only its owner can read: uploads, results, job.json. Uploads
are removed when the job ends, everything when its time is over. `job.json` with the state "done" is written
after the results and before anybody hears of them, and a later server with the same folder hands them out.
Of a job that a dying server had not finished, only the state "failed" stays.
"""

import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.denoise import Cancelled, Monitor, Step
from ldm.files import read_json, write_json
from ldm.settings.resources import lacks_memory, user_message
from ldm.temporary import FOLDER

log = logging.getLogger(__name__)

Work = Callable[["Job", Any], dict[str, Any]]
NAME = re.compile(r"job-([0-9a-f]{32})")
RECORD, INPUTS = "job.json", f"{FOLDER}uploads"  # recipes name the files of such a folder without it
ENDED, DEPTH = ("done", "failed", "cancelled"), "depth"  # states; kind of the page's own jobs
SWEEP = 5.0  # seconds between two looks for jobs whose time is over; chosen
MINUTE = 60.0
SOME = 4  # who is refused may come again when a quarter of the line is done; chosen: workers never idle


class QueueFull(Exception):
    """No further job is taken now. retry_after: seconds after which it is worth another try."""

    def __init__(self, reason: str, retry_after: float) -> None:
        self.retry_after = max(1, min(600, round(retry_after)))
        super().__init__(f"{reason}; try again in {self.retry_after} s")


@dataclass(eq=False)
class Job:
    """One piece of work. Threads other than the worker's only read it, and `cancel` or `look`."""

    id: str
    kind: str  # compose, paint, ...
    folder: Path
    created: float = field(default_factory=time.time)  # seconds since the epoch
    state: str = "queued"  # then running, then one of ENDED
    ended: float | None = None
    error: str | None = None  # in words, without paths of the server
    invalid: bool = False  # the error is one of the request, not of the server
    result: dict[str, Any] | None = None
    names: dict[str, str] = field(default_factory=dict)  # path of an upload -> what errors call it
    step: int = 0
    total: int = 0
    seconds_left: float | None = None
    preview: bytes | None = None  # PNG of the crop, of the step after the last `look`
    finished: Future = field(default_factory=Future)  # of the job itself, when it has ended
    stopped: bool = False  # `cancel` was called
    watched: bool = False
    started: float = 0.0

    @property
    def inputs(self) -> Path:
        return self.folder / INPUTS

    def look(self) -> bytes | None:
        """The newest preview, a PNG; asks for another one after the next step."""
        self.watched = self.state not in ENDED
        return self.preview

    def monitor(self, preview: Callable[[Step], bytes]) -> Monitor:
        """What the sampler reports to. preview: makes a PNG of a step; called where someone looks."""

        def on_step(step: Step) -> None:
            now = time.monotonic()
            self.step, self.total = step.index + 1, step.total
            self.started = self.started if step.index else now
            if step.index:  # the first step warms up
                self.seconds_left = (now - self.started) / step.index * (self.total - self.step)
            if self.watched:
                self.watched, self.preview = False, preview(step)

        return Monitor(on_step, lambda: self.stopped, progress=False)

    def as_json(self) -> dict[str, Any]:
        names = ("id", "kind", "state", "created", "ended", "step", "total", "seconds_left", "error")
        return {name: getattr(self, name) for name in (*names, "result")}

    def write(self, state: str) -> None:
        """job.json, from which a later server knows the job."""
        write_json(self.folder / RECORD, {**self.as_json(), "state": state, "invalid": self.invalid})


class JobQueue:
    """Takes jobs in turn; one queue at a time has its folder."""

    def __init__(
        self,
        folder: Path,
        workers: Sequence[Any],
        *,
        waiting: int = 32,
        keep_s: float = 3600,
        per_minute: int = 0,
        clean: Callable[[str, Job], str] = lambda text, job: text,
    ) -> None:
        """workers: what each worker thread hands to the work, such as the networks of a device.

        waiting: jobs that may wait. keep_s: seconds that results stay. per_minute: jobs of one client, 0 =
        any number. clean: takes paths of the server out of an error. ValueError where others read the folder.
        """
        self.folder, self.waiting, self.keep_s, self.per_minute = folder, waiting, keep_s, per_minute
        self.clean, self.workers = clean, workers
        self.jobs: dict[str, Job] = {}
        self.line: deque[tuple[Job, Work]] = deque()
        self.recent: list[tuple[str, float]] = []  # client and time of the jobs of the last minute
        self.seconds = 1.0  # moving average of a job
        self.closed, self.changed = False, threading.Condition()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.name == "posix" and folder.stat().st_mode & 0o077:
            raise ValueError(f"--out {folder}: others can read it; chmod 700 it, or name another folder")
        self._adopt()
        self.threads = [threading.Thread(target=self._run, args=(own,), daemon=True) for own in workers]
        for thread in self.threads:
            thread.start()

    def open(self, kind: str, client: str = "") -> Job:
        """A new job with its own folder, which counts as waiting; `submit` or `cancel` must follow."""
        with self.changed:
            now = time.monotonic()
            self.recent = [entry for entry in self.recent if entry[1] > now - MINUTE]
            times = [seen for name, seen in self.recent if name == client]
            if self.per_minute and len(times) >= self.per_minute:
                reason = f"{self.per_minute} requests a minute are allowed to one client"
                raise QueueFull(reason, times[0] + MINUTE - now)
            queued = sum(job.state == "queued" for job in self.jobs.values())
            if queued >= self.waiting or self.closed:
                seconds = self.seconds * queued / len(self.workers)
                raise QueueFull(f"{queued} jobs are waiting", seconds / SOME)
            self.recent.append((client, now))
            identity = secrets.token_hex(16)
            job = Job(identity, kind, self.folder / f"job-{identity}")
            self.jobs[identity] = job
        try:
            job.folder.mkdir(mode=0o700)
            job.inputs.mkdir(mode=0o700)
            job.write(job.state)
        except (OSError, ValueError):  # such as a full disk
            log.exception("job %s", job.id)
            self._remove(job)
            raise QueueFull("the server cannot store a request now", MINUTE) from None
        return job

    def submit(self, job: Job, work: Work) -> Job:
        """Put an opened job into the line. work: returns JSON values, the result; files go to job.folder."""
        with self.changed:
            if job.state == "queued":
                self.line.append((job, work))
            self.changed.notify()
        return job

    def get(self, identity: str) -> Job:
        """KeyError where there is no such job, or its time is over."""
        self.sweep()
        return self.jobs[identity]

    def position(self, job: Job) -> int:
        with self.changed:
            return next((place for place, (other, _) in enumerate(self.line) if other is job), 0)

    def cancel(self, job: Job) -> None:
        """End a job before its next step; one that has ended is removed with its files."""
        with self.changed:
            before, job.stopped = job.state, True
            self.line = deque(entry for entry in self.line if entry[0] is not job)
            if before in ENDED:
                self._remove(job)
            elif before == "queued":
                job.state = "cancelled"  # so that it is not submitted any more
        if before == "queued":
            self._end(job, "cancelled")

    def sweep(self) -> None:
        """Remove the jobs whose time is over."""
        with self.changed:
            for job in list(self.jobs.values()):
                if job.ended is not None and job.ended + self.keep_s < time.time():
                    self._remove(job)

    def close(self) -> None:
        """Cancel what runs and waits; results stay on the disk."""
        with self.changed:
            self.closed = True
            unfinished = [job for job in self.jobs.values() if job.state not in ENDED]
            self.changed.notify_all()
        for job in unfinished:
            self.cancel(job)
        for thread in self.threads:
            thread.join(timeout=MINUTE)

    def _remove(self, job: Job) -> None:
        self.jobs.pop(job.id, None)
        shutil.rmtree(job.folder, ignore_errors=True)

    def _adopt(self) -> None:
        """Take over what an earlier server left: results stay, the rest is removed."""
        for folder in self.folder.iterdir():
            found = NAME.fullmatch(folder.name)
            if not found or folder.is_symlink():
                continue
            try:
                kept = read_json(folder / RECORD)
                job = Job(found[1], kept["kind"], folder, kept["created"])
                for name in ("state", "ended", "step", "total", "error", "invalid", "result"):
                    setattr(job, name, kept[name])
            except (ValueError, KeyError):  # it died before the first line
                shutil.rmtree(folder, ignore_errors=True)
                continue
            self.jobs[job.id] = job
            if job.state not in ENDED:
                job.error = "the server ended before this job was done; send it again"
                self._end(job, "failed")

    def _run(self, own: Any) -> None:
        while not self.closed:
            with self.changed:
                if not self.line:
                    self.changed.wait(SWEEP)
                job, work = self.line.popleft() if self.line else (None, None)
                if job is not None:
                    job.state = "running"
            self.sweep()
            if job is None or work is None:
                continue
            start, state = time.monotonic(), "failed"
            try:
                job.result = work(job, own)
                state = "done"
            except Cancelled:
                state = "cancelled"
            except Exception as error:
                job.invalid = isinstance(error, ValueError)
                message = user_message(error) if job.invalid or lacks_memory(error) else None
                if not job.invalid:
                    log.exception("job %s", job.id)
                job.error = self.clean(message or "the server could not do it; its log says why", job)
            self.seconds += 0.2 * (time.monotonic() - start - self.seconds)
            del work
            self._end(job, state)

    def _end(self, job: Job, state: str) -> None:
        """Leave the results of a job that is done and the record; then others hear of it."""
        job.preview, job.seconds_left, job.ended = None, None, time.time()
        try:
            for path in job.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif state != "done" and path.name != RECORD:
                    path.unlink()
            job.write(state)
        except (OSError, ValueError):
            log.exception("job %s", job.id)
            if state == "done":
                state, job.result, job.error = "failed", None, "the server could not store the result"
        job.state = state
        if not job.finished.done():
            job.finished.set_result(job)
