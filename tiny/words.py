"""The words of the rendered world, and the tokenizers of the small networks: of CLIP's kind, and of words."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from datasets.scenes.palette import COLOURS, PATTERN_WORDS, SHAPES

COLOUR_WORDS, SHAPE_WORDS = tuple(COLOURS), tuple(SHAPES)
KINDS = (*SHAPE_WORDS, "table", "platform")  # last words of names, which the vision stages tell apart
PATTERN_NAMES = tuple(PATTERN_WORDS.values())  # "" is one of them
PATTERNED = tuple(filter(None, PATTERN_NAMES))
OTHER_WORDS = ("a", "an", "and", "the", "of", "object")
PATTERN_PARTS = " ".join(PATTERNED).replace("-", " - ").split()
ONE_TOKEN = sorted({*COLOUR_WORDS, *SHAPE_WORDS, *PATTERN_PARTS, *OTHER_WORDS})
LENGTH = 77  # tokens of a prompt of the small inpainter
PAD, BEGIN, END, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
SPECIAL = (PAD, BEGIN, END, UNKNOWN, IMAGE)  # the first words of the vocabularies of the small LLaVAs


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


def make_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the small inpainter: 77 tokens, padded like Stable Diffusion 2 (byte 0).

    The vocabulary has CLIP's structure (256 bytes, the same with an end-of-word mark, merges, begin, end), so
    any text can be written; every word of the world is one token, any other falls apart into letters. The
    merges join each word, and nothing that another word's merges would break: the most frequent pair over all
    words first, as in training such a vocabulary; ties are broken by spelling, so the words alone decide.
    """
    spelled = [" ".join(word) + "</w>" for word in ONE_TOKEN]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for text in spelled for pair in pairwise(text.split())):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        both = re.compile(rf"(?<!\S){re.escape(' '.join(best))}(?!\S)")
        spelled = [both.sub("".join(best), text) for text in spelled]
    letters, begin, end = list(bytes_to_unicode().values()), "<|startoftext|>", "<|endoftext|>"
    pieces = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), begin, end]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, unk_token=end, bos_token=begin, eos_token=end, pad_token="!",
        model_max_length=LENGTH,
    )  # fmt: skip


def word_tokenizer(
    vocabulary: Sequence[str], pieces: str, decoder: decoders.Decoder, template: str, begins: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words; every word outside the vocabulary becomes `<unk>`.

    pieces: regular expression of what is a token; begins: a text without the template begins with `<s>` too
    """
    numbers = {word: index for index, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "removed", invert=True)
    backend.decoder = decoder
    if begins:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", special_tokens=[(BEGIN, SPECIAL.index(BEGIN))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN, pad_token=PAD,
        additional_special_tokens=[IMAGE], chat_template=template, padding_side="left",
        model_max_length=512, clean_up_tokenization_spaces=False,
    )  # fmt: skip
