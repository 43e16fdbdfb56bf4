"""Commands of the renderer.

python -m datasets.scenes render --out DIR --count N --size 96,96 --window object
python -m datasets.scenes sheet --out sheet.png --count 8
"""

import logging

import typer

from datasets.scenes.sheet import SheetSettings, write_scene_sheet
from datasets.scenes.store import StoreSettings, render_shards
from ldm.settings.cli import command, new_app, run_module

log = logging.getLogger(__name__)


def render_command(settings: StoreSettings) -> None:
    """Render scenes into shards; run again to continue."""
    paths = render_shards(settings)
    log.info("%d shards in %s", len(paths), settings.out)


def sheet_command(settings: SheetSettings) -> None:
    """Write a labelled contact sheet of evaluation scenes."""
    log.info("wrote %s", write_scene_sheet(settings))


def build_app() -> typer.Typer:
    """The verbs of `python -m datasets.scenes`."""
    app = new_app("Rendered tabletop scenes with exact masks, depth and counterfactuals.")
    app.command("render")(command(StoreSettings, render_command))
    app.command("sheet")(command(SheetSettings, sheet_command))
    return app


if __name__ == "__main__":
    run_module(build_app)
