"""Compose the examples and show them beside the ground truth: place, object, result, true render.

python -m scripts.docs.make_teaser           (the image of README.md)
"""

from pathlib import Path
from typing import Annotated

import typer

from ldm.images import encode_png, read_image
from ldm.result import write_result
from ldm.settings.cli import run_module, single_app
from ldm.sheet import grid
from scripts.docs.make_examples import FOLDER

TITLES = ("background and box", "object", "result", "true render")


def make_teaser(
    out: Annotated[Path, typer.Option(help="PNG to write")] = Path("docs/figures/teaser.png"),
    examples: Annotated[Path, typer.Option(help="folder with cases.json")] = FOLDER,
    count: Annotated[int, typer.Option(min=1, help="how many examples, from the first")] = 3,
    height: Annotated[int, typer.Option(min=16, help="of every cell, pixels")] = 256,
    model: Annotated[Path | None, typer.Option(help="compositor folder; default: as run_inference")] = None,
) -> None:
    """Compose the first examples of a folder and write one image of them."""
    from compose import compose, load_models
    from compose.sheet import marked_background, on_white, read_cases, settings_of_case

    models, rows = None, []
    for case in read_cases(examples / "cases.json")[:count]:
        settings = settings_of_case(case, examples, model=model)
        models = load_models(settings, models)
        result = compose(settings, models, progress=False)
        inputs, truth_u8 = result.geometry.inputs, read_image(examples / case["truth"]).rgb_u8
        cut_u8 = on_white(inputs.reference_u8, inputs.reference_mask)
        rows.append([marked_background(result), cut_u8, result.images_u8[0], truth_u8])
    write_result({out: encode_png(grid(rows, TITLES, cell=height))})


build_app = single_app(make_teaser)

if __name__ == "__main__":
    run_module(build_app)
