"""Folders that others load with stock diffusers, without this repository, and the benchmark as a data set."""

from compose.hub.settings import BenchmarkHub, CompositorHub, InpainterHub
from ldm.settings.cli import App, command, new_app, run_module

VERBS = {  # verb -> settings, help
    "compositor": (CompositorHub, "A compositor folder -> a pipeline folder with its own code."),
    "inpainter": (
        InpainterHub,
        "An inpainter folder, its LoRA merged -> a pipeline folder with its own code.",
    ),
    "benchmark": (BenchmarkHub, "The composite benchmark, or the scenes of the scores -> a data-set folder."),
}


def build_app() -> App:
    app = new_app("Folders for the Hugging Face hub.")
    for verb, (settings, text) in VERBS.items():
        app.command(verb, help=text)(command(settings, f"compose.hub.export:export_{verb}"))
    return app


if __name__ == "__main__":
    run_module(build_app)
