"""Draw how rectified cross-attention works: docs/figures/regions.png, and the masks of the example.

    python -m scripts.docs.draw_regions

The image is a rendered room of assets/examples; masks, region maps and biases are computed by the code
that paints. Needs no trained model.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from benchmarks.harness import figure_png
from datasets.geometry import mask_of_box
from inpainting.models.text_to_image.config import LAYOUTS
from inpainting.prompts import COLORS, paint_masks
from ldm.images import encode_png, read_image
from ldm.result import write_result
from ldm.settings.cli import run_module, single_app
from scripts.docs.draw_figure import INK, rounded_box

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes

ROOM = Path("assets/examples/tent/room.png")
MASKS = Path("assets/regions")
# Name of the mask file -> box x0, y0, x1, y1 in the room of 512 x 384 pixels, and its prompt.
REGIONS = {
    "left": ((20, 0, 172, 158), "a red cube"),
    "front": ((100, 166, 274, 382), "a green egg"),
    "right": ((280, 148, 492, 298), "a blue cone"),
}
SMALL = ((232, 330, 256, 354), "a yellow sphere")  # 24 pixels, over the front region; only in the figure
PALE = "#c9ced6"
PAIRS = ("red", "green", "blue", "yellow")  # colour of each region in the figure
PADDING = 2  # of the many padding tokens, those that are drawn


def shade(number: int) -> tuple[float, float, float]:
    """Matplotlib colour of a region; shared tokens are pale."""
    if number == 0:
        return (0.79, 0.81, 0.84)
    r, g, b = COLORS[PAIRS[number - 1]]
    return (0.15 + 0.75 * r / 255, 0.15 + 0.7 * g / 255, 0.15 + 0.75 * b / 255)


def draw_bias(axes: "Axes", owners: list[int], regions: "torch.Tensor") -> None:
    """Which tokens a pixel reads, for one pixel of every kind. regions: (1, r, H, W) bool"""
    import torch

    from inpainting.models.text_to_image.rca import log_visibility, region_bias

    kinds = {"in left": (90, 70), "in front": (130, 250), "in right": (400, 220),
             "in front and small": (244, 342), "background": (420, 60)}  # fmt: skip
    latent = (regions.shape[2] // 8, regions.shape[3] // 8)
    bias = region_bias(log_visibility(regions, latent), torch.tensor([owners]))
    bias = bias[0, 0].reshape(*latent, -1)
    for row, (x, y) in enumerate(kinds.values()):
        for column, value in enumerate(bias[y // 8, x // 8].tolist()):
            shown = shade(owners[column]) if value == 0 else (1.0, 1.0, 1.0)
            corner = (column + 0.05, len(kinds) - 1 - row + 0.06)
            rounded_box(axes, corner, (0.9, 0.88), radius=0.05, facecolor=shown, edgecolor=PALE, lw=0.5)
            if value != 0:
                axes.text(column + 0.5, len(kinds) - 0.5 - row, "-inf", ha="center", va="center",
                          fontsize=6.5, color="#9aa1ab")  # fmt: skip
    axes.set(xlim=(0, len(owners)), ylim=(0, len(kinds)), xticks=[])
    axes.set_yticks([len(kinds) - 0.5 - row for row in range(len(kinds))], list(kinds), fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw_regions(
    out: Annotated[Path, typer.Option(help="PNG to write")] = Path("docs/figures/regions.png"),
    masks: Annotated[Path, typer.Option(help="folder for the example's masks")] = MASKS,
) -> None:
    """Draw the figure of rectified cross-attention and write the masks of the example."""
    import torch
    from matplotlib.figure import Figure

    from inpainting.models.text_to_image.rca import attention_sizes, log_visibility
    from inpainting.painting import TINT

    room = read_image(ROOM)
    shown = [mask_of_box(box, room.size) for box, _ in (*REGIONS.values(), SMALL)]
    for name, mask in zip(REGIONS, shown, strict=False):
        write_result({masks / f"{name}.png": encode_png(mask.astype(np.uint8) * 255)})
    regions = torch.from_numpy(np.stack(shown))[None]
    figure = Figure(figsize=(13, 6.4), dpi=100)
    panel = figure.add_axes((0.03, 0.5, 0.27, 0.42))
    panel.imshow(paint_masks(room.rgb_u8, shown, PAIRS, [TINT] * len(shown)))
    panel.set_title("an image, four masks, four prompts", fontsize=10.5, color=INK)
    panel.axis("off")
    row = figure.add_axes((0.395, 0.83, 0.59, 0.06))
    tokens = [("BOS", 0)]  # the joint sequence as a row of boxes, coloured by the region of each token
    for number, (_, prompt) in enumerate((*REGIONS.values(), SMALL), 1):
        tokens += [(word, number) for word in prompt.split()]
    tokens += [("EOS", 0), *[("PAD", 0)] * PADDING]
    for index, (word, owner) in enumerate(tokens):
        rounded_box(row, (index + 0.05, 0.1), (0.9, 0.8), radius=0.08, facecolor=shade(owner), lw=0)
        ink = "white" if owner and PAIRS[owner - 1] == "blue" else INK
        row.text(index + 0.5, 0.5, word, ha="center", va="center", fontsize=8, color=ink)
    row.set(xlim=(0, len(tokens)), ylim=(0, 1))
    row.axis("off")
    row.set_title("one sequence of tokens; each belongs to a region, or to all", fontsize=10.5, color=INK)
    matrix = figure.add_axes((0.395, 0.5, 0.59, 0.27))
    draw_bias(matrix, [owner for _, owner in tokens], regions)
    matrix.set_title("what a pixel adds to its attention scores: 0, or -inf", fontsize=10.5, color=INK)
    hues = np.array([shade(number) for number in range(1, 1 + len(shown))])
    latents = attention_sizes((room.size[0] // 8, room.size[1] // 8), 4)
    for line, layout in enumerate(LAYOUTS):
        for column, latent in enumerate(latents):
            # Each cell in the mean colour of the regions it reads; what reads all is white.
            seen = log_visibility(regions, latent, layout)[0, 1:].exp().reshape(-1, *latent).numpy()
            mixed = np.einsum("rhw,rc->hwc", seen, hues) / np.maximum(seen.sum(0), 1)[..., None]
            mixed[seen.all(0)] = 1.0
            axes = figure.add_axes((0.15 + 0.215 * column, 0.245 - 0.235 * line, 0.2, 0.218))
            axes.imshow(np.rint(mixed * 255).astype(np.uint8), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color(PALE)
            if line == 0:
                axes.set_title(f"{latent[1]} x {latent[0]} cells", fontsize=9.5, color=INK)
        name = {"coverage": "coverage\n(default)", "nearest": "nearest\n(published)"}[layout]
        figure.text(0.1, 0.35 - 0.235 * line, name, ha="center", va="center", fontsize=10, color=INK)
    write_result({out: figure_png(figure)})
    logging.getLogger(__name__).info("%s", out)


build_app = single_app(draw_regions)

if __name__ == "__main__":
    run_module(build_app)
