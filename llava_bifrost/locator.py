"""Ask a locator: an image and a sentence in, a box and a depth out, always in a valid format.

locator = load_locator("assets/tiny/locator")
best = locator.locate(image_u8, "Place the red cube behind the blue cone")[0].location
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.geometry import depth_at_contact, iou
from datasets.relations import Place
from ldm.files import read_json
from ldm.images import rgb_of
from ldm.mllm.constrain import ConstrainedChoice, Grammar, SharedPrompt, generate
from ldm.mllm.model import Chat, ChatExample, Mllm, load_mllm
from ldm.mllm.templates import TEMPLATES
from ldm.registry.models import how_to_get
from ldm.settings.config import read_config
from llava_bifrost.language.answer import AnswerError, Candidate, satisfies, ways_to_place
from llava_bifrost.language.codec import FAMILIES, Codec, Frame, frame_of
from llava_bifrost.language.instruction import PHRASES, TAILS, InstructionError, Request, make_question
from llava_bifrost.language.reading import parse_instruction, reproduces, without_question
from llava_bifrost.placement.ground import fit_ground
from llava_bifrost.placement.sizes import size_at_one, size_px
from llava_bifrost.settings import LocatorConfig

log = logging.getLogger(__name__)

CONFIG = "locator.json"  # beside the weights
# Chosen.
ROUNDS = 4  # of sampling, each of as many answers as are still missing
AT_ONCE = 16  # answers written together; of a 7B model with 700 tokens each they take 6 GB
CLOSED = 2000  # a tokenizer with fewer tokens than this knows few words; they are listed
LISTED = 60  # words named in an error
BORDER = 0.003  # of the image; a side nearer to the border touches it
TOUCHING = 0.85  # per side that touches
BROKEN = 0.05  # of a clause that is false
LOOSE = 0.05  # depth between contact point and ground that costs nothing
SLACK = 1.5  # times larger or smaller that costs nothing
SAME_IOU, SAME_DEPTH = 0.9, 0.02  # proposals closer than this are one
FLOATING = "above"  # relation of objects that need no support


def read_locator_config(folder: Path, family: str) -> LocatorConfig:
    """The configuration of a folder; without one, that of the family (transformers' model type)."""
    default = LocatorConfig(codec=FAMILIES.get(family, "bifrost"))
    return read_config(LocatorConfig, folder / CONFIG, missing=default)


class Locator:
    """A vision-language model, asked for places. Answers are constrained to the form of its codec."""

    def __init__(self, mllm: Mllm, config: LocatorConfig) -> None:
        self.mllm, self.config = mllm, config
        self.codec = Codec(config.codec, config.format, config.decimals)
        self.chat = Chat(mllm.processor, TEMPLATES.get(config.template or ""))
        self.grammar = Grammar(mllm.processor.tokenizer)

    def locate(
        self,
        image: Any,
        instruction: str,
        candidates: int = 1,
        seed: int = 0,
        *,
        temperature: float = 1.0,
        depth_01: np.ndarray | None = None,
        anchors: Mapping[str, Place] | None = None,
    ) -> list[Candidate]:
        """Up to `candidates` different places, best first.

        image: RGB (h, w, 3) uint8, path, or PIL image. One candidate is the greedy answer, without a
        score. Of several the others are drawn at `temperature`, and all are ranked by geometry: depth_01
        (h, w), 1 = nearest, where given, and the anchors' places; the locator is asked for those not given.
        Raises InstructionError for a sentence that it cannot be asked.
        """
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {candidates}")
        rgb_u8, request = rgb_of(image), self.understand(instruction)
        question = self.question(instruction, request)
        if candidates == 1:
            return self.answer([rgb_u8], [question])
        proposals = self.draw(rgb_u8, question, candidates, seed, temperature)
        places = self.find_anchors(rgb_u8, request) if anchors is None else anchors
        return rank(proposals, request, places, depth_01)

    def locate_many(self, images: Sequence[Any], instructions: Sequence[str]) -> list[Candidate]:
        """The greedy answer to each of several instructions, one image each, as one batch."""
        questions = [self.question(text, self.understand(text)) for text in instructions]
        return self.answer([rgb_of(image) for image in images], questions)

    def answer(self, images_u8: Sequence[np.ndarray], questions: Sequence[str]) -> list[Candidate]:
        """The greedy answers to questions that are worded already, one image each, as one batch."""
        asks = [ChatExample(*pair) for pair in zip(images_u8, questions, strict=True)]
        frames = [self.frame(image_u8) for image_u8 in images_u8]
        forms = [self.codec.form(frame).spelled_by(self.grammar) for frame in frames]
        batch = self.chat.prompts(asks)
        choice = ConstrainedChoice(self.grammar, forms, batch["input_ids"].shape[1])
        return self._decoded(batch, choice, frames)

    def draw(
        self, rgb_u8: np.ndarray, question: str, candidates: int, seed: int, temperature: float
    ) -> list[Candidate]:
        """Different answers to one question, the greedy one first; the model sees image and question once."""
        frame, generator = self.frame(rgb_u8), torch.Generator().manual_seed(seed)
        form = self.codec.form(frame).spelled_by(self.grammar)
        shared = SharedPrompt(self.mllm, self.chat.prompts([ChatExample(rgb_u8, question)]))
        found: list[Candidate] = []
        for _ in range(ROUNDS):
            missing = candidates - len(found)
            for start in range(0, missing, AT_ONCE):
                count, greedy = min(AT_ONCE, missing - start), int(not found)
                drawn: Any = {"greedy": greedy, "temperature": temperature, "generator": generator}
                choice = ConstrainedChoice(self.grammar, form, shared.length, **drawn)
                found += self._decoded(shared.rows(count), choice, [frame] * count)
            found = distinct(found)
        return found

    def frame(self, rgb_u8: np.ndarray) -> Frame:
        """What the codec needs to know of an image (h, w, 3) uint8; ValueError for another array."""
        if rgb_u8.ndim != 3 or rgb_u8.shape[2] != 3 or rgb_u8.dtype != np.uint8:
            raise ValueError(f"an image is RGB uint8 (h, w, 3), got {rgb_u8.dtype} {rgb_u8.shape}")
        return frame_of(self.mllm.processor, (rgb_u8.shape[0], rgb_u8.shape[1]))

    def _decoded(self, batch: Any, choice: ConstrainedChoice, frames: Sequence[Frame]) -> list[Candidate]:
        return [
            Candidate(self.codec.decode(answer.text, frame), round(answer.log_probability, 4), answer.text)
            for answer, frame in zip(generate(self.mllm, batch, choice), frames, strict=True)
        ]

    def answer_freely(
        self, images_u8: Sequence[np.ndarray], questions: Sequence[str], batch: int = 8
    ) -> list[tuple[str, Place | None]]:
        """Greedy answers without a constraint, one image each, and the places that they say, if readable."""
        answers: list[tuple[str, Place | None]] = []
        pairs = list(zip(images_u8, questions, strict=True))
        for part in (pairs[start : start + batch] for start in range(0, len(pairs), batch)):
            replies = generate(self.mllm, self.chat.prompts([ChatExample(*pair) for pair in part]))
            for (image, _), reply in zip(part, replies, strict=True):
                place = None
                with suppress(AnswerError):
                    place = self.codec.decode(reply.text, self.frame(image))
                answers.append((reply.text, place))
        return answers

    def find_anchors(self, rgb_u8: np.ndarray, request: Request | None) -> dict[str, Place]:
        """The anchors of a request, as the locator itself finds them: its answers to "Replace the ..."."""
        names = () if request is None else request.anchors
        texts = [f"Replace the {name} with the reference image" for name in names]
        answers = self.locate_many([rgb_u8] * len(texts), texts) if texts else []
        return {name: candidate.location for name, candidate in zip(names, answers, strict=True)}

    def understand(self, instruction: str) -> Request | None:
        """The instruction taken apart; None for a sentence that only an open vocabulary can deal with."""
        try:
            return parse_instruction(instruction)
        except ValueError:
            if self.closed or not instruction.strip():
                raise
            log.warning("not a known form of instruction, asked as it stands: %s", instruction.strip())
            return None

    def question(self, instruction: str, request: Request | None) -> str:
        """The text that the model is asked; InstructionError names what it cannot read."""
        if request is None or not (self.closed or reproduces(request, instruction)):
            return f"{without_question(instruction)}, {TAILS[self.config.format]}"
        for name in (request.target, *request.anchors):
            for word in name.split():
                if self.grammar.spelling_of(word).replace(" ", "") != word:
                    known = self.words
                    more = f", ... ({len(known)} in all)" if len(known) > LISTED else ""
                    raise InstructionError(
                        f"{word!r} is not a word that this locator knows; it knows: "
                        f"{', '.join(known[:LISTED])}{more}. Any noun works with --locator geometric, "
                        f"which needs to know {ways_to_place(request.named)}"
                    )
        return make_question(request, self.config.format)

    @property
    def closed(self) -> bool:
        """Whether the tokenizer knows a small set of words."""
        return len(self.grammar.spelled) < CLOSED and self.grammar.spelling_of("zqxj") != "zqxj"

    @property
    def words(self) -> list[str]:
        """The words of a closed vocabulary, or the names of the configuration."""
        if self.config.names:
            return list(self.config.names)
        texts = {text.decode("utf-8", "replace") for text in self.grammar.spelled.values()}
        spoken = " ".join((*PHRASES, *TAILS.values(), "replace with the reference image"))
        form = set(re.findall("[a-z]+", spoken))
        words = {text for text in texts if len(text) > 1 and text.isalpha() and text.islower()}
        return sorted(words - form - {"and", "assistant", "user"})


def load_locator(folder: Path | str, device: str = "auto", dtype: str = "auto", load_in: str = "") -> Locator:
    """A locator from a `save_pretrained` folder; options as of `load_mllm`.

    ValueError for other folders; `llava_bifrost.model convert` makes one of the original LLaVA layout.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no locator there (config.json is missing){how_to_get(folder)}")
    config: dict[str, Any] = read_json(folder / "config.json")
    if "mm_projector_type" in config or (folder / "non_lora_trainables.bin").is_file():
        wrong = f"{folder} is in the original LLaVA layout; convert it first: python -m llava_bifrost.model"
        raise ValueError(f"{wrong} convert --adapter {folder} --base FOLDER --out models/locator")
    mllm = load_mllm(folder, device, dtype, load_in)
    return Locator(mllm, read_locator_config(folder, mllm.family))


def rank(
    candidates: Sequence[Candidate],
    request: Request | None = None,
    anchors: Mapping[str, Place] | None = None,
    depth_01: np.ndarray | None = None,
) -> list[Candidate]:
    """Best first, with scores; equal scores (to 0.01) are ordered by the model's own probability.

    anchors: known places by name; depth_01: (h, w), 1 = nearest
    A score is the product of what can be decided, each a number in (0, 1]:
    in frame  the sides of the box that lie on the border of the image, where the object may be cut off
    a clause  "behind the sofa": whether it is true, where the anchors' places are known
    support   the depth of what is seen at the lower edge of the box against the depth of the object
    size      against the size that the anchors and a small table of nouns suggest at this depth
    """
    known, expected = anchors or {}, None
    size_hw = (1, 1) if depth_01 is None else (depth_01.shape[0], depth_01.shape[1])
    if depth_01 is not None and request is not None and not request.replace:
        named = {name: known[name] for name in request.anchors if name in known}
        ground = fit_ground(depth_01, [place.box01_xyxy for place in known.values()])
        expected = ground, size_at_one(request.target, named, known, ground, size_hw)
    floats = request is not None and FLOATING in [PHRASES[phrase] for phrase, _ in request.relations]

    def score(location: Place) -> float:
        touching = sum(edge < BORDER or edge > 1 - BORDER for edge in location.box01_xyxy)
        parts = [TOUCHING**touching]
        if request is not None and set(request.anchors) <= known.keys():
            parts += [1.0 if true else BROKEN for true in satisfies(location, request, known).values()]
        if depth_01 is not None and not floats:
            gap = abs(location.d - depth_at_contact(depth_01, location.box01_xyxy))
            parts.append(math.exp(-max(0.0, gap - LOOSE) / 0.1))
        if expected is not None:
            ground, unit_px = expected
            ratio = size_px(location, size_hw) / max(unit_px * float(ground.scale(location.d)), 1e-6)
            parts.append(math.exp(-max(0.0, abs(math.log(ratio)) - math.log(SLACK))))
        return round(math.prod(parts), 4)

    scored = [replace(candidate, score=score(candidate.location)) for candidate in candidates]
    return sorted(scored, key=lambda item: (-round(item.score or 0.0, 2), -item.log_probability))


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without near repetitions; of those the most probable one stays. The first candidate stays first."""
    chosen: list[Candidate] = []
    for candidate in [*candidates[:1], *sorted(candidates[1:], key=lambda item: -item.log_probability)]:
        box01, depth = candidate.location.box01_xyxy, candidate.location.d
        alike = (iou(box01, other.location.box01_xyxy) > SAME_IOU for other in chosen
                 if abs(depth - other.location.d) < SAME_DEPTH)  # fmt: skip
        if not any(alike):
            chosen.append(candidate)
    return chosen
