"""The page as a whole, and its tab about what runs here."""

from pathlib import Path
from typing import Any

import gradio as gr

from cldm.config import load_compositor_config
from cldm.model import Compositor
from compose.models import compositor_folder
from compose.serve.desk import Desk
from compose.serve.events import EVENT
from compose.serve.jobs import JobQueue
from compose.serve.page import Site
from compose.serve.page_compose import ComposeTab
from compose.serve.page_jobs import JobsDesk, jobs_tab
from compose.serve.page_regions import RegionsDesk, RegionsTab
from compose.serve.settings import ServeSettings, anywhere, filled
from compose.serve.uploads import public, without_paths
from inpainting.dream import DreamSettings
from inpainting.models.image_to_text.writer import find_files
from inpainting.painting import load_painter, load_writer, painter_folder
from ldm.doctor import report_sections
from ldm.experts.depth import DepthEstimator
from ldm.files import read_json
from ldm.registry.models import depth_folder
from llava_bifrost.locator import load_locator

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
    """The page of a server."""
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
        known, ready = visits + site.surfaces, [dict[str, Any]()] * len(site.surfaces)
        blocks.load(
            lambda: [Desk(below, config.pair), RegionsDesk(), JobsDesk(), *ready], None, known, **EVENT
        )
    return blocks
