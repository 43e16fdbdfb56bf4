"""Proposed places drawn on an image (h, w, 3): a numbered box each, with its depth."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets.geometry import box_from_01
from datasets.relations import Place
from ldm.images import resize
from llava_bifrost.language.answer import Candidate

SIDE = 640  # pixels of the longer side at least, so that labels can be read
COLOURS = ((230, 60, 50), (40, 120, 220), (30, 150, 80), (230, 140, 20), (140, 70, 190), (20, 160, 170),
           (200, 60, 140), (120, 100, 40))  # fmt: skip
ANCHOR = (250, 250, 250)
PAD = 4  # pixels around a label


def draw_candidates(
    rgb_u8: np.ndarray, candidates: Sequence[Candidate], anchors: Mapping[str, Place] | None = None
) -> np.ndarray:
    """The image, at least 640 pixels long, with rank, depth and score; the best is drawn last, on top."""
    scale = max(1.0, SIDE / max(rgb_u8.shape[:2]))
    h, w = round(rgb_u8.shape[0] * scale), round(rgb_u8.shape[1] * scale)
    canvas = Image.fromarray(resize(rgb_u8, (h, w), how="linear"))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=max(14, max(h, w) // 42))

    def draw(box01: Sequence[float], label: str, colour: tuple[int, int, int], width: int) -> None:
        """One rectangle, its label inside the image at its upper left corner."""
        x0, y0, x1, y1 = (round(value) for value in box_from_01(box01, (h, w)))
        pen.rectangle((x0, y0, min(x1, w - 1), min(y1, h - 1)), outline=colour, width=width)
        left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
        wide, high = round(right - left) + 2 * PAD, round(bottom - top) + 2 * PAD
        x, y = min(x0, w - wide), (y0 - high if y0 >= high else y0)
        pen.rectangle((x, y, x + wide, y + high), fill=colour)
        ink = (255, 255, 255) if sum(colour) < 600 else (0, 0, 0)
        pen.text((x + PAD - left, y + PAD - top), label, fill=ink, font=font)

    for name, place in (anchors or {}).items():
        draw(place.box01_xyxy, name, ANCHOR, width=1)
    for number, candidate in reversed(list(enumerate(candidates, 1))):
        score = "" if candidate.score is None else f"  score {candidate.score:.2f}"
        label = f"{number}  depth {candidate.location.d:.2f}{score}"
        colour = COLOURS[(number - 1) % len(COLOURS)]
        draw(candidate.location.box01_xyxy, label, colour, width=4 if number == 1 else 2)
    return np.array(canvas)
