"""The form of answers as regular expressions: numbers in a range, with fixed text between them.

Constrained decoding follows such an expression; once the first corner of a box is written, a narrower one
demands that the second lies right of it and below it, so every answer is a box with an area.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ldm.mllm.constrain import Grammar

LARGEST = 9999  # pixels
_SPECIAL = set(r".[]{}()*+?|^$\-")


@dataclass(frozen=True)
class PlaceForm:
    """The texts that an answer may have: numbers with fixed text between them.

    low, high: (x, y), the range of the corners in units of the last decimal. decimals: digits of a corner
    after the point, 0 for whole numbers. depths: how many, with depth_decimals digits after the point.
    """

    head: str
    comma: str
    middle: str
    tail: str
    low: tuple[int, int]
    high: tuple[int, int]
    decimals: int
    depths: int
    depth_decimals: int

    def family(self) -> str:
        """The answers about any image: whole numbers up to 9999, fractions up to 1."""
        most = 10**self.decimals if self.decimals else LARGEST
        return replace(self, low=(0, 0), high=(most, most)).pattern()

    def pattern(self, text: str = "") -> str:
        """A regular expression of all answers with x1 < x2 and y1 < y2 that can follow `text`.

        The order of the corners is only demanded once the first corner stands in `text`.
        """
        (x0, y0), (x1, y1) = self.low, self.high
        spans = [(x0, x1 - 1), (y0, y1 - 1), (x0 + 1, x1), (y0 + 1, y1)]
        if (first := self.first_corner(text)) is not None:
            x, y = first
            spans = [(x, x), (y, y), (x + 1, x1), (y + 1, y1)]
        corners = literal(self.comma).join(span(a, b, self.decimals) for a, b in spans)
        depth = span(0, 10**self.depth_decimals, self.depth_decimals)
        depths = literal(self.comma).join([depth] * self.depths)
        return f" ?{literal(self.head)}{corners}{literal(self.middle)}{depths}{literal(self.tail)}"

    def narrow(self, text: str) -> str | None:
        """The pattern with the corners in order, as soon as the first corner is written."""
        return None if self.first_corner(text) is None else self.pattern(text)

    def crosses(self, text: str) -> bool:
        """Whether a part of the second corner stands in the text."""
        match = self._first_corner(text)
        return match is not None and any(letter.isdigit() for letter in text[match.end() :])

    def first_corner(self, text: str) -> tuple[int, int] | None:
        """(x1, y1) in units, once both are complete in the text."""
        match = self._first_corner(text)
        if match is None:
            return None
        x, y = (round(float(value) * 10**self.decimals) for value in match.groups())
        (x0, y0), (x1, y1) = self.low, self.high
        return (x, y) if x0 <= x < x1 and y0 <= y < y1 else None

    def _first_corner(self, text: str) -> re.Match[str] | None:
        # A number without decimals is complete when something follows it.
        number, after = (rf"(\d\.\d{{{self.decimals}}})", "") if self.decimals else (r"(\d+)", self.comma[:1])
        parts = (self.head, number, self.comma, number, after)
        head, _, comma, _, end = (literal(part) for part in parts)
        return re.match(f" ?{head}{number}{comma}{number}{end}", text)

    def sample(self) -> str:
        """One answer, to see how a tokenizer spells it."""
        middle = [(a + b) // 2 for a, b in zip(self.low, self.high, strict=True)]
        corners = [number_text(value, self.decimals) for value in (*self.low, *middle)]
        depth = number_text(10**self.depth_decimals // 2, self.depth_decimals)
        depths = self.comma.join([depth] * self.depths)
        return f"{self.head}{self.comma.join(corners)}{self.middle}{depths}{self.tail}"

    def spelled_by(self, grammar: Grammar) -> PlaceForm:
        """This form as the tokens of a tokenizer spell it: some drop blanks, commas and the full stop.

        Raises ValueError if the tokenizer cannot write such answers at all.
        """
        spelled = grammar.spelling_of(self.sample())
        for dropped in ("", " ", " ,"):
            drop = str.maketrans("", "", dropped)
            head, comma, middle = (text.translate(drop) for text in (self.head, self.comma, self.middle))
            for tail in dict.fromkeys((self.tail, self.tail.rstrip("."))):
                form = replace(self, head=head, comma=comma, middle=middle, tail=tail.translate(drop))
                if form.sample() == spelled:
                    return form
        raise ValueError(f"the tokenizer cannot write {self.sample()!r}: its tokens spell {spelled!r}")


def number_text(units: int, decimals: int) -> str:
    """456 with 3 decimals -> 0.456; with none -> 456."""
    return f"{units / 10**decimals:.{decimals}f}" if decimals else str(units)


def span(low: int, high: int, decimals: int) -> str:
    """A regular expression of all numbers from low to high, in units of the last decimal.

    Numbers with decimals have one digit before the point.
    """
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
        return literal(low)
    if low[0] == high[0]:
        return literal(low[0]) + f"({_between(low[1:], high[1:])})"
    if len(low) == 1:
        return f"[{low}-{high}]"
    rest = low[1:]
    nines, zeros = ("".join("." if c == "." else digit for c in rest) for digit in "90")
    parts = [low[0] + f"({_between(rest, nines)})", high[0] + f"({_between(zeros, high[1:])})"]
    if int(high[0]) - int(low[0]) > 1:
        any_rest = "".join(r"\." if c == "." else "[0-9]" for c in rest)
        parts.insert(1, f"[{int(low[0]) + 1}-{int(high[0]) - 1}]{any_rest}")
    return "|".join(parts)


def literal(text: str) -> str:
    """Text as a regular expression."""
    return "".join("\\" + letter if letter in _SPECIAL else letter for letter in text)
