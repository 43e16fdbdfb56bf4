"""The words of the small prompter: question and answer as published, captions as the small inpainter reads.

One token is one word with the blank before it, one tag, or a fixed sentence; so the tokens of an answer spell
exactly its text.
"""

import re

from tokenizers import decoders, processors
from transformers import PreTrainedTokenizerFast

from inpainting.prompts import COLORS, TEMPLATE, discover_question
from ldm.mllm.chat import LLAVA_SYSTEM, TEMPLATES
from tiny.llava import BEGIN, SPECIAL, word_tokenizer
from tiny.words import COLOUR_WORDS, SHAPE_WORDS

MASK_COLORS = tuple(COLORS)[:5]  # colours of masks that it knows
QUESTION = discover_question(["#"]).partition(" #")[0]
SENTENCES = (LLAVA_SYSTEM, QUESTION, "USER:", "ASSISTANT:")
TAGS = tuple(f"<{end}{color}>" for color in MASK_COLORS for end in ("", "/"))
SPOKEN = ("a", "an", *(f" {word}" for word in (*COLOUR_WORDS, *SHAPE_WORDS)))
VOCABULARY = (*SPECIAL, *SENTENCES, ",", ".", *TAGS, *SPOKEN)
CAPTION = 5  # tokens of a caption with its tags: <red> a red cone </red>


def token(text: str) -> int:
    """The id of one token."""
    return VOCABULARY.index(text)


def prompter_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer; every word outside the vocabulary becomes `<unk>`, and a text begins with `<s>`."""
    pieces = [*map(re.escape, SENTENCES), r"</?[a-z]+>", r" ?(?!USER:|ASSISTANT:)[A-Za-z]+", r"[,.]"]
    tokenizer = word_tokenizer(VOCABULARY, "|".join(pieces), decoders.Fuse(), TEMPLATES[TEMPLATE])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, SPECIAL.index(BEGIN))]
    )
    return tokenizer
