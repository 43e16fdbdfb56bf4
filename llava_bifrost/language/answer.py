"""Where an object goes: a box and a depth, the answer text that says so, and a drawing of it.

    center      [x1, y1, x2, y2], d.                  depth of the object's centre (the paper)
    maxmedmin   [x1, y1, x2, y2], dmax, dmed, dmin.   depths over the object (the released builder)

Box: corners in fractions of the image's width and height. Depth: depth_01 of the background, 1 = nearest.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets.geometry import box_from_01, iou
from datasets.relations import Place, holds
from ldm.files import excerpt
from ldm.images import resize
from llava_bifrost.language.instruction import PHRASES, Request, check_format, clause_text

TOLERANCE = 0.25  # numbers this far outside [0, 1] are clamped; beyond it they are no fractions; chosen
REPLACED_IOU = 0.5  # an object replaces another when their boxes agree at least so well; chosen
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?(?!\w|\.\d)", re.IGNORECASE)
_BOX = re.compile(r"[\[(]([^\[\]()]*)[\])]")


class AnswerError(ValueError):
    """A text that is not an answer."""


@dataclass(frozen=True)
class Candidate:
    location: Place
    log_probability: float  # of the answer's tokens, 0 for a rule
    text: str  # the answer as it was given
    score: float | None = None  # rank by geometry, larger is better; None before ranking


def depths_of(place: Place, fmt: str) -> tuple[float, ...]:
    """The depths of an answer in format `fmt`: one, or max, median and min."""
    return (place.d,) if fmt == "center" else (place.near, place.d, place.far)


def format_answer(location: Place, fmt: str = "center", decimals: int = 3) -> str:
    """The published answer text. Corners that round to the same number are moved one unit apart."""
    check_format(fmt)
    if not 1 <= decimals <= 6:
        raise ValueError(f"decimals must lie in [1, 6], got {decimals}")
    x0, y0, x1, y1 = location.box01_xyxy
    (left, right), (top, bottom) = apart(x0, x1, 10**decimals), apart(y0, y1, 10**decimals)
    box = ", ".join(f"{value / 10**decimals:.{decimals}f}" for value in (left, top, right, bottom))
    return f"[{box}], " + ", ".join(f"{depth:.{decimals}f}" for depth in depths_of(location, fmt)) + "."


def apart(low: float, high: float, unit: int) -> tuple[int, int]:
    """Both in units, rounded, at least one unit apart inside [0, unit]."""
    a, b = round(low * unit), round(high * unit)
    if a < b:
        return a, b
    a = min(floor(low * unit), unit - 1)
    return a, max(a + 1, min(ceil(high * unit), unit))


def parse_answer(text: str) -> Place:
    """Read an answer of either format; AnswerError says what is wrong with it.

    Any number of decimals, other brackets or none, missing blanks or words around it are accepted. Numbers up
    to 0.25 outside [0, 1] are clamped, corners in the wrong order exchanged, three depths sorted. Refused:
    numbers farther outside (pixels, per cent), a box without area after that, another count of numbers.
    """
    corners, depths = answer_numbers(text)
    x0, y0, x1, y1 = (_clamped(number, text) for number in corners)
    if x0 == x1 or y0 == y1:
        raise AnswerError(f"the box of {excerpt(text)} has no area")
    box = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
    values = sorted(_clamped(number, text) for number in depths)
    return Place.of(box, values[0]) if len(values) == 1 else Place(box, values[1], values[0], values[2])


def answer_numbers(text: str) -> tuple[list[str], list[str]]:
    """The four numbers of the box and the one or three depths; AnswerError where it has others."""
    box_text = _BOX.search(text)
    corners = _NUMBER.findall(box_text[1]) if box_text else []
    if box_text and corners:
        depths = _NUMBER.findall(text[box_text.end() :])
    else:
        numbers = _NUMBER.findall(text)
        corners, depths = numbers[:4], numbers[4:]
    if len(corners) != 4 or len(depths) not in (1, 3):
        count = f"{len(corners)} and {len(depths)}"
        raise AnswerError(f"an answer has 4 box numbers and 1 or 3 depths, got {count} in {excerpt(text)}")
    return corners, depths


def _clamped(number: str, text: str) -> float:
    value = float(number)
    if not -TOLERANCE <= value <= 1 + TOLERANCE:
        raise AnswerError(f"{number} in {excerpt(text)} is not a fraction between 0 and 1")
    return min(max(value, 0.0), 1.0)


def ways_to_place(names: Sequence[str]) -> str:
    """How a user says where named objects are, the easiest way first; follows "needs to know"."""
    typed = " ".join(f'"{name}=x1,y1,x2,y2"' for name in names)
    return (
        f"where the {' and the '.join(names)} is: give --detector FOLDER, which finds it (python -m "
        "ldm.registry pull detector), or builtin, a rough one, or --anchors FILE.json with its box (python "
        f"-m llava_bifrost.predict anchors --image IMAGE --out FILE.json {typed} writes one), or, instead of "
        "the sentence, --box x1,y1,x2,y2 of run_inference.py image"
    )


def named_places(request: Request, anchors: Mapping[str, Place]) -> dict[str, Place]:
    """The places of the names in a request; ValueError lists those that are not known, and what to give."""
    known = {" ".join(name.lower().split()): place for name, place in anchors.items()}
    missing = [name for name in request.named if name not in known]
    if missing:
        listed = ", ".join(known) or "nothing else"
        raise ValueError(f"--locator geometric knows {listed}, and needs to know {ways_to_place(missing)}")
    return {name: known[name] for name in request.named}


def satisfies(where: Place, request: Request, anchors: Mapping[str, Place]) -> dict[str, bool]:
    """Each clause of the request -> whether it is true: {"behind the sofa": True, ...}.

    anchors: name -> place, for every name in the request. For a request to replace, the target's own place
    decides (IoU at least 0.5) where it is given; otherwise nothing can be decided and the answer is empty.
    """
    if request.replace and request.target not in {" ".join(name.lower().split()) for name in anchors}:
        return {}
    known = named_places(request, anchors)
    if request.replace:
        overlap = iou(where.box01_xyxy, known[request.target].box01_xyxy)
        return {f"replace the {request.target}": overlap >= REPLACED_IOU}
    return {
        clause_text(phrase, names): holds(PHRASES[phrase], where, *(known[name] for name in names))
        for phrase, names in request.clauses
    }


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
