"""Draw what a locator makes of sentences, and the composites that follow: docs/figures/locator.png.

python -m scripts.docs.draw_locator

The images are the example rooms of the repository; every place is the locator's own answer.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from compose.settings import ComposeSettings
from ldm.images import encode_png
from ldm.result import write_result
from ldm.settings.cli import run_module, single_app
from ldm.sheet import grid
from scripts.docs.make_examples import FOLDER

SENTENCES = (
    ("cone", "Place the checkered yellow cone behind the checkered orange torus"),
    ("pyramid", "Place the two-tone pink pyramid to the right of the checkered navy cylinder"),
    ("tent", "Place the checkered cyan pyramid behind the dotted teal prism"),
    ("dome", "Place the checkered white dome in front of the striped blue egg"),
)
FIGURE = Path("docs/figures/locator.png")
TITLES = ("proposed places", "depth with the object", "composite")
CELL, CANDIDATES = 330, 3  # pixels; places that are proposed


def draw_locator(
    out: Annotated[Path, typer.Option(help="PNG to write", metavar="PATH")] = FIGURE,
    locator: Annotated[str, typer.Option(help="locator folder, or geometric", metavar="TEXT")] = "geometric",
) -> None:
    """Ask the locator for a place in every example room, compose there, and draw a row for each."""
    from compose import compose, load_models
    from compose.sheet import marked_background

    models, rows, labels = None, [], []
    for name, sentence in SENTENCES:
        folder = FOLDER / name
        settings = ComposeSettings(
            background=folder / "room.png", object=folder / "object.png",
            background_depth=folder / "room_depth.png", instruction=sentence, locator=locator,
            anchors=folder / "anchors.json", candidates=CANDIDATES)  # fmt: skip
        models = load_models(settings, models)
        result = compose(settings, models, progress=False)
        rows.append([marked_background(result), result.fused_depth_01, result.images_u8[0]])
        labels.append(f'"{sentence}"')
    write_result({out: encode_png(grid(rows, TITLES, labels, cell=CELL))})
    logging.getLogger(__name__).info("figure: %s", out)


build_app = single_app(draw_locator)

if __name__ == "__main__":
    run_module(build_app)
