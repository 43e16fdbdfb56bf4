"""What the small inpainter can read: the words of the rendered world, as a tokenizer of CLIP's own kind.

The vocabulary has CLIP's structure (256 bytes, the same with an end-of-word mark, merges, begin, end), so any
text can be written; every word of the world is one token, any other falls apart into letters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from datasets.scenes.palette import COLOURS, PATTERN_WORDS, SHAPES

COLOUR_WORDS, SHAPE_WORDS = tuple(COLOURS), tuple(SHAPES)
KINDS = (*SHAPE_WORDS, "table", "platform")  # last words of names, which the vision stages tell apart
PATTERNED = tuple(word for word in PATTERN_WORDS.values() if word)
OTHER_WORDS = ("a", "an", "and", "the", "of", "object")
PATTERN_PARTS = " ".join(PATTERNED).replace("-", " - ").split()
ONE_TOKEN = sorted({*COLOUR_WORDS, *SHAPE_WORDS, *PATTERN_PARTS, *OTHER_WORDS})
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
PAD = "!"  # as Stable Diffusion 2 pads: byte 0 of the vocabulary
LENGTH = 77
SPEAKABLE_PATTERN = 0.3  # fraction of random names with a pattern


@dataclass(frozen=True)
class Name:
    """A solid in words, such as "diagonally striped red cone"; `pattern` is empty for one colour."""

    pattern: str
    colour: str
    shape: str

    @property
    def text(self) -> str:
        return " ".join(word for word in (self.pattern, self.colour, self.shape) if word)


def read_name(text: str) -> Name | None:
    """The parts of a solid's name; None when it has no colour and shape (a table)."""
    *pattern, colour, shape = ["", "", *text.split()][-max(2, len(text.split())) :]
    if colour not in COLOURS or shape not in SHAPES:
        return None
    return Name(" ".join(word for word in pattern if word), colour, shape)


def caption_of(name: Name) -> str:
    """The prompt of a mask: "an orange egg", "a striped red cone"."""
    return f"{'an' if name.text[0] in 'aeiou' else 'a'} {name.text}"


def random_name(rng: np.random.Generator, taken: Iterable[str] = ()) -> Name:
    """Any solid of the world whose colour is not in `taken`; most have one colour only."""
    free = [colour for colour in COLOUR_WORDS if colour not in set(taken)]
    pattern = PATTERNED[int(rng.integers(len(PATTERNED)))] if rng.random() < SPEAKABLE_PATTERN else ""
    return Name(pattern, free[int(rng.integers(len(free)))], SHAPE_WORDS[int(rng.integers(len(SHAPE_WORDS)))])


def merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that join each word, and nothing that another word's merges would break.

    The most frequent pair over all words is joined first, as in training such a vocabulary; ties are
    broken by spelling, so the result depends on the words alone.
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    joined: list[tuple[str, str]] = []
    while True:
        counts: dict[tuple[str, str], int] = {}
        for parts in spelled:
            for pair in zip(parts, parts[1:], strict=False):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            return joined
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        joined.append(best)
        spelled = [_joined(parts, best) for parts in spelled]


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def make_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the small inpainter: 77 tokens, padded like Stable Diffusion 2."""
    letters = list(bytes_to_unicode().values())
    pairs = merges(ONE_TOKEN)
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in pairs)]
    vocabulary = {piece: index for index, piece in enumerate([*dict.fromkeys(pieces), BEGIN, END])}
    return CLIPTokenizer(
        vocab=vocabulary, merges=pairs, unk_token=END, bos_token=BEGIN, eos_token=END, pad_token=PAD,
        model_max_length=LENGTH,
    )  # fmt: skip


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """A stock CLIP tokenizer folder; vocab.json and merges.txt for libraries that read these."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))
