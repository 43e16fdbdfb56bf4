"""Answers with exactly one closed, non-empty tag per asked colour, whatever the model would rather say.

An expression fixes the tags and their order; a cap on the tokens between two tags makes every answer end.
Texts that are known already are part of the expression, so the model writes the others in their knowledge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.mllm.constrain import ConstrainedChoice, Fixed, Grammar

# Between the tags: one blank at most, a letter or digit, then anything printable but brackets.
CONTENT = r" ?[A-Za-z0-9][^<>\x00-\x1f\x7f-\x9f]*"
_SPECIAL = re.compile(r"([\\.+*?()|\[\]{}^$])")  # letters that mean something in an expression
_SPACED_TAG = re.compile(r"<\s*(/?)\s*(\w+)\s*>")


def pattern_of(tags: Sequence[str], given: Sequence[str] = ()) -> str:
    """The expression of an answer: the tags in this order; without tags a text of one line.

    given: one text per tag, empty where the model writes it
    """
    if not tags:
        return CONTENT
    texts = [" ?" + _SPECIAL.sub(r"\\\1", text) if text else CONTENT for text in given or [""] * len(tags)]
    return " ?" + "".join(f"<{tag}>{text}</{tag}>" for tag, text in zip(tags, texts, strict=True))


def spelled_alike(grammar: Grammar, text: str) -> str:
    """A text as the tokenizer's tokens spell it; empty where they cannot: a word that it does not know."""
    spelled = grammar.spelling_of(text)
    return spelled if _letters(spelled) == _letters(text) else ""


def _letters(text: str) -> str:
    return re.sub(r"\W", "", text)


def tightened(answer: str) -> str:
    """The answer with tags as published; a tokenizer of words puts blanks into them: `< red >`."""
    return _SPACED_TAG.sub(r"<\1\2>", answer)


def longest_answer(pattern: str, tags: Sequence[str], longest: int) -> int:
    """Tokens that surely suffice for an answer with at most `longest` of them for each prompt."""
    # Tags and known texts may be spelled letter by letter, and a letter that is cut may need more bytes.
    return len(pattern.encode()) + (longest + 4) * max(1, len(tags))


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
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            grammar,
            [Fixed(one) for one in patterns],
            prompt,
            greedy=0 if temperature else None,
            temperature=temperature or 1.0,
            generator=generator,
        )
        self.rules = [grammar.rule(one) for one in patterns]
        self.patterns, self.longest = list(patterns), longest
        self._found: dict[tuple[str, int | None, bool], Tensor] = {}

    def allowed(self, row: int, tokens: list[int]) -> Tensor:
        """The tokens (n,) that may follow; only those that close the tag once its text is long enough."""
        state = self.rules[row].walk(tokens)
        key = (self.patterns[row], state, self.said(tokens) >= self.longest)
        if key not in self._found:
            self._found[key] = torch.tensor(self._tokens(row, state, key[2]))
        return self._found[key]

    def _tokens(self, row: int, state: int | None, full: bool) -> list[int]:
        found = [] if state is None else self.rules[row].allowed(state)
        if not found:
            raise ValueError(f"no token continues the answer of form {self.patterns[row]}")
        return [token for token in found if full and self.closes(token)] or found

    def said(self, tokens: Sequence[int]) -> int:
        """How many tokens follow the last bracket."""
        texts = (self.grammar.spelled.get(token, b"") for token in reversed(tokens))
        return next((count for count, text in enumerate(texts) if b">" in text), len(tokens))

    def closes(self, token: int) -> bool:
        """Whether a token begins the closing tag, or ends an answer without tags."""
        return token == self.grammar.end or b"<" in self.grammar.spelled[token]
