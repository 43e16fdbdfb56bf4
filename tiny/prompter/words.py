"""The words of the small prompter: question and answer as published, captions as the small inpainter reads.

One token is one word with the blank before it, one tag, or a fixed sentence; so the tokens of an answer spell
exactly its text.
"""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from inpainting.prompts import COLORS, TEMPLATE, discover_question
from ldm.mllm.templates import LLAVA_SYSTEM, TEMPLATES
from tiny.llava import BEGIN, END, IMAGE, PAD, SPECIAL, UNKNOWN
from tiny.words import COLOUR_WORDS, SHAPE_WORDS, Name, caption

MASKS = tuple(COLORS)[:5]  # colours of masks that it knows
QUESTION = discover_question(["#"]).partition(" #")[0]
SENTENCES = (LLAVA_SYSTEM, QUESTION, "USER:", "ASSISTANT:")
TAGS = tuple(f"<{end}{color}>" for color in MASKS for end in ("", "/"))
SPOKEN = ("a", "an", *(f" {word}" for word in (*COLOUR_WORDS, *SHAPE_WORDS)))
VOCABULARY = (*SPECIAL, *SENTENCES, ",", ".", *TAGS, *SPOKEN)
CAPTION = 5  # tokens of a caption with its tags: <red> a red cone </red>


def token(text: str) -> int:
    """The id of one token."""
    return VOCABULARY.index(text)


def question_tokens(masks: list[int]) -> list[int]:
    """Ids of the question about masks of these colours (numbers into MASKS), from its first word on."""
    listed = [part for number in masks for part in (token(f" {MASKS[number]}"), token(","))]
    return [token(QUESTION), *listed[:-1], token("."), token("ASSISTANT:")]


def caption_tokens(mask: int, colour: int, shape: int) -> list[int]:
    """CAPTION ids of a tagged caption; numbers into MASKS, COLOUR_WORDS, SHAPE_WORDS."""
    article = caption(Name("", COLOUR_WORDS[colour], SHAPE_WORDS[shape])).split()[0]
    words = (article, f" {COLOUR_WORDS[colour]}", f" {SHAPE_WORDS[shape]}")
    return [token(f"<{MASKS[mask]}>"), *map(token, words), token(f"</{MASKS[mask]}>")]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer; every word outside the vocabulary becomes `<unk>`, and a text begins with `<s>`."""
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    pieces = [*map(re.escape, SENTENCES), r"</?[a-z]+>", r" ?(?!USER:|ASSISTANT:)[A-Za-z]+", r"[,.]"]
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(pieces)), "removed", invert=True)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, SPECIAL.index(BEGIN))]
    )
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN, pad_token=PAD,
        additional_special_tokens=[IMAGE], chat_template=TEMPLATES[TEMPLATE], padding_side="left",
        model_max_length=512, clean_up_tokenization_spaces=False,
    )  # fmt: skip
