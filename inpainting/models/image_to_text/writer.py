"""Write a prompt for every mask of a picture with a language model that sees what is around the masks.

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

from inpainting.data.describe import continuation, open_model
from inpainting.data.hub import model_folder
from inpainting.models.image_to_text.adapter import base_of, is_adapter, load_adapter
from inpainting.models.image_to_text.prompter import CARD, Card, read_card
from inpainting.models.image_to_text.tags import TagChoice, longest_answer, tightened
from inpainting.prompts import GRAY_NAME, LLAVA_PROMPT, discover_question, paint_masks, read_prompt
from ldm.constrain import Grammar
from ldm.metrics.weights import hash_of
from ldm.mllm import Ask, Chat, generate, to_device
from ldm.mllm_load import Mllm

log = logging.getLogger(__name__)

RULES = 32  # compiled forms that are kept; one holds some megabytes for a large vocabulary
FULL_STOP = "."


@dataclass(frozen=True, eq=False)
class Query:
    """One question about one painted picture. tags: colours that the answer names, none: it is the prompt."""

    ask: Ask
    tags: tuple[str, ...]

    @property
    def prompts(self) -> int:
        """How many prompts its answer gives."""
        return max(1, len(self.tags))


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    constrained: one closed, non-empty tag per colour; off: as published. temperature: 0 takes the most
    probable tokens, above 0 draws them with `seed`, each picture for itself. longest: most tokens of one
    prompt, None: what the model's card says; unconstrained all prompts of an answer share it.
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


GREEDY, PUBLISHED = Decoding(), Decoding(constrained=False, longest=512)


class PromptWriter:
    """A LLaVA or LLaVA-NeXT, or another language model that sees, asked for prompts."""

    def __init__(self, mllm: Mllm, card: Card = Card(), adapter: Path | None = None) -> None:  # noqa: B008
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
        """A model by folder or hub name, with the adapter of another folder; the adapter's folder alone names
        its model itself.

        precision: full, 4bit (as published) or auto, see `describe.open_model`.
        Raises ValueError naming the folder, file or weight that does not fit.
        """
        if adapter is None and is_adapter(Path(folder)):
            adapter, folder = folder, base_of(Path(folder))
        place = model_folder(str(folder))
        if not (place / "config.json").is_file():
            raise ValueError(f"{folder}: no prompt writer there (config.json is missing); see docs/prompts.md")
        if adapter is not None and not is_adapter(Path(adapter)):
            raise ValueError(f"{adapter}: no adapter there (adapter_config.json is missing)")
        own = None if adapter is None else Path(adapter)
        card = read_card(own if own is not None and (own / CARD).is_file() else place)
        mllm = open_model(str(place), precision, device, dtype)
        if own is not None:
            mllm = replace(mllm, model=load_adapter(mllm.model, own))
        if card.notice:
            log.info("%s", card.notice)
        return cls(mllm, card, own)

    def weights(self) -> dict[str, Any]:
        """SHA-256 of its weight files."""
        found: dict[str, Any] = {"model": hash_of(self.mllm.folder)}
        return found if self.adapter is None else {**found, "adapter": hash_of(self.adapter)}

    def colors(self, count: int) -> list[str]:
        """Colours of `count` masks in their order, as published: the last is the first that the model knows.

        Raises ValueError when it knows too few.
        """
        known = self.card.colors
        if count > len(known):
            raise ValueError(
                f"{self.card.name} knows {len(known)} colours ({', '.join(known)}), got {count} masks"
            )
        return list(known[:count])[::-1]

    def write(
        self,
        images_u8: Sequence[np.ndarray],
        masks: Sequence[Sequence[np.ndarray]],
        decoding: Decoding = GREEDY,
        batch: int = 8,
    ) -> list[list[str]]:
        """A prompt for each mask (h, w) bool of each picture (h, w, 3) of any size, in the order of the masks.

        batch: questions that go through the model together. Raises ValueError for masks that do not fit their
        picture, and for more of them than the model knows colours.
        """
        queries = [self.queries(*one) for one in zip(images_u8, masks, strict=True)]
        flat = [query for some in queries for query in some]
        size = 1 if decoding.temperature else batch
        answers: list[str] = []
        for start in range(0, len(flat), size):
            answers += self.answer(flat[start : start + size], decoding)
        told = iter(zip(flat, answers, strict=True))
        return [[text for _ in some for text in read(*next(told))] for some in queries]

    def queries(self, image_u8: np.ndarray, masks: Sequence[np.ndarray]) -> list[Query]:
        """The questions about one picture: one about all masks, or one about each, as the card says."""
        check_masks(image_u8, masks)
        if self.card.question == "discover":
            colors = self.colors(len(masks))
            painted = paint_masks(image_u8, masks, colors)
            return [Query(Ask(painted, discover_question(colors)), tuple(colors))]
        plain = self.card.question == "plain"
        question = LLAVA_PROMPT if plain else discover_question([GRAY_NAME])
        tags = () if plain else (GRAY_NAME,)
        return [Query(Ask(paint_masks(image_u8, [mask], [GRAY_NAME]), question), tags) for mask in masks]

    def answer(self, queries: Sequence[Query], decoding: Decoding = GREEDY) -> list[str]:
        """The answers to several questions, as one batch."""
        prompts = self.chat.prompts([query.ask for query in queries])
        longest = decoding.longest or self.card.longest
        if not decoding.constrained:
            return self._free(queries, prompts, longest)
        choice = TagChoice(
            self.grammar,
            [query.tags for query in queries],
            prompts["input_ids"].shape[1],
            longest,
            temperature=decoding.temperature,
            generator=torch.Generator().manual_seed(decoding.seed),
        )
        most = max(longest_answer(query.tags, longest) for query in queries)
        return [tightened(one.text) for one in generate(self.mllm, prompts, choice, most)]

    def _free(self, queries: Sequence[Query], prompts: dict[str, Any], longest: int) -> list[str]:
        """As published: the most probable tokens up to the last closing tag, or to a full stop."""
        tokenizer = self.mllm.processor.tokenizer
        stops = {f"</{query.tags[-1]}>" if query.tags else FULL_STOP for query in queries}
        with torch.inference_mode():
            written = self.mllm.model.generate(
                **to_device(prompts, self.mllm.device, self.mllm.dtype),
                max_new_tokens=longest,
                do_sample=False,
                stop_strings=sorted(stops),
                tokenizer=tokenizer,
            )
        asked = prompts["input_ids"].shape[1]
        return [continuation(tokenizer, row, asked) for row in written.cpu()]


def read(query: Query, answer: str) -> list[str]:
    """The prompts of an answer, in the order of the question; empty where a tag is missing."""
    return [read_prompt(answer, tag) for tag in query.tags] if query.tags else [answer.strip()]


def check_masks(image_u8: np.ndarray, masks: Sequence[np.ndarray]) -> None:
    """ValueError names the mask that is no bool array, of another size, empty; or says that there is none."""
    if not masks:
        raise ValueError("nothing to write: no mask given")
    for number, mask in enumerate(masks, 1):
        if mask.dtype != bool or mask.shape != image_u8.shape[:2]:
            given = f"{mask.dtype} {mask.shape}, its picture {image_u8.shape[:2]}"
            raise ValueError(f"mask {number} must be bool and of the picture's size (h, w); it is {given}")
        if not mask.any():
            raise ValueError(f"mask {number} is empty: no pixel is set")
