"""Write a prompt for every mask of an image with a language model that sees what is around the masks.

    writer = PromptWriter.load("assets/tiny/prompter")
    prompts = writer.write([image_u8], [[mask_a, mask_b]])[0]

Masks are painted in solid colours, large ones first, and the model is asked what hides behind the colours
(paper section 3.1). Answers are constrained to one closed, non-empty tag per colour; `constrained=False`
decodes as published, up to the last tag, and a missing tag gives an empty prompt.

Legend: h w pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inpainting.data.steps.describe import continuation, open_model
from inpainting.models.image_to_text.adapter import load_adapter
from inpainting.models.image_to_text.prompter import PrompterConfig, find_files
from inpainting.models.image_to_text.questions import Query, one_line, queries_for, read_answer
from inpainting.models.image_to_text.tags import (
    TagChoice,
    longest_answer,
    pattern_of,
    spelled_alike,
    tightened,
)
from ldm.metrics.weights import hash_of
from ldm.mllm.chat import Chat, generate, to_device
from ldm.mllm.constrain import Grammar
from ldm.mllm.load import Mllm

log = logging.getLogger(__name__)
DEFAULTS = PrompterConfig()

RULES = 32  # compiled forms that are kept; one holds some megabytes for a large vocabulary
FULL_STOP = "."
LONGEST_ANSWER = 512  # published


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    constrained: one closed, non-empty tag per colour; off: as published. temperature: 0 takes the most
    probable tokens, above 0 draws them with `seed`, each image for itself. longest: most tokens of one
    prompt, None: what the model's card says; decoded as published, of a whole answer, None: 512.
    """

    constrained: bool = True
    temperature: float = 0.0
    seed: int = 0
    longest: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.temperature and not self.constrained:
            raise ValueError("free decoding takes the most probable tokens; temperature must be 0")
        if self.longest is not None and self.longest < 1:
            raise ValueError(f"longest must be at least 1 token, got {self.longest}")


GREEDY, PUBLISHED = Decoding(), Decoding(constrained=False)


class PromptWriter:
    """A LLaVA or LLaVA-NeXT, or another language model that sees, asked for prompts."""

    def __init__(self, mllm: Mllm, card: PrompterConfig = DEFAULTS, adapter: Path | None = None) -> None:  # noqa: B008
        self.mllm, self.card, self.adapter = mllm, card, adapter
        self.chat = Chat(mllm.processor, card.template_for(mllm.family))
        self.grammar = Grammar(mllm.processor.tokenizer, RULES)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        adapter: Path | str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        precision: str = "full",
    ) -> PromptWriter:
        """What `find_files` finds. precision: full, 4bit (as published) or auto, see `describe.open_model`.

        Raises ValueError naming the folder, file or weight that does not fit.
        """
        files = find_files(folder, adapter)
        mllm = open_model(str(files.model), precision, device, dtype)
        if files.adapter is not None:
            mllm = replace(mllm, model=load_adapter(mllm.model, files.adapter))
        if files.card.notice:
            log.info("%s", files.card.notice)
        return cls(mllm, files.card, files.adapter)

    def weights(self) -> dict[str, Any]:
        """SHA-256 of its weight files."""
        found: dict[str, Any] = {"model": hash_of(self.mllm.folder)}
        return found if self.adapter is None else {**found, "adapter": hash_of(self.adapter)}

    def write(
        self,
        images_u8: Sequence[np.ndarray],
        masks: Sequence[Sequence[np.ndarray]],
        decoding: Decoding = GREEDY,
        batch: int = 8,
        given: Sequence[Sequence[str]] | None = None,
    ) -> list[list[str]]:
        """A prompt for each mask (h, w) bool of each image (h, w, 3), any size, in the order of the masks.

        batch: questions that go through the model together. given: prompts that are known, one per mask,
        empty where it is to be written; they are kept, and the model writes the others in their knowledge.
        Raises ValueError for masks that do not fit their image, and for more than the model knows colours.
        """
        known = [list(one) for one in given] if given else [[""] * len(one) for one in masks]
        asked: list[tuple[int, Query]] = []
        for image, (image_u8, own) in enumerate(zip(images_u8, masks, strict=True)):
            asked += [(image, one) for one in queries_for(self.card, image_u8, own, known[image])]
        size = 1 if decoding.temperature else batch
        for start in range(0, len(asked), size):
            some = asked[start : start + size]
            answers = self.answer([query for _, query in some], decoding)
            for (image, query), answer in zip(some, answers, strict=True):
                for mask, prompt in read_answer(query, answer).items():
                    known[image][mask] = prompt
        return known

    def answer(self, queries: Sequence[Query], decoding: Decoding = GREEDY) -> list[str]:
        """The answers to several questions, as one batch."""
        if not decoding.constrained:
            return self._free(queries, decoding.longest or LONGEST_ANSWER)
        prompts = self.chat.prompts([query.ask for query in queries])
        longest = decoding.longest or self.card.longest
        patterns = [self._pattern(query) for query in queries]
        choice = TagChoice(
            self.grammar,
            patterns,
            prompts["input_ids"].shape[1],
            longest,
            temperature=decoding.temperature,
            generator=torch.Generator().manual_seed(decoding.seed),
        )
        pairs = zip(patterns, queries, strict=True)
        most = max(longest_answer(pattern, query.tags, longest) for pattern, query in pairs)
        return [tightened(one.text) for one in generate(self.mllm, prompts, choice, most)]

    def _pattern(self, query: Query) -> str:
        """The expression of an answer; a given prompt that the tokenizer cannot spell stays open."""
        wanted = [one_line(text) for text in query.given] if query.tags else []
        told = [text if self._speakable(text) else "" for text in wanted]
        for text in [text for text, spelled in zip(wanted, told, strict=True) if text and not spelled]:
            log.info("%s cannot read the given prompt %r and writes without it", self.card.name, text)
        return pattern_of(query.tags, [spelled_alike(self.grammar, text) for text in told])

    def _speakable(self, text: str) -> bool:
        """Whether the tokenizer has tokens for a given prompt between two tags."""
        spelled = spelled_alike(self.grammar, text)
        try:
            return bool(spelled and self.grammar.rule(pattern_of([self.card.colors[0]], [spelled])))
        except ValueError:
            return False

    def _free(self, queries: Sequence[Query], longest: int) -> list[str]:
        """As published: the most probable tokens up to the last closing tag, or to a full stop."""
        ends = [f"</{query.tags[-1]}>" if query.tags else FULL_STOP for query in queries]
        said: dict[int, str] = {}
        for end in dict.fromkeys(ends):  # one row's end may stand in the middle of another's answer
            rows = [row for row, own in enumerate(ends) if own == end]
            answers = self._until(end, [queries[row] for row in rows], longest)
            said.update(zip(rows, answers, strict=True))
        return [said[row] for row in range(len(queries))]

    def _until(self, end: str, queries: Sequence[Query], longest: int) -> list[str]:
        """The most probable tokens up to a text."""
        prompts = self.chat.prompts([query.ask for query in queries])
        tokenizer = self.mllm.processor.tokenizer
        with torch.inference_mode():
            written = self.mllm.model.generate(
                **to_device(prompts, self.mllm.device, self.mllm.dtype),
                max_new_tokens=longest,
                do_sample=False,
                stop_strings=[end],
                tokenizer=tokenizer,
            )
        asked = prompts["input_ids"].shape[1]
        return [continuation(tokenizer, row, asked) for row in written.cpu()]
