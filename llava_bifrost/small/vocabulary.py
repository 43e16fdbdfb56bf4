"""The words that the small locator knows.

Format C of the published model is kept word for word. A number is one token, "0.00" ... "1.00"; commas and
the full stop of an answer carry no information: the tokenizer drops them and its decoder puts them back.
"""

from __future__ import annotations

from datasets.scenes.palette import COLOURS, PATTERN_WORDS, SHAPES
from ldm.small_llava import SPECIAL

SHAPE_WORDS = (*SHAPES, "table", "platform")  # what the vision stage tells apart
COLOUR_WORDS = tuple(COLOURS)
PATTERN_NAMES = tuple(PATTERN_WORDS.values())  # "" is one of them
FURNITURE = ("table", "low platform")

NUMBERS = tuple(f"{i / 100:.2f}" for i in range(101))
PHRASES = (
    "to the left of", "to the right of", "left of", "right of", "in front of", "behind",
    "on top of", "at the top of", "above", "over", "on", "below", "underneath", "under", "beneath",
    "next to", "near", "beside", "alongside", "between",
)  # fmt: skip
TAIL = ", output the bounding box and the depth value of the center point."
WORDS = (
    "USER:", "ASSISTANT:", "Place", "Replace", "the", "and", "with the reference image", TAIL,
    *PHRASES, *dict.fromkeys(w for name in (*PATTERN_NAMES, *FURNITURE) for w in name.split()),
    *COLOUR_WORDS, *SHAPES, "[", "]",
)  # fmt: skip
VOCABULARY = (*SPECIAL, *WORDS, *NUMBERS)


def name_labels(name: str) -> tuple[int, int, int]:
    """A solid's name -> indices of its shape, colour and pattern; furniture has no colour and no pattern."""
    words = name.split()
    shape = SHAPE_WORDS.index(words[-1])
    if name in FURNITURE:
        return shape, -1, -1
    return shape, COLOUR_WORDS.index(words[-2]), PATTERN_NAMES.index(" ".join(words[:-2]))
