"""How a model writes a place: one small codec per family of models, and the form that its answers must have.

    bifrost    [0.320, 0.190, 0.560, 0.870], 0.890.               fractions of the image (the paper)
    square     the same text, fractions of the image padded to a square: what LLaVA-1.5 learned to ground in
    pixels     {"bbox_2d": [64, 38, 112, 174], "depth": 0.890}    pixels of the resized input (Qwen2.5-VL)
    thousand   {"bbox_2d": [320, 190, 560, 870], "depth": 0.890}  thousandths of the image (Qwen3-VL)

Constrained decoding follows a form as a regular expression. Once the first corner of a box is written, a
narrower one demands that the second lies right of it and below it, so every answer is a box with an area.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import ceil, floor
from typing import Any

from datasets.geometry import Box01, Size, square_padding
from datasets.relations import Place
from ldm.files import excerpt
from ldm.mllm.constrain import Grammar
from llava_bifrost.language.answer import AnswerError, apart, depths_of, format_answer, parse_answer

# Which codec a family starts from; a model that was trained with another one says so in its locator.json.
FAMILIES = dict.fromkeys(("llava", "llava_next", "smolvlm"), "bifrost")
FAMILIES |= {"qwen2_5_vl": "pixels", "qwen3_vl": "thousand", "qwen3_5": "thousand"}
LARGEST = 9999  # pixels
_JSON = re.compile(r'"bbox_2d"\s*:\s*\[([^\]]*)\].*?"depth"\s*:\s*\[?([^\]}]*)', re.DOTALL)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class PlaceForm:
    """The texts that an answer may have: numbers with fixed text between them."""

    head: str
    comma: str
    middle: str
    tail: str
    low: tuple[int, int]  # (x, y), the least corner in units of the last decimal
    high: tuple[int, int]  # (x, y), the largest
    decimals: int  # digits of a corner after the point, 0 for whole numbers
    depths: int  # how many
    depth_decimals: int  # digits of a depth after the point

    def family(self) -> str:
        """The answers about any image: whole numbers up to 9999, fractions up to 1."""
        most = 10**self.decimals if self.decimals else LARGEST
        return replace(self, low=(0, 0), high=(most, most)).pattern()

    def pattern(self, text: str = "") -> str:
        """A regular expression; x1 < x2 and y1 < y2 are demanded once the first corner stands in `text`."""
        (x0, y0), (x1, y1) = self.low, self.high
        spans = [(x0, x1 - 1), (y0, y1 - 1), (x0 + 1, x1), (y0 + 1, y1)]
        if first := self.first_corner(text):
            x, y = first
            spans = [(x, x), (y, y), (x + 1, x1), (y + 1, y1)]
        head, comma, middle, tail = map(re.escape, (self.head, self.comma, self.middle, self.tail))
        corners = comma.join(span(a, b, self.decimals) for a, b in spans)
        depths = comma.join([span(0, 10**self.depth_decimals, self.depth_decimals)] * self.depths)
        return f" ?{head}{corners}{middle}{depths}{tail}"

    def narrow(self, text: str) -> str | None:
        """The pattern with the corners in order, as soon as the first corner is written."""
        return None if self.first_corner(text) is None else self.pattern(text)

    def crosses(self, text: str) -> bool:
        """Whether a part of the second corner stands in the text."""
        match = self._corner.match(text)
        return match is not None and any(letter.isdigit() for letter in text[match.end() :])

    def first_corner(self, text: str) -> tuple[int, int] | None:
        """(x1, y1) in units, once both are complete in the text."""
        if (match := self._corner.match(text)) is None:
            return None
        x, y = (round(float(value) * 10**self.decimals) for value in match.groups())
        (x0, y0), (x1, y1) = self.low, self.high
        return (x, y) if x0 <= x < x1 and y0 <= y < y1 else None

    @cached_property
    def _corner(self) -> re.Pattern[str]:
        # A number without decimals is complete when something follows it.
        number, after = (rf"(\d\.\d{{{self.decimals}}})", "") if self.decimals else (r"(\d+)", self.comma[:1])
        head, comma, end = map(re.escape, (self.head, self.comma, after))
        return re.compile(f" ?{head}{number}{comma}{number}{end}")

    def text(self, corners: Sequence[int], depths: Sequence[float]) -> str:
        """An answer. corners: in units of the last decimal."""
        numbers = self.comma.join(number_text(value, self.decimals) for value in corners)
        ends = self.comma.join(f"{depth:.{self.depth_decimals}f}" for depth in depths)
        return f"{self.head}{numbers}{self.middle}{ends}{self.tail}"

    def sample(self) -> str:
        """One answer, to see how a tokenizer spells it."""
        middle = [(a + b) // 2 for a, b in zip(self.low, self.high, strict=True)]
        return self.text((*self.low, *middle), [0.5] * self.depths)

    def spelled_by(self, grammar: Grammar) -> "PlaceForm":
        """As a tokenizer spells it: some drop blanks, commas, the full stop. ValueError where none can."""
        spelled = grammar.spelling_of(self.sample())
        for dropped in ("", " ", " ,"):
            drop = str.maketrans("", "", dropped)
            head, comma, middle = (text.translate(drop) for text in (self.head, self.comma, self.middle))
            for tail in dict.fromkeys((self.tail, self.tail.rstrip("."))):
                form = replace(self, head=head, comma=comma, middle=middle, tail=tail.translate(drop))
                if form.sample() == spelled:
                    return form
        raise ValueError(f"the tokenizer cannot write {self.sample()!r}: its tokens spell {spelled!r}")


@dataclass(frozen=True)
class Frame:
    """size_hw: of the image. input_hw: of what the model is given, resized, where a codec needs it."""

    size_hw: Size
    input_hw: Size | None = None


@dataclass(frozen=True)
class Codec:
    """Places to texts and back: one of CODECS, one of FORMATS, and the decimals of fractions and depths."""

    name: str = "bifrost"
    fmt: str = "center"
    decimals: int = 3

    @property
    def as_json(self) -> bool:
        return self.name in ("pixels", "thousand")

    def form(self, frame: Frame) -> PlaceForm:
        (low, high), depths = self._range(frame), 1 if self.fmt == "center" else 3
        parts, decimals = ("[", ", ", "], ", "."), self.decimals
        if self.as_json:
            ends = ('], "depth": ', "}") if depths == 1 else ('], "depth": [', "]}")
            parts, decimals = ('{"bbox_2d": [', ", ", *ends), 0
        return PlaceForm(*parts, low, high, decimals, depths, self.decimals)

    def encode(self, location: Place, frame: Frame) -> str:
        """The answer that a model is trained to give."""
        if not self.as_json:
            box = to_square(location.box01_xyxy, frame) if self.name == "square" else location.box01_xyxy
            return format_answer(location.moved(box), self.fmt, self.decimals)
        form, (x0, y0, x1, y1) = self.form(frame), location.box01_xyxy
        (left, right), (top, bottom) = apart(x0, x1, form.high[0]), apart(y0, y1, form.high[1])
        return form.text((left, top, right, bottom), depths_of(location, self.fmt))

    def decode(self, text: str, frame: Frame) -> Place:
        """Read an answer; AnswerError says what is wrong with it."""
        if not self.as_json:
            location = parse_answer(text)
            if self.name != "square":
                return location
            (h, w), side = frame.size_hw, max(frame.size_hw)
            left, top, _, _ = square_padding(frame.size_hw)
            x0, y0, x1, y1 = location.box01_xyxy
            x0, x1 = (min(max((x * side - left) / w, 0.0), 1.0) for x in (x0, x1))
            y0, y1 = (min(max((y * side - top) / h, 0.0), 1.0) for y in (y0, y1))
            if x0 >= x1 or y0 >= y1:
                raise AnswerError(f"the box of {excerpt(text)} lies outside the image, in its padding")
            return location.moved((x0, y0, x1, y1))
        match = _JSON.search(text)
        corners, depths = (_NUMBER.findall(part) for part in (match.groups() if match else ("", "")))
        if len(corners) != 4 or len(depths) not in (1, 3):
            raise AnswerError(f"expected bbox_2d of 4 numbers and a depth, got {excerpt(text)}")
        w, h = self._range(frame)[1]
        fractions = [float(value) / side for value, side in zip(corners, (w, h, w, h), strict=True)]
        box = ", ".join(f"{value:.6f}" for value in fractions)
        return parse_answer(f"[{box}], {', '.join(depths)}.")

    def _range(self, frame: Frame) -> tuple[Size, Size]:
        """((x, y) smallest, (x, y) largest) of a corner, in units of its last decimal."""
        if self.name == "pixels":
            if frame.input_hw is None:
                raise ValueError("codec pixels needs a processor that resizes as Qwen-VL's does; use bifrost")
            return (0, 0), (frame.input_hw[1], frame.input_hw[0])
        unit = 1000 if self.name == "thousand" else 10**self.decimals
        if self.name == "square":
            x0, y0, x1, y1 = to_square((0.0, 0.0, 1.0, 1.0), frame)
            spans = [_inside(x0, x1, unit), _inside(y0, y1, unit)]
            return (spans[0][0], spans[1][0]), (spans[0][1], spans[1][1])
        return (0, 0), (unit, unit)


def to_square(box01: Box01, frame: Frame) -> Box01:
    """Fractions of an image -> fractions of the image padded to a square, as LLaVA pads it."""
    (h, w), side = frame.size_hw, max(frame.size_hw)
    left, top, _, _ = square_padding(frame.size_hw)
    x0, y0, x1, y1 = box01
    return (x0 * w + left) / side, (y0 * h + top) / side, (x1 * w + left) / side, (y1 * h + top) / side


def frame_of(processor: Any, size_hw: Size) -> Frame:
    """What a processor makes of an image of (h, w), as far as codecs need it."""
    images = processor.image_processor
    if not hasattr(images, "merge_size"):
        return Frame(size_hw)
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    pixels = images.size["shortest_edge"], images.size["longest_edge"]  # least and most
    h, w = smart_resize(*size_hw, images.patch_size * images.merge_size, *pixels)
    return Frame(size_hw, (int(h), int(w)))


def _inside(low: float, high: float, unit: int) -> tuple[int, int]:
    """The whole units within [low, high]; around it where there are not two of them."""
    first, last = ceil(low * unit - 1e-9), floor(high * unit + 1e-9)
    if first >= last:
        first = floor(low * unit)
        last = max(ceil(high * unit), first + 1)
    return first, last


def number_text(units: int, decimals: int) -> str:
    """456 with 3 decimals -> 0.456; with none -> 456."""
    return f"{units / 10**decimals:.{decimals}f}" if decimals else str(units)


@lru_cache(maxsize=10_000)
def span(low: int, high: int, decimals: int) -> str:
    """A regular expression of all numbers from low to high in units of the last decimal, as 0.456."""
    if decimals:
        return f"({_between(number_text(low, decimals), number_text(high, decimals))})"
    parts = []
    for width in range(len(str(low)), len(str(high)) + 1):
        smallest = 10 ** (width - 1) if width > 1 else 0
        parts.append(_between(str(max(low, smallest)), str(min(high, 10**width - 1))))
    return f"({'|'.join(parts)})"


def _between(low: str, high: str) -> str:
    """All texts of digits (and points at the same places) from low to high, both of one length."""
    if low == high:
        return re.escape(low)
    if low[0] == high[0]:
        return re.escape(low[0]) + f"({_between(low[1:], high[1:])})"
    if len(low) == 1:
        return f"[{low}-{high}]"
    rest = low[1:]
    nines, zeros = ("".join("." if c == "." else digit for c in rest) for digit in "90")
    parts = [low[0] + f"({_between(rest, nines)})", high[0] + f"({_between(zeros, high[1:])})"]
    if int(high[0]) - int(low[0]) > 1:
        any_rest = "".join(r"\." if c == "." else "[0-9]" for c in rest)
        parts.insert(1, f"[{int(low[0]) + 1}-{int(high[0]) - 1}]{any_rest}")
    return "|".join(parts)
