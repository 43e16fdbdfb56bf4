"""Ask a locator: an image and a sentence in, a box and a depth out, always in a valid format.

locator = load_locator("assets/tiny/locator")
best = locator.locate(image_u8, "Place the red cube behind the blue cone")[0].location
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.relations import Place
from ldm.files import read_json
from ldm.mllm.chat import Answer, Chat, ChatExample, generate
from ldm.mllm.constrain import ConstrainedChoice, Grammar
from ldm.mllm.load import Mllm, load_mllm
from ldm.mllm.templates import TEMPLATES
from llava_bifrost.card import LocatorConfig, read_card
from llava_bifrost.language.answer import (
    Candidate,
    InstructionError,
    Request,
    make_question,
    parse_instruction,
)
from llava_bifrost.language.codec import Frame, frame_of
from llava_bifrost.language.instruction import PHRASES, TAILS
from llava_bifrost.rank import Evidence, distinct, rank

log = logging.getLogger(__name__)

ROUNDS = 4  # draws, each of as many answers as are still missing
CLOSED = 2000  # a tokenizer with fewer tokens than this knows few words; they are listed
LISTED = 60  # words named in an error


class UnknownWord(ValueError):
    """A word that the locator's tokenizer cannot represent."""


class Locator:
    """A language model that sees, asked for places. Answers are constrained to the form of its codec."""

    def __init__(self, mllm: Mllm, card: LocatorConfig) -> None:
        self.mllm, self.card, self.codec = mllm, card, card.make_codec()
        self.chat = Chat(mllm.processor, TEMPLATES[card.template] if card.template else None)
        self.grammar = Grammar(mllm.processor.tokenizer)

    def locate(
        self,
        rgb_u8: np.ndarray,
        instruction: str,
        candidates: int = 1,
        seed: int = 0,
        *,
        depth_01: np.ndarray | None = None,
        anchors: Mapping[str, Place] | None = None,
        temperature: float = 1.0,
    ) -> list[Candidate]:
        """Up to `candidates` different places, best first.

        rgb_u8: (h, w, 3). One candidate is the greedy answer, without a score. Of several the others are
        drawn at `temperature`, and all are ranked by geometry: with the depth map (h, w), 1 = nearest, where
        given, and the anchors' places; anchors that are not given are asked of the locator itself.
        Raises InstructionError or UnknownWord for a sentence that it cannot be asked.
        """
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {candidates}")
        request = self.understand(instruction)
        question = self.question(instruction, request)
        found = self._ask([rgb_u8], [question], 1, None, temperature)
        if candidates == 1:
            return found
        generator = torch.Generator().manual_seed(seed)
        for _ in range(ROUNDS):
            missing = candidates - len(found)
            if missing:
                found += self._ask([rgb_u8] * missing, [question] * missing, 0, generator, temperature)
                found = distinct(found)
        places = dict(anchors) if anchors is not None else self.find_anchors(rgb_u8, request)
        return rank(found, Evidence(request, places, depth_01))

    def locate_many(self, images_u8: Sequence[np.ndarray], instructions: Sequence[str]) -> list[Candidate]:
        """The greedy answer to each of several instructions, one image each, as one batch."""
        questions = [self.question(text, self.understand(text)) for text in instructions]
        return self.answer(images_u8, questions)

    def answer(self, images_u8: Sequence[np.ndarray], questions: Sequence[str]) -> list[Candidate]:
        """The greedy answer to each of several questions that are worded already, as one batch."""
        return self._ask(images_u8, questions, len(questions), None, 1.0)

    def find(self, rgb_u8: np.ndarray, name: str) -> Candidate:
        """Where a thing is that the image shows: the answer to "Replace the <name>"."""
        return self.locate(rgb_u8, f"Replace the {name} with the reference image")[0]

    def find_anchors(self, rgb_u8: np.ndarray, request: Request | None) -> dict[str, Place]:
        """The anchors of a request, as the locator itself sees them."""
        names = () if request is None else request.anchors
        texts = [f"Replace the {name} with the reference image" for name in names]
        found = self.locate_many([rgb_u8] * len(texts), texts) if texts else []
        return {name: one.location.place for name, one in zip(names, found, strict=True)}

    def understand(self, instruction: str) -> Request | None:
        """The instruction taken apart; None for a sentence that only an open vocabulary can deal with."""
        try:
            return parse_instruction(instruction)
        except InstructionError:
            if self.closed or not instruction.strip():
                raise
            log.warning("not a known form of instruction, asked as it stands: %s", instruction.strip())
            return None

    def question(self, instruction: str, request: Request | None) -> str:
        """The text that the model is asked; UnknownWord names what it cannot read."""
        if request is None:
            return f"{instruction.strip().rstrip('.!')}, {TAILS[self.card.format]}"
        for name in (request.target, *request.anchors):
            for word in name.split():
                if self.grammar.spelling_of(word).replace(" ", "") != word:
                    raise UnknownWord(self._unknown(word))
        return make_question(request, self.card.format)

    @property
    def closed(self) -> bool:
        """Whether the tokenizer knows a small set of words."""
        return len(self.grammar.spelled) < CLOSED and self.grammar.spelling_of("zqxj") != "zqxj"

    @property
    def words(self) -> list[str]:
        """The words of a closed vocabulary, or the card's names."""
        if self.card.names:
            return list(self.card.names)
        texts = {text.decode("utf-8", "replace") for text in self.grammar.spelled.values()}
        spoken = " ".join((*PHRASES, *TAILS.values(), "replace with the reference image"))
        form = set(re.findall("[a-z]+", spoken))
        words = {text for text in texts if len(text) > 1 and text.isalpha() and text.islower()}
        return sorted(words - form - {"and", "assistant", "user"})

    def _unknown(self, word: str) -> str:
        known = self.words
        more = f", ... ({len(known)} in all)" if len(known) > LISTED else ""
        return (
            f"{word!r} is not a word that this locator knows; it knows: {', '.join(known[:LISTED])}{more}. "
            "Without a language model any noun works: --locator geometric"
        )

    def _ask(
        self,
        images_u8: Sequence[np.ndarray],
        questions: Sequence[str],
        greedy: int,
        generator: torch.Generator | None,
        temperature: float,
    ) -> list[Candidate]:
        """One answer per image and question; the first `greedy` of them take the most probable tokens."""
        asks = [ChatExample(image, question) for image, question in zip(images_u8, questions, strict=True)]
        frames = [self._frame(ask.image_u8) for ask in asks]
        forms = [self.codec.form(frame).spelled_by(self.grammar) for frame in frames]
        batch = self.chat.prompts(asks)
        choice = ConstrainedChoice(
            self.grammar,
            forms,
            batch["input_ids"].shape[1],
            greedy=greedy,
            temperature=temperature,
            generator=generator,
        )
        answers = generate(self.mllm, batch, choice)
        return [self._candidate(answer, frame) for answer, frame in zip(answers, frames, strict=True)]

    def _candidate(self, answer: Answer, frame: Frame) -> Candidate:
        location = self.codec.decode(answer.text, frame)
        return Candidate(location, round(answer.log_probability, 4), answer.text)

    def _frame(self, image_u8: np.ndarray) -> Frame:
        if image_u8.ndim != 3 or image_u8.shape[2] != 3 or image_u8.dtype != np.uint8:
            raise ValueError(f"an image is RGB uint8 (h, w, 3), got {image_u8.dtype} {image_u8.shape}")
        return frame_of(self.mllm.processor, (image_u8.shape[0], image_u8.shape[1]))


def load_locator(folder: Path | str, device: str = "auto", dtype: str = "auto") -> Locator:
    """A locator from a `save_pretrained` folder of a model and its processor, with or without a card.

    Raises ValueError for other folders; one in the original LLaVA layout is converted first, see model.py.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no locator there (config.json is missing); see docs/locator.md")
    config: dict[str, Any] = read_json(folder / "config.json")
    if "mm_projector_type" in config or (folder / "non_lora_trainables.bin").is_file():
        raise ValueError(
            f"{folder} is in the original LLaVA layout; convert it first: "
            f"python -m llava_bifrost.model convert --adapter {folder} --base FOLDER --out models/locator"
        )
    mllm = load_mllm(folder, device, dtype)
    return Locator(mllm, read_card(folder, mllm.family))
