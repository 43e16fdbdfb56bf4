"""The tab of the page that composes a file of jobs."""

import asyncio
import contextlib
import html
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr

from compose import batch
from compose.serve import page
from compose.serve.desk import Visit
from compose.serve.jobs import ENDED, Job, QueueFull
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
    table = gr.HTML(elem_id="states")

    def shown(jobs: Sequence[batch.BatchJob], sent: Sequence[Job]) -> str:
        """The table of states, with the images that are done."""
        rows = []
        for job, state in zip_longest(jobs, sent):
            cells = [f"<td>{html.escape(text)}</td>" for text in row_of(job.name, state)]
            for image in (state and state.result or {}).get("images", ()):
                name = f"{job.name}_{image['file']}"
                cells.append(f"<td class='downloads'>{site.link(state, image['file'], name)}</td>")
            rows.append(f"<tr>{''.join(cells)}</tr>")
        return f"<table><tr><th>job<th>state<th>result</tr>{''.join(rows)}</table>"

    async def run(visit: Visit, request: gr.Request) -> AsyncIterator[str]:
        """Send the jobs as the queue takes them."""
        sent: list[Job] = []
        with TemporaryDirectory() as folder:
            with page.in_words(visit):
                jobs = jobs_of(visit.given, Path(folder), site.settings)
            try:
                while len(sent) < len(jobs) or any(job.state not in ENDED for job in sent):
                    with contextlib.suppress(QueueFull):
                        while len(sent) < len(jobs):
                            own = jobs[len(sent)].settings
                            job, files = site.begin(visit, "compose", request, own.input_files)
                            sent.append(site.queue.submit(job, partial(compose_work, replace(own, **files))))
                    yield shown(jobs, sent)
                    await asyncio.sleep(page.POLL)
            finally:
                for job in sent:
                    if job.state not in ENDED:
                        site.queue.cancel(job)
        yield shown(jobs, sent)

    def take(visit: Visit, event: gr.EventData) -> str:
        """Files for the next run; their names."""
        with page.in_words(visit):
            visit.given = site.files_of(visit, event)
        return html.escape(", ".join(path.name for path in visit.given))

    surface.jobs(take, visit, table, trigger_mode="multiple", **page.EVENT)
    cancel.click(None, cancels=[go.click(run, visit, table, **page.EVENT)])
