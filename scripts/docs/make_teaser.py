"""Compose the examples and show them beside the truth: place, object, result, true render.

    python -m scripts.docs.make_teaser
    python -m scripts.docs.make_teaser --model runs/tiny/bifrost/model --out outputs/teaser.png

The image of README.md is made by the first command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageDraw, ImageFont

from compose import compose, load_models
from compose.contact_sheet import on_white, read_cases, settings_of_case, with_box
from ldm.images import read_image, resize, write_png
from ldm.settings.cli import run_module, single_app
from ldm.sheet import INK, PAPER
from scripts.docs.make_examples import FOLDER

TITLES = ("background and box", "object", "result", "true render")
GAP = 10  # pixels between images
HEADER = 30  # pixels for the titles


def mosaic(rows: list[list[np.ndarray]], titles: tuple[str, ...], height: int) -> np.ndarray:
    """Images (h, w, 3) uint8 in rows of one height, with a title above each column; (H, W, 3) uint8."""
    rows = [[fitted(image, height) for image in row] for row in rows]
    widths = [max(row[column].shape[1] for row in rows) for column in range(len(titles))]
    size = sum(widths) + GAP * (len(widths) + 1), HEADER + len(rows) * (height + GAP)
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    x = GAP
    for column, (title, width) in enumerate(zip(titles, widths, strict=True)):
        pen.text((x + width // 2, HEADER - 6), title, fill=INK, font=font, anchor="ms")
        for index, row in enumerate(rows):
            sheet.paste(Image.fromarray(row[column]), (x, HEADER + index * (height + GAP)))
        x += width + GAP
    return np.array(sheet)


def fitted(image_u8: np.ndarray, height: int) -> np.ndarray:
    """The image scaled to a height, aspect kept."""
    h, w = image_u8.shape[:2]
    return resize(image_u8, (height, round(w * height / h)))


def make(
    out: Annotated[Path, typer.Option(help="PNG to write")] = Path("docs/figures/teaser.png"),
    examples: Annotated[Path, typer.Option(help="folder with cases.json")] = FOLDER,
    count: Annotated[int, typer.Option(min=1, help="how many examples, from the first")] = 3,
    height: Annotated[int, typer.Option(min=16, help="of every image, pixels")] = 192,
    model: Annotated[Path | None, typer.Option(help="compositor folder; default: as run_inference")] = None,
) -> None:
    """Compose the first examples of a folder and write one image of them."""
    cases = read_cases(examples / "cases.json")[:count]
    settings = [settings_of_case(case, examples, model=model) for case in cases]
    models = load_models(settings[0])
    rows = []
    for case, chosen in zip(cases, settings, strict=True):
        result = compose(chosen, models, progress=False)
        inputs = result.inputs
        marked = with_box(inputs.background_u8, result.report["box"])
        cut = on_white(inputs.reference_u8, inputs.reference_mask)
        rows.append([marked, cut, result.images_u8[0], read_image(examples / case["truth"]).rgb_u8])
    write_png(out, mosaic(rows, TITLES, height))


build_app = single_app(make)

if __name__ == "__main__":
    run_module(build_app)
