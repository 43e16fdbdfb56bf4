"""Batches of the prompt writer: the opacity of the masks at each step, and examples as model inputs.

Opacities follow from (seed, epoch, image, step), so an interrupted run goes on as if nothing had happened.
Nothing of an image is ever cut. Legend: b rows of a batch, t tokens, image tokens included.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from inpainting.models.image_to_text.dataset import LlavaDataset
from inpainting.models.image_to_text.settings import AlphaOptions
from inpainting.prompts import discover_question, target_text
from ldm.mllm.model import IGNORED, Chat, ChatExample
from ldm.seeds import seed_of

Item = Mapping[str, Any]


class WithAlphas(Dataset[dict[str, Any]]):
    """Images whose masks have the opacity of the optimizer step that they belong to.

    batches(epoch): the images of each batch, in order; `ldm.training.fit` takes the same ones
    steps: of the curriculum. per_step: batches of all processes that make one step of the optimizer
    """

    def __init__(
        self,
        dataset: LlavaDataset,
        options: AlphaOptions,
        batches: Callable[[int], list[list[int]]],
        steps: int,
        per_step: int = 1,
        seed: int = 0,
    ) -> None:
        self.dataset, self.options, self.batches = dataset, options, batches
        self.steps, self.per_step, self.seed = steps, per_step, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Other random decisions and opacities from now on."""
        self.epoch = epoch
        self.dataset.set_epoch(epoch)
        batches = self.batches(epoch)
        first = epoch * math.ceil(len(batches) / self.per_step)
        numbered = ((first + number // self.per_step, batch) for number, batch in enumerate(batches))
        self.step_of = {index: step for step, batch in numbered for index in batch}

    def alphas(self, index: int) -> list[float]:
        """The opacities of an image's masks in this epoch."""
        rng = np.random.default_rng(seed_of(self.seed, "alpha", self.epoch, index))
        return self.options.alphas(self.step_of[index], self.steps, self.dataset.options.colors, rng)

    def __len__(self) -> int:
        return len(self.step_of)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset.with_alphas(index, self.alphas(index))


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
        batch = self.chat.examples([self.ask(item, self.target(item)) for item in items])
        if not self.append_eos:
            for row in batch["labels"]:
                last = (row != IGNORED).nonzero()[-1]
                if int(row[last]) == self.chat.end:
                    row[last] = IGNORED
        return batch

    def ask(self, item: Item, answer: str | None = None) -> ChatExample:
        """The question about a painting with masks."""
        question = self.question or discover_question(item["entity_colors"])
        return ChatExample(np.asarray(item["PIL_masked_images"]), question, answer)

    def target(self, item: Item) -> str:
        """The answer of at most max_length tokens."""
        colors, captions = item["entity_colors"], list(item["entity_captions"])
        while self.tokens(text := target_text(list(zip(colors, captions, strict=True)))) > self.max_length:
            longest = max(range(len(captions)), key=lambda number: len(captions[number].split()))
            words = captions[longest].split()
            if not words:
                raise ValueError(
                    f"max_length={self.max_length} has no room for the tags of {len(colors)} colours"
                )
            captions[longest] = " ".join(words[:-1])
        return text

    def tokens(self, text: str) -> int:
        """How many tokens a text takes."""
        return len(self.chat.tokenizer(text, add_special_tokens=False)["input_ids"])
