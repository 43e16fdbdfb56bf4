"""What the small inpainter can read: the words of the rendered world, as a tokenizer of CLIP's own kind.

The vocabulary has CLIP's structure (256 bytes, the same with an end-of-word mark, merges, begin, end), so any
text can be written; every word of the world is one token, any other falls apart into letters.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

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


def merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that join each word, and nothing that another word's merges would break.

    The most frequent pair over all words is joined first, as in training such a vocabulary; ties are
    broken by spelling, so the result depends on the words alone.
    """
    spelled = [" ".join(word) + "</w>" for word in sorted(set(words))]
    joined: list[tuple[str, str]] = []
    while counts := Counter(pair for text in spelled for pair in pairwise(text.split())):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        joined.append(best)
        both = re.compile(rf"(?<!\S){re.escape(' '.join(best))}(?!\S)")
        spelled = [both.sub("".join(best), text) for text in spelled]
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
