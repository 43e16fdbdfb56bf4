"""Draw the data flow of the compositor with the images of a real example: docs/figures/compositor.png.

python -m scripts.docs.draw_figure
"""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from benchmarks.harness import figure_png
from ldm.images import from_pm1
from ldm.result import write_result
from ldm.settings.cli import run_module, single_app
from ldm.sheet import as_levels
from scripts.docs.make_examples import FOLDER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 138.0, 66.0  # of the drawing, in its own units
DOTS = 10  # pixels per unit
INK, LINE = "#26262b", "#5b6470"
UNET = """UNet

starts from noise,
or from the noised
cut-out; known
latents outside the
edit region are
set again at
every step"""
DINOV2 = "DINOv2 + projector:\nidentity tokens, also\nfor both branches"
STEP, NET, PAINT = "#eef1f4", "#dce9f7", "#fbe7cf"  # pre-processing, networks, the UNet


def rounded_box(
    axes: "Axes", corner: tuple[float, float], size: tuple[float, float], radius: float, **look: Any
) -> None:
    """A box with rounded corners; size is (width, height)."""
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=f"round,pad=0,rounding_size={radius}", **look))


class Drawing:
    """Images, boxes and arrows on one canvas; every position is the centre of an element."""

    def __init__(self) -> None:
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(WIDTH / 10, HEIGHT / 10), dpi=10 * DOTS)
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        self.axes.axis("off")

    def image(
        self, image_u8: np.ndarray, x: float, y: float, width: float, title: str, above: bool = False
    ) -> None:
        """An image, (h, w, 3) or gray (h, w), with its name below or above."""
        half_w, half_h = width / 2, width / 2 * image_u8.shape[0] / image_u8.shape[1]
        x0, x1, y0, y1 = edges = (x - half_w, x + half_w, y - half_h, y + half_h)
        gray: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}  # which counts for gray images only
        self.axes.imshow(image_u8, extent=edges, aspect="auto", interpolation="lanczos", zorder=2, **gray)
        self.axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=LINE, linewidth=0.8, zorder=3)
        name_y, anchor = (y + half_h + 0.7, "bottom") if above else (y - half_h - 0.9, "top")
        self.axes.text(x, name_y, title, ha="center", va=anchor, fontsize=9, color=INK)

    def block(self, text: str, x: float, y: float, size: tuple[float, float], colour: str) -> None:
        """A rounded box with text; size is (width, height)."""
        corner = (x - size[0] / 2, y - size[1] / 2)
        rounded_box(self.axes, corner, size, radius=1, facecolor=colour, edgecolor=LINE)
        self.axes.text(x, y, text, ha="center", va="center", fontsize=9.5, color=INK, linespacing=1.35)

    def arrow(self, *points: tuple[float, float]) -> None:
        for start, end in pairwise(points[:-1]):
            self.axes.plot(*zip(start, end, strict=True), color=LINE, linewidth=1.1)
        style = {"arrowstyle": "-|>", "color": LINE, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
        self.axes.annotate("", xy=points[-1], xytext=points[-2], arrowprops=style)


def draw_compositor(
    out: Annotated[Path, typer.Option(help="PNG to write")] = Path("docs/figures/compositor.png"),
    examples: Annotated[Path, typer.Option(help="folder with cases.json; the first case is drawn")] = FOLDER,
    model: Annotated[Path | None, typer.Option(help="compositor folder; default: as run_inference")] = None,
) -> None:
    """Draw how the compositor works, with the images of one example."""
    from compose import compose, load_models
    from compose.sheet import marked_background, on_white, read_cases, settings_of_case
    from datasets.scenes.store import from_01

    settings = settings_of_case(read_cases(examples / "cases.json")[0], examples, model=model)
    result = compose(settings, load_models(settings), progress=False)
    drawing, pair, rows = Drawing(), result.pair, (55.0, 35.0, 14.0)
    given = result.geometry.inputs
    drawing.image(on_white(given.reference_u8, given.reference_mask), 10, rows[0], 14, "object")
    drawing.image(marked_background(result), 10, rows[1], 17, "background and box")
    drawing.image(as_levels(given.background_depth_01), 10, rows[2], 17, "depth, 1 = nearest")
    drawing.block("cut out,\ncrop,\nplace,\ndepth test", 30, 35, (10, 50), STEP)
    for y in rows:
        drawing.arrow((19 if y < rows[0] else 17.5, y), (24.8, y))
        drawing.arrow((35.2, y), (39.3, y))
    hints = (
        (from_01(pair.reference_01), "object on white", DINOV2),
        (from_pm1(pair.detail_pm1[:3]), "collage (+ mask channel)", "detail branch\n(ControlNet)"),
        (from_pm1(pair.depth_01 * 2 - 1), "fused depth", "depth branch\n(ControlNet)"),
    )
    for (image, title, net), y in zip(hints, rows, strict=True):
        drawing.image(image, 47, y, 15, title)
        drawing.arrow((54.8, y), (59.8, y))
        drawing.block(net, 68, y, (16, 8), NET)
        drawing.arrow((76.2, y), (82, y))
    drawing.block(UNET, 90, 35, (15.6, 50), PAINT)
    drawing.arrow((98, 35), (102, 35))
    drawing.image(result.painted_u8[0], 110, 35, 15, "model's image")
    drawing.image(as_levels(result.edit_mask), 110, 14, 15, "edit mask")
    drawing.block("paste back:\ndetail transfer,\nsoft edge inside\nthe mask", 126, 35, (12, 12), STEP)
    drawing.arrow((117.6, 35), (119.8, 35))
    drawing.arrow((117.6, 14), (126, 14), (126, 28.8))
    drawing.arrow((126, 41.2), (126, 46.9))
    drawing.image(result.images_u8[0], 126, 54.5, 20, "result", above=True)
    write_result({out: figure_png(drawing.figure)})


build_app = single_app(draw_compositor)

if __name__ == "__main__":
    run_module(build_app)
