"""How a model writes a place: one small codec per family of models, and the form that its answers must have.

    bifrost    [0.320, 0.190, 0.560, 0.870], 0.890.               fractions of the image (the paper)
    square     the same text, fractions of the image padded to a square: what LLaVA-1.5 learned to ground in
    pixels     {"bbox_2d": [64, 38, 112, 174], "depth": 0.890}    pixels of the resized input (Qwen2.5-VL)
    thousand   {"bbox_2d": [320, 190, 560, 870], "depth": 0.890}  thousandths of the image (Qwen3-VL)

Texts of the paper's form are written and read by answer.py.
"""

import re
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any

from datasets.geometry import Box01, Size, square_padding
from llava_bifrost.language.answer import AnswerError, Location, format_answer, parse_answer
from llava_bifrost.language.grammar import PlaceForm
from llava_bifrost.language.instruction import check_format

CODECS = ("bifrost", "square", "pixels", "thousand")
# Which codec a family starts from; a model that was trained with another one says so in its locator.json.
FAMILIES = {
    "llava": "bifrost",
    "llava_next": "bifrost",
    "smolvlm": "bifrost",
    "qwen2_5_vl": "pixels",
    "qwen3_vl": "thousand",
    "qwen3_5": "thousand",
}
THOUSAND = 1000
_JSON = re.compile(r'"bbox_2d"\s*:\s*\[([^\]]*)\].*?"depth"\s*:\s*\[?([^\]}]*)', re.DOTALL)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Frame:
    """size_hw: of the image. input_hw: of what the model is given, resized, where a codec needs it."""

    size_hw: Size
    input_hw: Size | None = None


@dataclass(frozen=True)
class Codec:
    """Places to texts and back.

    name: one of CODECS. fmt: center or maxmedmin, one depth or three. decimals: of fractions and depths.
    """

    name: str = "bifrost"
    fmt: str = "center"
    decimals: int = 3

    def __post_init__(self) -> None:
        check_format(self.fmt)
        if self.name not in CODECS:
            raise ValueError(f"unknown codec {self.name!r}; allowed: {', '.join(CODECS)}")
        if not 2 <= self.decimals <= 4:
            raise ValueError(f"decimals must lie in [2, 4], got {self.decimals}")

    @property
    def as_json(self) -> bool:
        return self.name in ("pixels", "thousand")

    def form(self, frame: Frame) -> PlaceForm:
        """What answers about this image look like."""
        low, high = self._range(frame)
        parts = ("[", ", ", "], ", ".")
        if self.as_json:
            parts = ('{"bbox_2d": [', ", ", '], "depth": ', "}")
            if self.fmt == "maxmedmin":
                parts = (*parts[:2], '], "depth": [', "]}")
        decimals = 0 if self.as_json else self.decimals
        return PlaceForm(*parts, low, high, decimals, 1 if self.fmt == "center" else 3, self.decimals)

    def encode(self, location: Location, frame: Frame) -> str:
        """The answer that a model is trained to give."""
        if not self.as_json:
            box = to_square(location.box01_xyxy, frame) if self.name == "square" else location.box01_xyxy
            return format_answer(replace(location, box01_xyxy=box), self.fmt, self.decimals)
        x0, y0, x1, y1 = location.box01_xyxy
        w, h = self._range(frame)[1]
        (left, right), (top, bottom) = _whole(x0, x1, w), _whole(y0, y1, h)
        depths = ", ".join(f"{depth:.{self.decimals}f}" for depth in location.depths(self.fmt))
        depths = depths if self.fmt == "center" else f"[{depths}]"
        return f'{{"bbox_2d": [{left}, {top}, {right}, {bottom}], "depth": {depths}}}'

    def decode(self, text: str, frame: Frame) -> Location:
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
                raise AnswerError(f"the box of {text[:120]!r} lies outside the image, in its padding")
            return replace(location, box01_xyxy=(x0, y0, x1, y1))
        match = _JSON.search(text)
        corners, depths = (_NUMBER.findall(part) for part in (match.groups() if match else ("", "")))
        if len(corners) != 4 or len(depths) not in (1, 3):
            raise AnswerError(f"expected bbox_2d of 4 numbers and a depth, got {text[:120]!r}")
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
        unit = THOUSAND if self.name == "thousand" else 10**self.decimals
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

    h, w = smart_resize(
        *size_hw,
        factor=images.patch_size * images.merge_size,
        min_pixels=images.size["shortest_edge"],
        max_pixels=images.size["longest_edge"],
    )
    return Frame(size_hw, (int(h), int(w)))


def _inside(low: float, high: float, unit: int) -> tuple[int, int]:
    """The whole units within [low, high]; around it where there are not two of them."""
    first, last = ceil(low * unit - 1e-9), floor(high * unit + 1e-9)
    if first >= last:
        first = floor(low * unit)
        last = max(ceil(high * unit), first + 1)
    return first, last


def _whole(low: float, high: float, units: int) -> tuple[int, int]:
    """Both in whole units inside [0, units], at least one apart."""
    a, b = round(low * units), round(high * units)
    if a < b:
        return a, b
    a = min(int(low * units), units - 1)
    return a, a + 1
