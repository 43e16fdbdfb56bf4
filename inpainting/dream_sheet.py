"""The sheet of a dream: before, masks in their colours, after, and the prompts below.

Legend: h w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from inpainting.dream_prompts import Prompts
from inpainting.prompts import paint_masks, rgb_of
from ldm.sheet import FRAME, GAP, INK, PAPER, grid

SIZE = 18  # of the letters
LINE = 26
SWATCH = 16


def dream_sheet(
    image_u8: np.ndarray,
    masks: Sequence[np.ndarray],
    prompts: Prompts,
    results_u8: Sequence[np.ndarray],
    titles: Sequence[str] = ("after",),
) -> np.ndarray:
    """(h, w, 3) uint8: the image, what the prompt writer saw, the results; below a line per mask."""
    seen = paint_masks(image_u8, masks, prompts.colors)
    images = grid([[image_u8, seen, *results_u8]], ["before", "masks", *titles])
    return np.vstack([images, legend(prompts, images.shape[1])])


def legend(prompts: Prompts, width: int) -> np.ndarray:
    """(h, width, 3) uint8: for each mask its colour and its prompt, broken into lines."""
    font = ImageFont.load_default(size=SIZE)
    left, rows = 2 * GAP + SWATCH, []
    for row in prompts.rows():
        told = f"{row['prompt'] or '(nothing)'}   ({'written' if row['written'] else 'given'})"
        lines = broken(told, font, width - left - GAP)
        rows += [(line, row["color"] if k == 0 else "") for k, line in enumerate(lines)]
    sheet = Image.new("RGB", (width, len(rows) * LINE + 2 * GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (line, color) in enumerate(rows):
        y = GAP + number * LINE
        if color:
            box = (GAP, y, GAP + SWATCH, y + SWATCH)
            pen.rectangle(box, fill=rgb_of(color), outline=FRAME)
        pen.text((left, y + SWATCH // 2), line, fill=INK, font=font, anchor="lm")
    return np.array(sheet)


def broken(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """A text in lines of at most `width` pixels; a longer word is cut."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
