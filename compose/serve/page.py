"""What the tabs of the page share: drawing surfaces, errors in words, controls, jobs that are followed.

Images for the screen are JPEG; files are used as they come, and results leave as PNG.
"""

import asyncio
import base64
import contextlib
import functools
import html
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from tqdm.auto import tqdm

from compose.serve.jobs import ENDED, Job, JobQueue, QueueFull, Work
from compose.serve.settings import ServeSettings
from compose.serve.uploads import store, without_paths
from ldm.decode import LoadedImage, opened
from ldm.files import read_text
from ldm.images import encode_image
from ldm.settings.schema import flat_settings, from_text

CANVAS = read_text(Path(__file__).with_name("canvas.js"))
CSS = "canvas {display: block; margin: auto; border-radius: 8px; background: #8881}"
POLL = 0.2  # seconds between two looks at a job; chosen
BRUSH = 0.025  # radius of the brush, of the longer side; chosen
EVENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
FREQUENT = {"queue": False, "trigger_mode": "always_last"}  # of Gradio's queue, which shows errors, not ours


def as_url(image_u8: np.ndarray) -> str:
    """An image (h, w, 3) for the screen."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_image(LoadedImage(image_u8), ".jpg")).decode()


def surface_value(upload: str, what: str, tall: float = 0.7) -> dict[str, Any]:
    """The value of an empty surface. upload: elem_id of the button that takes what is dropped on it."""
    return {"upload": upload, "hint": f"Drop {what} here, or tap", "tall": tall}


def surface(upload: str, what: str, tall: float = 0.7) -> gr.HTML:
    """A drawing surface, see canvas.js; tall: its height at most, of the window."""
    look = {"html_template": "<canvas></canvas>", "css_template": CSS, "js_on_load": CANVAS}
    return gr.HTML(surface_value(upload, what, tall), elem_id=f"{upload}-canvas", **look)  # type: ignore[arg-type]


def in_words(act: Callable[..., Any], drawn: bool = False) -> Callable[..., Any]:
    """An event handler whose errors a visitor can read. drawn: act takes what was drawn after the desk."""

    def call(desk: Any, *values: Any) -> Any:
        if desk is None:
            raise gr.Error("not ready yet, or this visit has ended: try again, or load the page again")
        try:
            with getattr(desk, "lock", contextlib.nullcontext()):
                return act(desk, *values)
        except (ValueError, QueueFull) as error:
            raise gr.Error(html.escape(without_paths(str(error), {}))) from error

    def with_event(desk: Any, event: gr.EventData, *values: Any) -> Any:
        return call(desk, event, *values)

    return with_event if drawn else functools.wraps(act)(call)


def connect(
    event: Callable[..., Any], act: Callable[..., Any], show: Callable[..., Any], looks: list[Any],
    outputs: list[Any], *more: Any, drawn: bool = False, **how: Any,
) -> Any:  # fmt: skip
    """At an event do act(desk, looks, values of more), then show(desk, *looks) in the outputs.

    looks: components, the desk first. drawn: act takes what was drawn after the desk. how: for Gradio
    """
    count = len(looks) - 1

    def handler(desk: Any, *values: Any) -> Any:
        drawing, values = values[:drawn], values[drawn:]
        act(desk, *drawing, values[:count], *values[count:])
        return show(desk, *values[:count])

    return event(in_words(handler, drawn), [*looks, *more], outputs, **{**EVENT, **how})


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
            limits = {
                "minimum": about["low"],
                "maximum": about["high"],
                "precision": 0 if hint is int else None,
            }
            controls.append(gr.Number(**limits, **{**shared, "value": field.default}))
        else:  # an empty gr.Number would become 0
            controls.append(gr.Textbox(**shared))
    return controls


def values_of(schema: type, names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """What controls say, by the names of their settings; without those that are empty."""
    hints = flat_settings(schema)
    given = {name: value for name, value in zip(names, values, strict=True) if value not in (None, "")}
    return {name: from_text(hints[name][1], str(value)) for name, value in given.items()}


def checked(path: Path, settings: ServeSettings) -> Path:
    """A file of a visitor; ValueError where its header says more pixels than the server takes."""
    with opened(path) as image:
        if image.width * image.height > settings.max_megapixels * 1_000_000:
            size = f"{image.width} x {image.height} pixels"
            raise ValueError(f"{path.name} has {size}; at most {settings.max_megapixels} million are taken")
    return path


def open_job(queue: JobQueue, desk: Any, kind: str, request: gr.Request) -> Job:
    """A job of this visitor, who may cancel it; gr.Error where no more are taken."""
    client = request.client.host if request.client else ""
    desk.job = in_words(lambda _: queue.open(kind, client))(desk)
    return desk.job


def begin(
    tab: Any, desk: Any, kind: str, request: gr.Request, make: Callable[[Any, Mapping[str, Path] | None], Any]
) -> tuple[Any, Job]:
    """The settings of a job with the visitor's files in its folder, and the job; gr.Error in words.

    make: (desk, files) -> settings and their files by name; files: None for those of the desk
    """
    _, files = in_words(make)(desk, None)  # refused before a job is opened
    job = open_job(tab.queue, desk, kind, request)
    return in_words(make)(desk, stored(job, files, tab.server))[0], job


def cancel(queue: JobQueue, desk: Any) -> None:
    """End the visitor's job before its next step."""
    if desk.job is not None and desk.job.state not in ENDED:
        queue.cancel(desk.job)


def stored(job: Job, files: Mapping[str, Path], settings: ServeSettings) -> dict[str, Path]:
    """Copies of files in the folder of a job."""
    return {name: store(job, name, path.read_bytes(), settings) for name, path in files.items()}


async def follow(queue: JobQueue, job: Job, work: Work) -> AsyncIterator[str]:
    """HTML while a job goes on: what it does, the time left, its newest preview; gr.Error where it fails."""
    queue.submit(job, work)
    while job.state not in ENDED:
        text = "Preparing" if job.state == "running" else f"Waiting, {queue.position(job)} before this one"
        if job.total:
            left = "" if job.seconds_left is None else f", {tqdm.format_interval(job.seconds_left)} left"
            text = f"Step {job.step} of {job.total}{left}"
            text += f"<progress max={job.total} value={job.step} style='width: 100%'></progress>"
        if preview := job.look():
            data = base64.b64encode(preview).decode()
            text += f"<img alt='preview' style='height: 10em' src='data:image/png;base64,{data}'>"
        yield text
        await asyncio.sleep(POLL)
    if job.state == "failed":
        yield ""
        raise gr.Error(html.escape(job.error or ""))
    yield "" if job.state == "done" else f"Cancelled after {job.step} of {job.total} steps"


class Results:
    """Progress, before and after, samples, the report in words, the files."""

    def __init__(self, queue: JobQueue, desk: gr.State) -> None:
        self.queue, self.status = queue, gr.HTML(elem_id="status")
        hidden: dict[str, Any] = {"visible": False, "format": "png"}
        self.slider = gr.ImageSlider(label="Before and after", slider_position=10, **hidden)
        plain: dict[str, Any] = {"allow_preview": False, "interactive": False, "buttons": []}
        self.gallery = gr.Gallery(label="Samples", columns=4, height="auto", **hidden, **plain)
        self.words = gr.Markdown()
        about = "PNG with recipe, report, sheet"
        self.files = gr.File(
            label=about, file_count="multiple", interactive=False, visible=False, elem_classes="downloads"
        )
        self.parts = [self.status, self.slider, self.gallery, self.words, self.files]
        self.gallery.select(self.chosen, [desk], [self.slider], **EVENT)

    def chosen(self, desk: Any, event: gr.SelectData) -> Any:
        """Another sample beside the background."""
        return gr.ImageSlider((desk.shown[0], desk.shown[1 + event.index]))

    async def watch(
        self, desk: Any, job: Job, work: Work, before: Path, words: Callable[[Any], str]
    ) -> AsyncIterator[list[Any]]:
        """Values of `parts` while a job goes on and when it is done. words: says its report to people."""
        async for text in follow(self.queue, job, work):
            yield [text, *[gr.skip()] * (len(self.parts) - 1)]
        if job.state != "done" or job.result is None:
            return
        images = [job.folder / image["file"] for image in job.result["images"]]
        files = [*images, *(path.with_suffix(".json") for path in images), *job.folder.glob("*sheet.png")]
        desk.shown = [str(path) for path in (before, *images)]
        yield [
            "",
            gr.ImageSlider((desk.shown[0], desk.shown[1]), visible=True),
            gr.Gallery(desk.shown[1:], visible=len(images) > 1),
            words(job.result["report"]),
            gr.File([str(path) for path in files], visible=True),
        ]
