"""Labelled contact sheets: a grid of images with a title per column and a label per row (h w pixels)."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm.decode import row_blocks
from ldm.images import resize

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
PAPER, INK, FRAME_COLOR = (255, 255, 255), (25, 25, 25), (205, 205, 205)
CELL_GAP = 8  # pixels between cells
LONGEST_LABEL = 0.9  # of a cell's width; longer row labels are wrapped


def grid(
    rows: Sequence[Sequence[np.ndarray | None]],
    titles: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    cell: int = 256,
) -> np.ndarray:
    """Lay images out in rows, each fitted into a square of `cell` pixels with its aspect kept.

    rows:    (h, w, 3) or (h, w) uint8, masks (h, w) bool, maps (h, w) float in [0, 1]; None stays empty
    returns: (h, w, 3) uint8
    """
    if (columns := max((len(row) for row in rows), default=0)) == 0:
        raise ValueError("a sheet needs at least one image")
    if len(titles) not in (0, columns) or len(row_labels) not in (0, len(rows)):
        expected = f"{columns} titles and {len(rows)} row labels"
        raise ValueError(f"the sheet needs {expected} or none, got {len(titles)} and {len(row_labels)}")
    font = ImageFont.load_default(size=max(11, cell // 14))
    titles = [wrap_text(title, font, cell) for title in titles]
    labels = [wrap_text(label, font, int(cell * LONGEST_LABEL)) for label in row_labels]
    left = max((_extent(label, font)[0] for label in labels), default=-CELL_GAP) + 2 * CELL_GAP
    top = max((_extent(title, font)[1] for title in titles), default=-CELL_GAP) + 2 * CELL_GAP
    sheet = Image.new("RGB", (left + columns * (cell + CELL_GAP), top + len(rows) * (cell + CELL_GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        at_xy = left + column * (cell + CELL_GAP) + cell // 2, top - CELL_GAP
        pen.multiline_text(at_xy, title, fill=INK, font=font, anchor="md", align="center")
    for row, label in enumerate(labels):
        at_xy = left - CELL_GAP, top + row * (cell + CELL_GAP) + cell // 2
        pen.multiline_text(at_xy, label, fill=INK, font=font, anchor="rm", align="right")
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            if image is None:
                continue
            # In the middle of its cell, with a thin frame. Small images keep hard pixel edges.
            levels_u8 = as_levels(image)
            scale = cell / max(levels_u8.shape[:2])
            h, w = (max(1, round(side * scale)) for side in levels_u8.shape[:2])
            fitted = Image.fromarray(resize(levels_u8, (h, w), how="nearest" if scale >= 2 else "area"))
            x = left + column * (cell + CELL_GAP) + (cell - w) // 2
            y = top + row * (cell + CELL_GAP) + (cell - h) // 2
            sheet.paste(fitted, (x, y))
            pen.rectangle((x - 1, y - 1, x + w, y + h), outline=FRAME_COLOR)
    return np.array(sheet)


def as_levels(image: np.ndarray) -> np.ndarray:
    """An image, mask or map in [0, 1] as RGB (h, w, 3) or gray (h, w) uint8."""
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    elif np.issubdtype(image.dtype, np.floating):
        values, image = image, np.empty(image.shape, np.uint8)
        for rows in row_blocks(len(image)):
            image[rows] = np.rint(np.clip(values[rows], 0, 1) * 255)
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f"a sheet shows uint8, bool or float images, got {image.dtype} {image.shape}")
    return image if image.ndim == 2 else np.ascontiguousarray(image[:, :, :3])


def _extent(text: str, font: Font) -> tuple[int, int]:
    """(width, height) of a text of one or more lines in pixels."""
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    x0, _, x1, _ = ruler.multiline_textbbox((0, 0), text, font=font)
    # Every line counts as one with ascenders and descenders: texts side by side share a base line.
    _, y0, _, y1 = ruler.multiline_textbbox((0, 0), "\n".join(["Ag"] * (text.count("\n") + 1)), font=font)
    return round(x1 - min(x0, 0)), round(y1 - min(y0, 0)) + 2


def wrap_text(text: str, font: Font, width: int, cut: bool = False) -> str:
    """Break a text at spaces and underscores into lines of `width` pixels; cut: longer words too."""
    lines: list[str] = []
    for word in text.replace("_", "_ ").split():
        joined = f"{lines[-1]} {word}".replace("_ ", "_") if lines else word
        if lines and _extent(joined, font)[0] <= width:
            lines[-1] = joined
            continue
        lines.append("")
        for letter in word:
            if cut and lines[-1] and _extent(lines[-1] + letter, font)[0] > width:
                lines.append("")
            lines[-1] += letter
    return "\n".join(lines)
