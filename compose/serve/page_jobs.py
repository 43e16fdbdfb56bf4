"""The tab of the page that composes a file of jobs."""

import html
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gradio as gr

from compose import batch
from compose.serve import page
from compose.serve.desk import Visit
from compose.serve.events import Events, nothing, status_of_work
from compose.serve.jobs import Job, QueueFull
from compose.serve.page_compose import composite_in_words
from compose.serve.settings import COMPOSE_FIELDS, ServeSettings
from compose.serve.work import compose_work
from compose.settings import INPUT_FILES
from ldm.files import numbered_lines
from ldm.journal import parse_line

ALLOWED = {*COMPOSE_FIELDS, *INPUT_FILES, "name", "num_samples", "invert_target_mask"} - {"layers"}


def jobs_of(paths: Sequence[Path], folder: Path, settings: ServeSettings) -> list[batch.BatchJob]:
    """The jobs of the one .jsonl file among some files, which names the others; all go to the folder.

    ValueError for what a visitor may not set, and for images that were not given.
    """
    lists = [path for path in paths if path.suffix == ".jsonl"]
    if len(lists) != 1:
        raise ValueError(f"one .jsonl file is needed, with the images that it names; got {len(lists)}")
    for path in paths:
        shutil.copyfile(path, folder / path.name)
    for number, line in numbered_lines(lists[0]):
        values = parse_line(line)
        if refused := sorted(values.keys() - ALLOWED):
            allowed = ", ".join(sorted(ALLOWED))
            raise ValueError(f"line {number}: {refused[0]} cannot be set here; allowed: {allowed}")
        for name in values.keys() & set(INPUT_FILES):
            if values[name] is not None and not any(path.name == values[name] for path in paths):
                raise ValueError(f"line {number}: {name} {values[name]!r} is not among the files")
    return batch.read_jobs(lists[0], settings.compose_config, folder)


class JobsDesk(Visit):
    """The file of jobs of one visitor."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Path] = []
        self.listed: list[batch.BatchJob] = []  # `jobs` has those that were sent

    @property
    def work(self) -> list[str]:
        """So is what was not sent yet."""
        return super().work + [job.name for job in self.listed[len(self.jobs) :]]


def row_of(name: str, job: Job | None) -> list[str]:
    """Name, state and result of a job."""
    if job is None:
        return [name, "waiting", ""]
    text = job.error or (f"step {job.step} of {job.total}" if job.total else "")
    if job.result is not None:
        text = composite_in_words(job.result["report"])[0]
    return [name, job.state, text]


def jobs_tab(site: page.Site, visit: gr.State) -> None:
    """Its components, and what their events do."""
    surface = site.surface({"jobs": "Jobs (.jsonl) and their images"}, "jobs and images", 0.2, "multiple")
    with gr.Row():
        go, cancel = gr.Button("Compose all", variant="primary", elem_id="all"), gr.Button("Cancel")
    status = status_of_work("states")

    def go_on(visit: JobsDesk) -> str:
        """Send jobs as the queue takes them; the table of states, or the files of the next run."""
        try:
            for number, listed in enumerate(visit.listed[len(visit.jobs) :], len(visit.jobs)):
                work = lambda files, own=listed.settings: partial(compose_work, replace(own, **files))  # noqa: E731
                site.begin(visit, f"compose {number}", listed.settings.input_files, work)
        except QueueFull:
            pass  # the page asks again
        except ValueError:
            end(visit)
            raise
        rows = []
        for listed, job in zip_longest(visit.listed, visit.jobs.values()):
            cells = [f"<td>{html.escape(text)}</td>" for text in row_of(listed.name, job)]
            for image in (job and job.result or {}).get("images", ()):
                name = f"{listed.name}_{image['file']}"
                cells.append(f"<td class='downloads'>{site.link(job, image['file'], name)}</td>")
            rows.append(f"<tr>{''.join(cells)}</tr>")
        table = f"<table><tr><th>job<th>state<th>result</tr>{''.join(rows)}</table>"
        return table if rows else html.escape(", ".join(path.name for path in visit.given))

    def run(visit: JobsDesk, event: gr.EventData) -> None:
        """The jobs of the files, unless some are not done yet."""
        if not visit.work:
            visit.listed, visit.jobs = jobs_of(visit.given, Path(visit.own.name), site.settings), {}

    def end(visit: JobsDesk, event: Any = None) -> None:
        """Cancel what is not done."""
        visit.listed = visit.listed[: len(visit.jobs)]
        site.cancel(visit)

    def take(visit: JobsDesk, event: gr.EventData) -> None:
        """Files for the next run; their names."""
        visit.given = site.files_of(visit, event)
        if not visit.work:
            visit.listed, visit.jobs = [], {}

    events = Events(status, [visit], [], go_on)
    acts = {surface.jobs: take, status.ask: nothing, go.click: run, cancel.click: end}
    for event, act in acts.items():
        events.on(event, act, lambda *looks: [], [])
