"""The tab of the page that composes a file of jobs."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from compose import batch
from compose.serve import page
from compose.serve.jobs import ENDED, Job, JobQueue, QueueFull
from compose.serve.settings import COMPOSE_FIELDS, ServeSettings
from compose.serve.work import compose_work
from compose.settings import INPUT_FILES
from ldm.files import numbered_lines
from ldm.journal import parse_line

ALLOWED = {*COMPOSE_FIELDS, *INPUT_FILES, "name", "num_samples", "invert_target_mask"}  # keys of a job


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
            raise ValueError(
                f"line {number}: {refused[0]} cannot be set here; allowed: {', '.join(sorted(ALLOWED))}"
            )
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
        report = job.result["report"]
        changed = sum(drift["changed_outside"] for drift in report["drift"])
        text = f"{100 * report['visible_fraction']:.0f} % visible, {changed} pixels changed outside"
    return [name, job.state, text]


def jobs_tab(queue: JobQueue, settings: ServeSettings) -> None:
    """Its components, and what their events do."""
    given = gr.File(
        label="A file of jobs (.jsonl), and the images that it names", file_count="multiple", elem_id="jobs"
    )
    with gr.Row():
        go, cancel = gr.Button("Compose all", variant="primary", elem_id="all"), gr.Button("Cancel")
    table = gr.Dataframe(headers=["job", "state", "result"], interactive=False, wrap=True, elem_id="states")
    files = gr.File(label="PNG with recipe", file_count="multiple", visible=False, elem_classes="downloads")

    def shown(jobs: Sequence[batch.BatchJob], sent: Sequence[Job]) -> list[Any]:
        """Values of table and files."""
        states = [*sent, *[None] * (len(jobs) - len(sent))]
        done = [job.folder / image["file"] for job in sent if job.result for image in job.result["images"]]
        rows = [row_of(job.name, state) for job, state in zip(jobs, states, strict=True)]
        return [rows, gr.File([str(path) for path in done], visible=bool(done))]

    async def run(paths: list[str] | None, request: gr.Request) -> AsyncIterator[list[Any]]:
        """Send the jobs as the queue takes them."""
        sent: list[Job] = []
        client = request.client.host if request.client else ""
        with TemporaryDirectory() as folder:
            jobs = page.in_words(jobs_of)([Path(path) for path in paths or []], Path(folder), settings)
            try:
                while len(sent) < len(jobs) or any(job.state not in ENDED for job in sent):
                    with contextlib.suppress(QueueFull):
                        while len(sent) < len(jobs):
                            sent.append(queue.open("compose", client))
                            own = jobs[len(sent) - 1].settings
                            files = page.stored(sent[-1], own.input_files, settings)
                            queue.submit(sent[-1], compose_work(replace(own, **files)))
                    yield shown(jobs, sent)
                    await asyncio.sleep(page.POLL)
            finally:
                for job in sent:
                    if job.state not in ENDED:
                        queue.cancel(job)
        yield shown(jobs, sent)

    event = go.click(run, given, [table, files], **page.EVENT)
    cancel.click(None, cancels=[event])
