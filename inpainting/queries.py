"""The questions to the prompt writer about an image, and the tokens that its answers may have.

Legend: h w pixels, r masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from inpainting.prompts import (
    GRAY_NAME,
    LLAVA_PROMPT,
    PrompterConfig,
    asked_order,
    check_masks,
    colors_of_masks,
    discover_question,
    paint_masks,
    read_prompt,
)
from ldm.mllm.constrain import AnswerForm, ConstrainedChoice, Grammar
from ldm.mllm.model import ChatExample


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


def queries_for(
    config: PrompterConfig, image_u8: np.ndarray, masks: Sequence[np.ndarray], given: Sequence[str]
) -> list[Query]:
    """The questions about an image (h, w, 3): one about all r masks, or one about each, as configured.

    Raises ValueError for masks that do not fit.
    """
    if not len(masks):
        raise ValueError("nothing to write: no mask given")
    check_masks(image_u8, masks)
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
