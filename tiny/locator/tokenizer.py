"""Tokenizer of the small locator, of stock parts.

One token is one word, one relation phrase, one number or a fixed part of the published sentences. What
carries no information (commas, the full stop) is dropped when reading and put back when writing, so that the
published answer `[0.74, 0.46, 0.97, 0.78], 0.65.` is eight tokens and decodes to itself.
"""

import re

from tokenizers import Regex, decoders
from transformers import PreTrainedTokenizerFast

from datasets.scenes.palette import PATTERN_WORDS
from tiny.llava import SPECIAL, word_tokenizer
from tiny.words import COLOUR_WORDS, SHAPE_WORDS

CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{% set texts = [message['content']] %}"
    "{% else %}{% set texts = message['content'] | selectattr('type', 'equalto', 'text') "
    "| map(attribute='text') | list %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ texts | join(' ') + eos_token }}{% endgeneration %}"
    "{% else %}{{ texts | join(' ') + ' ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def locator_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer; every word outside the vocabulary becomes `<unk>`."""
    # What is a token: long phrases first, then numbers, brackets and any other word.
    several = sorted((word for word in WORDS if " " in word), key=len, reverse=True)
    phrases = [re.escape(word) if word == TAIL else rf"\b{re.escape(word)}\b" for word in several]
    pieces = "|".join([*phrases, r"\d\.\d\d(?!\d)", r"\[|\]", r"[A-Za-z]+(?:-[A-Za-z]+)*:?", r"\d+"])
    decoder = decoders.Sequence([
        decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(),
        decoders.Replace("[ ", "["), decoders.Replace(" ]", "],"),
        decoders.Replace(Regex(r"(?<=\d) (?=\d)"), ", "),
        decoders.Replace(Regex(r"(?<=\], \d\.\d\d)\Z"), "."),
    ])  # fmt: skip
    return word_tokenizer(VOCABULARY, pieces, decoder, CHAT)


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
    *COLOUR_WORDS, *SHAPE_WORDS, "[", "]",
)  # fmt: skip
VOCABULARY = (*SPECIAL, *WORDS, *NUMBERS)
