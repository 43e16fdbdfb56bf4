"""What the tabs of the page share: drawing surfaces, controls, files, jobs, results, events.

Images for the screen are JPEG; files are used as they come, and results leave as PNG. No file passes through
Gradio, whose addresses name folders of the server: `Site.receive` takes those of visitors, and results have
the addresses of the HTTP API.
Gradio's queue has no part in events. It sends all answers over one stream per page, and loses those of an
event that joins while that stream is being closed (Gradio 6.31). What goes on is asked for, see status.js: no
text stays because the answer that ends it was lost.
"""

import base64
import contextlib
import html
import json
import os
import secrets
import shutil
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr
import numpy as np
from fastapi import UploadFile
from tqdm.auto import tqdm

from compose.serve.desk import Visit
from compose.serve.jobs import DEPTH, ENDED, Job, JobQueue, QueueFull, Work
from compose.serve.settings import ServeSettings
from compose.serve.uploads import check_image, store, without_paths
from ldm.decode import LoadedImage
from ldm.files import read_text
from ldm.images import encode_image
from ldm.settings.schema import flat_settings, from_text
from ldm.temporary import FOLDER

CANVAS = read_text(Path(__file__).with_name("canvas.js"))
CSS = read_text(Path(__file__).with_name("canvas.css"))
RESULT = read_text(Path(__file__).with_name("result.css"))
WAITS = 600  # seconds in which the page names a file that was sent; chosen
UNTAKEN = 2000, 16  # files that no page has named yet: their number, their bytes in largest requests; chosen
BRUSH = 0.025  # radius of the brush, of the longer side; chosen
IMAGE_FILES = "accept='image/*'"
Act = Callable[..., Any]
POLL, LATE = 200, 5000  # ms between two questions, until one counts as lost; chosen
STATUS = read_text(Path(__file__).with_name("status.js"))
EVENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
EVENT |= {"trigger_mode": "multiple"}  # one answer that is late holds up no other
GONE = "not ready yet, or this visit has ended: try again, or load the page again"
LOG = read_text(Path(__file__).with_name("acts.js"))


def as_url(image_u8: np.ndarray) -> str:
    """An image (h, w, 3) for the screen."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_image(LoadedImage(image_u8), ".jpg")).decode()


def controls_of(schema: type, names: Sequence[str]) -> list[Any]:
    """Controls made of the declarations of settings; an empty one leaves the choice to the model."""
    controls: list[Any] = []
    for name in names:
        field, hint = flat_settings(schema)[name]
        about = field.metadata
        shared = {"label": name.replace("_", " "), "info": about["help"], "value": field.default or ""}
        shared["elem_id"] = f"{schema.__name__}-{name}"
        if about["choices"]:
            choices = [*([] if field.default else [("", "")]), *about["choices"]]
            controls.append(gr.Dropdown(choices, **shared))
        elif hint is bool:
            controls.append(gr.Checkbox(**{**shared, "value": field.default}))
        elif hint in (int, float):
            limits = {"minimum": about["low"], "maximum": about["high"], "value": field.default}
            controls.append(gr.Number(**{**shared, **limits}, precision=0 if hint is int else None))
        else:  # an empty gr.Number would become 0
            controls.append(gr.Textbox(**shared))
    return controls


def values_of(schema: type, names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """What controls say, by the names of their settings; without those that are empty."""
    hints = flat_settings(schema)
    given = {name: value for name, value in zip(names, values, strict=True) if value not in (None, "")}
    return {name: from_text(hints[name][1], str(value)) for name, value in given.items()}


class Site:
    """The server, as the tabs see it."""

    def __init__(self, queue: JobQueue, settings: ServeSettings) -> None:
        self.queue, self.settings, self.inbox = queue, settings, queue.folder / "page"
        shutil.rmtree(self.inbox, ignore_errors=True)  # of an earlier server
        self.inbox.mkdir(mode=0o700)
        self.receiving, self.ready = Lock(), dict[Any, Any]()  # what components become once a visit begins

    def surface(
        self, files: Mapping[str, str], what: str, tall: float = 0.7, more: str = IMAGE_FILES
    ) -> gr.HTML:
        """A drawing surface, see canvas.js, with buttons for files; what falls on it goes to the first.

        files: event when files of that button were sent -> its label. what: belongs on the surface
        tall: its height at most, of the window. more: attributes of the buttons
        """
        choose = f"<input type='file' {more}></label>"
        buttons = [f"<label id='{name}'>{text}{choose}" for name, text in files.items()]
        address = f"{self.settings.root_path}/page/files"
        canvas = f"<canvas data-hint='Drop {what} here, or tap' data-tall='{tall}'></canvas>"
        made = gr.HTML(
            {"waits": True, "hint": "One moment"},  # type: ignore[arg-type]
            html_template=f"{canvas}<div class='files'>{''.join(buttons)}</div>",
            css_template=CSS,
            js_on_load=f"const names = {json.dumps([*files])}, address = '{address}';\n{CANVAS}",
            elem_id=f"{next(iter(files))}-canvas",
        )
        self.ready[made] = {}
        return made

    def receive(self, files: list[UploadFile]) -> list[str]:
        """Keep files; returns a name for each, good for one event of the page. QueueFull above `UNTAKEN`."""
        with self.receiving:
            sizes = [file.size or 0 for file in files]
            for path in (path for path in self.inbox.iterdir() if not path.name.startswith(FOLDER)):
                with contextlib.suppress(OSError):  # it was taken just now
                    if path.stat().st_mtime < time.time() - WAITS:
                        shutil.rmtree(path)
                    else:
                        sizes += [file.stat().st_size for file in path.iterdir()]
            if len(sizes) > UNTAKEN[0] or sum(sizes) > UNTAKEN[1] * self.settings.max_mb * 1_000_000:
                raise QueueFull("too many files were sent to the page and not used", WAITS)
            names = [secrets.token_hex(16) for _ in files]
            for own, file in zip(names, files, strict=True):
                (self.inbox / own).mkdir(mode=0o700)
                name = os.path.basename((file.filename or "").replace("\\", "/").replace("\0", ""))
                with (self.inbox / own / (name.lstrip(".")[-60:] or "file")).open("xb") as copy:
                    shutil.copyfileobj(file.file, copy)
        return names

    def files_of(self, visit: Visit, event: gr.EventData) -> list[Path]:
        """The files of an event; from now on they are the visitor's, as long as the visit lasts."""
        if event.error:
            raise ValueError(event.error)
        paths: list[Path] = []
        for name in event.files:
            own = self.inbox / f"{FOLDER}{secrets.token_hex(16)}"
            try:
                (self.inbox / f"{int(name, 16):032x}").rename(own)  # what is no number is no name
            except (OSError, ValueError):
                raise ValueError("the file is not here any more: give it again") from None
            weakref.finalize(visit, shutil.rmtree, own, ignore_errors=True)
            paths += own.iterdir()
        for path in paths:
            if path.suffix != ".jsonl":
                check_image(path.name, path, self.settings)
        return paths

    def begin(
        self, visit: Visit, kind: str, files: Mapping[str, Path], work: Callable[[dict[str, Any]], Work]
    ) -> bool:
        """A new job, False where one of its kind is not done yet. work: made of the copies of the files"""
        if (last := visit.jobs.get(kind)) is not None and last.state not in ENDED:
            return False
        job = self.queue.open(kind, visit.client)
        try:
            copies = ((name, path.read_bytes()) for name, path in files.items())
            own = work({name: store(job, name, data, self.settings) for name, data in copies})
        except (OSError, ValueError):
            self.queue.cancel(job)
            raise
        visit.jobs.pop(kind, None)
        visit.jobs[kind] = self.queue.submit(job, own)  # the newest is the last
        return True

    def cancel(self, visit: Visit) -> None:
        for kind in set(visit.work) & visit.jobs.keys() - {DEPTH}:
            self.queue.cancel(visit.jobs[kind])

    def told(self, words: Callable[[Any], list[str]], visit: Visit) -> str:
        """HTML of the newest job: steps, time left and preview, or what came of it. words: of its report"""
        jobs = [job for kind, job in visit.jobs.items() if kind != DEPTH]
        if not jobs:
            return ""
        job, state = jobs[-1], jobs[-1].state
        if state == "done":
            report = (job.result or {}).get("report")
            return self.shown(job, words(report)) if report else ""
        if state == "failed":
            return f"<p role='alert'>{html.escape(job.error or '')}</p>"
        if state == "cancelled":
            return f"Cancelled after {job.step} of {job.total} steps"
        text = f"Waiting, {self.queue.position(job)} before this one" if state == "queued" else "Preparing"
        if job.total:
            left = "" if job.seconds_left is None else f", {tqdm.format_interval(job.seconds_left)} left"
            text = f"Step {job.step} of {job.total}{left}"
            text += f"<progress max={job.total} value={job.step} style='width: 100%'></progress>"
        if preview := job.look():
            data = base64.b64encode(preview).decode()
            text += f"<img alt='preview' style='height: 10em' src='data:image/png;base64,{data}'>"
        return text

    def link(self, job: Job, name: str, save_as: str) -> str:
        return f"<a href='{self.address(job, name)}' download='{save_as}'>{save_as}</a>"

    def address(self, job: Job, name: str) -> str:
        return f"{self.settings.root_path}/v1/jobs/{job.id}/{name}"

    def shown(self, job: Job, lines: Sequence[str]) -> str:
        """HTML of a job that is done: before and after, samples, lines about it, files."""
        assert job.result is not None
        *files, before = job.result["files"]
        samples = [self.address(job, image["file"]) for image in job.result["images"]]
        show = "this.parentElement.previousElementSibling.querySelector('.after').src = this.src"
        chosen = [f'<img src="{at}" alt="sample" onclick="{show}">' for at in samples if len(samples) > 1]
        links = [self.link(job, name, name) for name in files]
        first, *rest = map(html.escape, lines)
        return f"""<div class='pair'><img src='{self.address(job, before)}' alt='before'>
            <img class='after' src='{samples[0]}' alt='after'>
            <input type='range' value='10' aria-label='Before and after'
            oninput="this.parentElement.style.setProperty('--at', this.value + '%')">
            </div><div class='samples'>{"".join(chosen)}</div>
            <p>{"<br>".join([f"<b>{first}</b>", *rest])}</p><p class='downloads'>{" ".join(links)}</p>"""


def status_of_work(name: str | None = None) -> gr.HTML:
    """Where a tab says what goes on, see status.js."""
    value: Any = {"work": [], "number": 0, "text": ""}
    script = f"const POLL = {POLL}, LATE = {LATE};\n{STATUS}"
    return gr.HTML(value, html_template="${value.text}", js_on_load=script, elem_id=name)


class Events:
    """Those of one tab.

    status: of `status_of_work`. looks: components, the visit first. surfaces: their names
    go_on(visit): begins what is due; HTML of what goes on, or came of it
    """

    def __init__(self, status: gr.HTML, looks: list[Any], surfaces: Sequence[str], go_on: Act) -> None:
        self.status, self.go_on, self.looks = status, go_on, [looks[0], gr.JSON(visible=False), *looks[1:]]
        self.script = LOG.replace("NAMES", json.dumps(surfaces))

    def on(self, event: Any, act: Act, show: Act, outputs: list[Any], *more: Any, **how: Any) -> Any:
        """At an event do act(visit, event, values of more), then show(visit, *looks) in the outputs.

        act: may return what the visitor should know; errors are said. how: for Gradio
        """
        count = len(self.looks) - 2

        def handler(visit: Any, log: Any, event: gr.EventData, request: gr.Request, *values: Any) -> Any:
            shown, told = [gr.skip() for _ in outputs], {"work": [], "number": 0, "text": ""}
            with visit.lock if visit else contextlib.nullcontext():
                try:
                    if visit is None:
                        raise ValueError(GONE)
                    visit.client = request.client.host if request.client else ""
                    told |= {"work": visit.work, "text": visit.text}
                    visit.catch_up(log or {})
                    told["info"] = act(visit, event, *values[count:])
                    told["work"] = visit.work  # before the rest, which is then no older
                    told["text"] = visit.text = self.go_on(visit)
                    if event.target is not self.status or event.work != told["work"]:
                        shown = show(visit, *values[:count])
                    told["number"] = visit.answers = visit.answers + 1
                except (ValueError, QueueFull) as error:
                    told["error"] = html.escape(without_paths(str(error), {}))
            return [*shown, told] if outputs else told

        how = {**EVENT, "js": self.script, **how}
        return event(handler, [*self.looks, *more], [*outputs, self.status], **how)


def nothing(visit: Visit, event: gr.EventData) -> None:
    """For `Events.on`: only show what there is."""
