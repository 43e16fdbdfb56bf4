"""What a prompt writer is asked about an image, and the form of its answer: one closed tag per colour.

An expression fixes the tags and their order; a cap on the tokens between two tags makes every answer end.
Known prompts are part of the expression, so the model writes the others in their knowledge.

Legend: h w pixels, r masks.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from inpainting.prompts import (
    COLORS,
    GRAY_NAME,
    LLAVA_PROMPT,
    discover_question,
    paint_masks,
    read_prompt,
)
from ldm.mllm.chat import ChatExample
from ldm.mllm.constrain import AnswerForm, ConstrainedChoice, Grammar
from ldm.mllm.templates import TEMPLATES
from ldm.settings.config import check_settings, setting

CONFIG_FILE = "prompter.json"  # beside the weights of a model or adapter
# Between the tags: one blank at most, a letter or digit, then anything printable but brackets.
CONTENT = r" ?[A-Za-z0-9][^<>\x00-\x1f\x7f-\x9f]*"
SPACED_TAG = re.compile(r"<\s*(/?)\s*(\w+)\s*>")  # as a tokenizer of words decodes a tag: `< red >`


@dataclass(frozen=True)
class PrompterConfig:
    """How a prompt writer is asked; without this file, as the released MultiMask adapter."""

    name: str = setting("prompt writer", help="short name for logs and recipes")
    notice: str = setting("", help="message when the model is loaded")
    colors: tuple[str, ...] = setting(tuple(COLORS), help="colours of masks that it knows")
    question: str = setting(
        "discover",
        choices=("discover", "gray", "plain"),
        help="discover: all masks in colours (MultiMask); gray: each alone in gray (1Mask); plain: the same, "
        "and the whole answer is the prompt (a model without adapter)",
    )
    template: str = setting("", help="chat template in ldm.mllm.templates; empty: as published")
    longest: int = setting(64, low=1, help="most tokens of one prompt")

    def __post_init__(self) -> None:
        check_settings(self)
        unknown = [name for name in self.colors if name not in COLORS]
        if unknown or not self.colors or len(set(self.colors)) < len(self.colors):
            known = ", ".join(COLORS)
            raise ValueError(f"colors must be different names among {known}; got {', '.join(self.colors)}")
        if self.template and self.template not in TEMPLATES:
            raise ValueError(f"unknown template {self.template!r}; allowed: {', '.join(TEMPLATES)}")


@dataclass(frozen=True, eq=False)
class Query:
    """One question about one painted image, and what its answer gives."""

    ask: ChatExample
    masks: tuple[int, ...]  # the masks it is about, in the order of the answer
    tags: tuple[str, ...]  # their colours; none: the whole answer is the prompt
    given: tuple[str, ...]  # their prompts as far as they are known, else ""

    def read(self, answer: str) -> dict[int, str]:
        """Mask -> its prompt, for those that are to be written; empty where a tag is missing."""
        if not self.tags:
            return {self.masks[0]: answer.strip()}
        named = zip(self.masks, self.tags, self.given, strict=True)
        return {mask: read_prompt(answer, tag) for mask, tag, known in named if not known}


def colors_of_masks(config: PrompterConfig, given: Sequence[str]) -> list[str]:
    """Colours of r masks, in their order. given: r prompts, "" where one is to be written.

    The last mask of the question has the first colour, red (published). Masks with a known prompt come first,
    so that the model knows these prompts when it writes the others. ValueError for too few colours.
    """
    count, known = len(given), config.colors
    if count > len(known):
        raise ValueError(f"{config.name} knows {len(known)} colours ({', '.join(known)}), got {count} masks")
    colors = dict(zip(asked_order(given), reversed(known[:count]), strict=True))
    return [colors[mask] for mask in range(count)]


def asked_order(given: Sequence[str]) -> list[int]:
    """Masks with a prompt first, else in their order."""
    return sorted(range(len(given)), key=lambda mask: not given[mask])


def queries_for(
    config: PrompterConfig, image_u8: np.ndarray, masks: Sequence[np.ndarray], given: Sequence[str]
) -> list[Query]:
    """The questions about an image (h, w, 3): one about all r masks, or one about each, as configured.

    Raises ValueError for masks that do not fit.
    """
    if not len(masks):
        raise ValueError("nothing to write: no mask given")
    for number, mask in enumerate(masks, 1):
        if mask.dtype != bool or mask.shape != image_u8.shape[:2]:
            actual = f"{mask.dtype} {mask.shape}, its image {image_u8.shape[:2]}"
            raise ValueError(f"mask {number} must be bool and of the image's size (h, w); it is {actual}")
        if not mask.any():
            raise ValueError(f"mask {number} is empty: no pixel is set")
    if len(given) != len(masks):
        raise ValueError(f"{len(given)} prompts are given for {len(masks)} masks; one each, or empty")
    if all(given):
        return []
    if config.question == "discover":
        colors, order = colors_of_masks(config, given), asked_order(given)
        tags = tuple(colors[mask] for mask in order)
        ask = ChatExample(paint_masks(image_u8, masks, colors), discover_question(tags))
        return [Query(ask, tuple(order), tags, tuple(given[mask] for mask in order))]
    plain = config.question == "plain"
    question, tags = (LLAVA_PROMPT, ()) if plain else (discover_question([GRAY_NAME]), (GRAY_NAME,))
    return [
        Query(ChatExample(paint_masks(image_u8, [mask], [GRAY_NAME]), question), (number,), tags, ("",))
        for number, mask in enumerate(masks)
        if not given[number]
    ]


def pattern_of(tags: Sequence[str], given: Sequence[str] = ()) -> str:
    """The expression of an answer: the tags in this order; without tags a text of one line.

    given: one text per tag, empty where the model writes it
    """
    if not tags:
        return CONTENT
    texts = [f" ?{re.escape(text)}" if text else CONTENT for text in given or [""] * len(tags)]
    return " ?" + "".join(f"<{tag}>{text}</{tag}>" for tag, text in zip(tags, texts, strict=True))


class TagChoice(ConstrainedChoice):
    """Chooses every next token of answers whose tags are given; see `ConstrainedChoice`.

    patterns: made by `pattern_of`, one per row. longest: tokens between two tags, after which one is closed.
    """

    def __init__(
        self,
        grammar: Grammar,
        patterns: Sequence[str],
        prompt: int,
        longest: int,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            grammar,
            [AnswerForm(pattern) for pattern in patterns],
            prompt,
            greedy=0 if temperature else None,
            temperature=temperature or 1.0,
            generator=generator,
        )
        self.patterns, self.longest = patterns, longest
        self.rules = [grammar.rule(pattern) for pattern in patterns]
        self._tensor = lru_cache(maxsize=None)(self._allowed_tensor)

    def allowed(self, row: int, tokens: list[int]) -> Tensor:
        """The tokens (n,) that may follow; only those that close the tag once its text is long enough."""
        texts = (self.grammar.spelled.get(token, b"") for token in reversed(tokens))
        after_tag = next((count for count, text in enumerate(texts) if b">" in text), len(tokens))
        return self._tensor(row, self.rules[row].walk(tokens), after_tag >= self.longest)

    def _allowed_tensor(self, row: int, state: int | None, full: bool) -> Tensor:
        tokens = [] if state is None else self.rules[row].allowed(state)
        if not tokens:
            raise ValueError(f"no token continues the answer of form {self.patterns[row]}")
        # These begin the closing tag, or end an answer without tags.
        closing = [x for x in tokens if full and (x == self.grammar.end or b"<" in self.grammar.spelled[x])]
        return torch.tensor(closing or tokens)
