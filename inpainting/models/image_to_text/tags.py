"""Answers with exactly one closed, non-empty tag per asked colour, whatever the model would rather say.

An expression fixes the tags and their order; a cap on the tokens between two tags makes every answer end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from ldm.constrain import ConstrainedChoice, Fixed, Grammar

# Between the tags: one blank at most, a letter or digit, then anything printable but brackets.
CONTENT = r" ?[A-Za-z0-9][^<>\x00-\x1f\x7f-\x9f]*"
_SPACED_TAG = re.compile(r"<\s*(/?)\s*(\w+)\s*>")


def pattern_of(tags: Sequence[str]) -> str:
    """The expression of an answer: the tags in this order; without tags a text of one line."""
    return " ?" + "".join(f"<{tag}>{CONTENT}</{tag}>" for tag in tags) if tags else CONTENT


def tightened(answer: str) -> str:
    """The answer with tags as published; a tokenizer of words puts blanks into them: `< red >`."""
    return _SPACED_TAG.sub(r"<\1\2>", answer)


def longest_answer(tags: Sequence[str], longest: int) -> int:
    """Tokens that surely suffice for an answer with at most `longest` of them between two tags."""
    # A tag may be spelled letter by letter, and a letter that is cut may need three more bytes.
    return 2 + longest + 4 + sum(2 * len(tag) + 5 + longest + 4 for tag in tags)


class TagChoice(ConstrainedChoice):
    """Chooses every next token of answers whose tags are given; see `ConstrainedChoice`.

    tags: one sequence per row. longest: tokens between two tags, after which the tag is closed.
    """

    def __init__(
        self,
        grammar: Grammar,
        tags: Sequence[Sequence[str]],
        prompt: int,
        longest: int,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        patterns = [pattern_of(one) for one in tags]
        super().__init__(
            grammar,
            [Fixed(one) for one in patterns],
            prompt,
            greedy=0 if temperature else None,
            temperature=temperature or 1.0,
            generator=generator,
        )
        self.rules = [grammar.rule(one) for one in patterns]
        self.longest = longest

    def allowed(self, row: int, tokens: list[int]) -> list[int]:
        """The tokens that may follow; only those that close the tag once its text is long enough."""
        rule = self.rules[row]
        state = rule.walk(tokens)
        found = [] if state is None else rule.allowed(state)
        if not found:
            raise ValueError(f"no token continues {self.grammar.spell(tokens)!r}")
        if self.said(tokens) < self.longest:
            return found
        closing = [token for token in found if self.closes(token)]
        return closing or found

    def said(self, tokens: Sequence[int]) -> int:
        """How many tokens follow the last bracket."""
        spelled = self.grammar.spelled
        return next((k for k, token in enumerate(reversed(tokens)) if b">" in spelled.get(token, b"")), len(tokens))

    def closes(self, token: int) -> bool:
        """Whether a token begins the closing tag, or ends an answer without tags."""
        return token == self.grammar.end or b"<" in self.grammar.spelled[token]
