"""The page as a whole, and its tabs that compose a file of jobs and tell what runs here."""

import html
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gradio as gr

from cldm.config import load_compositor_config
from cldm.model import Compositor
from compose import batch
from compose.models import compositor_folder
from compose.serve import page
from compose.serve.desk import Desk, Visit
from compose.serve.jobs import Job, JobQueue, QueueFull
from compose.serve.page import EVENT, Events, Site, nothing, status_of_work
from compose.serve.page_compose import ComposeTab, composite_in_words
from compose.serve.page_regions import RegionsDesk, RegionsTab
from compose.serve.settings import COMPOSE_FIELDS, ServeSettings, anywhere, filled
from compose.serve.uploads import public, without_paths
from compose.serve.work import compose_work
from compose.settings import INPUT_FILES
from inpainting.dream import DreamSettings
from inpainting.models.image_to_text.writer import find_files
from inpainting.painting import load_painter, load_writer, painter_folder
from ldm.doctor import report_sections
from ldm.experts.depth import DepthEstimator
from ldm.files import numbered_lines, read_json
from ldm.journal import parse_line
from ldm.registry.models import depth_folder
from llava_bifrost.locator import load_locator

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
    if job is None:
        return [name, "waiting", ""]
    text = job.error or (f"step {job.step} of {job.total}" if job.total else "")
    if job.result is not None:
        text = composite_in_words(job.result["report"])[0]
    return [name, job.state, text]


def jobs_tab(site: page.Site, visit: gr.State) -> None:
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
        visit.listed = visit.listed[: len(visit.jobs)]
        site.cancel(visit)

    def take(visit: JobsDesk, event: gr.EventData) -> None:
        visit.given = site.files_of(visit, event)
        if not visit.work:
            visit.listed, visit.jobs = [], {}

    events = Events(status, [visit], [], go_on)
    acts = {surface.jobs: take, status.ask: nothing, go.click: run, cancel.click: end}
    for event, act in acts.items():
        events.on(event, act, lambda *looks: [], [])


DAY = 24 * 3600  # seconds that a visit and its files last; chosen
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # nothing from elsewhere


def networks_here(queue: JobQueue, settings: ServeSettings) -> list[str]:
    """A line for each network: its folder, whether it is loaded, and what its makers say of it."""
    composite = anywhere(settings.compose_config)
    painting = filled(DreamSettings, settings.paint_config, {"image": "-"})
    here: dict[str, tuple[Path | str, Any]] = {
        "compositor": (compositor_folder(composite.model), Compositor),
        "depth network": (depth_folder(composite.depth_model), DepthEstimator.load),
        "locator": (composite.locator_name, load_locator),
        "inpainter": (painter_folder(painting), load_painter),
        "prompt writer": (find_files(painting.prompter, painting.adapter).model, load_writer),
    }
    stores = [store for own in queue.workers for store in (own.loaded, own.models and own.models.loaded)]
    loaded = [key[0] if isinstance(key, tuple) else key for store in stores for key in store or ()]
    lines = []
    for role, (folder, load) in here.items():
        texts = [read_json(path, object) for path in Path(folder).glob("*.json") if path.stem != "manifest"]
        notice = next((text["notice"] for text in texts if isinstance(text, dict) and "notice" in text), "")
        name = public(Path(folder).resolve()) if Path(folder).is_dir() else without_paths(str(folder), {})
        lines.append(f"**{role}** {name}, {'loaded' if load in loaded else 'not loaded yet'}. {notice}")
    return lines


def build_page(site: Site) -> gr.Blocks:
    settings, below = site.settings, site.settings.compose_config
    config = load_compositor_config(compositor_folder(anywhere(below).model))

    def about() -> str:
        """Markdown: the networks, and what the doctor says."""
        text = "### Networks\n" + "".join(f"* {line}\n" for line in networks_here(site.queue, settings))
        for title, lines in report_sections().items():
            text += f"### {title.capitalize()}\n```\n" + "\n".join(lines) + "\n```\n"
        return without_paths(text, {})

    with gr.Blocks(title="Bifrost", analytics_enabled=False) as blocks:
        gr.Markdown(f"# Bifrost\n{config.notice}")
        visits = [gr.State(time_to_live=DAY) for _ in range(3)]
        with gr.Tab("Compose"):
            ComposeTab(site, visits[0])
        with gr.Tab("Regions"):
            RegionsTab(site, visits[1])
        with gr.Tab("Jobs"):
            jobs_tab(site, visits[2])
        with gr.Tab("About") as tab:
            text = gr.Markdown()
        tab.select(about, None, text, **EVENT)
        known, ready = [*visits, *site.ready], site.ready.values()
        blocks.load(
            lambda: [Desk(below, config.pair), RegionsDesk(), JobsDesk(), *ready], None, known, **EVENT
        )
    return blocks
