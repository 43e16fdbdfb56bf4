"""Examples of the prompt writer as model inputs, for today's processors: nothing of an image is ever cut.

Legend: b rows of a batch, t tokens, image tokens included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from inpainting.prompts import discover_question, target_text
from ldm.mllm.chat import IGNORED, Chat, ChatExample
from ldm.mllm.training import tensors_of

Item = Mapping[str, Any]


class PromptCollate:
    """Items of LlavaDataset -> what the model is given.

    max_length: most tokens of an answer; longer ones lose words of their longest captions, so that every tag
        is still closed
    append_eos: the model learns to stop; off as published, where an answer ends with its last tag
    question: asked instead of the one about the colours (LLaVA-Prompt)
    """

    def __init__(
        self, chat: Chat, max_length: int = 512, append_eos: bool = True, question: str | None = None
    ) -> None:
        self.chat, self.max_length, self.append_eos, self.question = chat, max_length, append_eos, question

    def __call__(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Training examples with `labels` (b, t): the answer, -100 elsewhere; padded on the right."""
        batch = tensors_of(self.chat, [self.ask(item, self.target(item)) for item in items])
        if not self.append_eos:
            for row in batch["labels"]:
                said = (row != IGNORED).nonzero()
                if int(row[said[-1]]) == self.chat.end:
                    row[said[-1]] = IGNORED
        return batch

    def prompts(self, items: Sequence[Item]) -> dict[str, Any]:
        """Questions alone, padded on the left."""
        return self.chat.prompts([self.ask(item) for item in items])

    def ask(self, item: Item, answer: str | None = None) -> ChatExample:
        """The question about a painting with masks."""
        question = self.question or discover_question(item["entity_colors"])
        return ChatExample(np.asarray(item["PIL_masked_images"]), question, answer)

    def target(self, item: Item) -> str:
        """The answer of at most max_length tokens."""
        colors, captions = item["entity_colors"], list(item["entity_captions"])
        text = target_text(list(zip(colors, captions, strict=True)))
        while self.tokens(text) > self.max_length:
            words = [caption.split() for caption in captions]
            longest = max(range(len(words)), key=lambda number: len(words[number]))
            if not words[longest]:
                raise ValueError(
                    f"max_length={self.max_length} has no room for the tags of {len(colors)} colours"
                )
            captions[longest] = " ".join(words[longest][:-1])
            text = target_text(list(zip(colors, captions, strict=True)))
        return text

    def tokens(self, text: str) -> int:
        """How many tokens a text takes."""
        return len(self.chat.tokenizer(text, add_special_tokens=False)["input_ids"])
