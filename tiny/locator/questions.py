"""Questions as token arrays, made once per scene, so that training only indexes them.

Legend: k scenes of a file, v the two images, q questions of an image (padded), t tokens (padded).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets.scenes.store import read_options, read_shard
from datasets.sources.rendered import shard_files
from ldm.files import written_whole
from llava_bifrost.language.answer import format_answer
from llava_bifrost.language.instruction import make_question
from llava_bifrost.worlds.questions import MIRRORED, Question, place_questions, replace_questions
from llava_bifrost.worlds.world import world_of
from tiny.llava import PAD
from tiny.locator.tokenizer import NUMBERS, VOCABULARY, locator_tokenizer

TOKENS = 34  # of a question with its answer, at most
PLACED, REPLACED = 8, 5  # questions per image at most
ANSWER = 8  # tokens of an answer: [ x1 y1 x2 y2 ] d </s>
NUMBER_AT = np.array([-7, -6, -5, -4, -2])  # of x1, y1, x2, y2, d, from the end
FIRST_NUMBER = VOCABULARY.index(NUMBERS[0])
FORMAT = 3


@dataclass(frozen=True, eq=False)
class QuestionCache:
    """Questions of n scenes. tokens begin after the image's prefix and end with </s>."""

    tokens: np.ndarray  # (n, v, q, t) int16, PAD after the end; the first PLACED rows place, the rest replace
    length: np.ndarray  # (n, v, q) int8, 0: no question
    named: np.ndarray  # (n, v, q, 2) int8 solids that the question names, -1: none
    named_at: np.ndarray  # (n, v, q, 2) int8 position of the last word of each name


def open_questions(data: Path, cache: Path, seed: int) -> QuestionCache:
    """The questions of all shards of `data`, made once in `cache`, file by file."""
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in QuestionCache.__dataclass_fields__}
    for number, file in enumerate(tqdm(shard_files(data), desc="questions", unit="shard")):
        made = cache / f"questions-{number:05d}.npz"
        recipe = json.dumps([FORMAT, seed, file.name, file.stat().st_size])
        if not made.exists():
            with written_whole(made) as partial, partial.open("wb") as handle:
                np.savez_compressed(handle, recipe=np.array(recipe), **_fill(file, seed, number))
        with np.load(made) as stored:
            if str(stored["recipe"]) != recipe:
                raise ValueError(f"{made} was made from other scenes or with another seed; remove it")
            for name, rows in arrays.items():
                rows.append(stored[name])
    return QuestionCache(**{name: np.concatenate(rows) for name, rows in arrays.items()})


def _fill(file: Path, seed: int, number: int) -> dict[str, Any]:
    """The arrays of one shard."""
    options, facts = read_options(file), read_shard(file).facts
    rows = []
    for i, fact in enumerate(facts):
        world = world_of(fact, options)
        for view, seen in enumerate((world, world.without(world.removed))):
            rng = np.random.default_rng((seed, 7, number, i, view))
            questions: list[Question | None] = []
            for draw, count in ((place_questions, PLACED), (replace_questions, REPLACED)):
                drawn = draw(seen, rng, count)
                questions += [*drawn, *[None] * (count - len(drawn))]
            rows.append(encode_questions(questions))
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {name: value.reshape(len(facts), 2, *value.shape[1:]) for name, value in stacked.items()}


def encode_questions(questions: list[Question | None]) -> dict[str, np.ndarray]:
    """The arrays of one image."""
    count = len(questions)
    arrays: dict[str, np.ndarray] = {
        "tokens": np.full((count, TOKENS), VOCABULARY.index(PAD), np.int16),
        "length": np.zeros(count, np.int8),
        "named": np.full((count, 2), -1, np.int8),
        "named_at": np.zeros((count, 2), np.int8),
    }
    present = [(row, question) for row, question in enumerate(questions) if question is not None]
    texts = [
        f"{make_question(q.request)} ASSISTANT: {format_answer(q.answer, decimals=2)}</s>" for _, q in present
    ]
    rows = _TOKENIZER(texts, add_special_tokens=False).input_ids if texts else []
    for (row, question), ids in zip(present, rows, strict=True):
        names = question.request.anchors or (question.request.target,)
        arrays["tokens"][row, : len(ids)] = ids
        arrays["length"][row] = len(ids)
        end = 0  # names follow one another in the sentence
        for slot, (solid, name) in enumerate(zip(question.named, names, strict=True)):
            words = [VOCABULARY.index(word) for word in name.split()]
            start = next(i for i in range(end, len(ids)) if ids[i : i + len(words)] == words)
            end = start + len(words)
            arrays["named"][row, slot], arrays["named_at"][row, slot] = solid, end - 1
    return arrays


def mirrored_questions(tokens: np.ndarray, length: np.ndarray) -> np.ndarray:
    """(k, t) question rows for the mirrored image: left and right phrases and the box change sides."""
    turned = _TURN[tokens]
    rows = np.arange(len(tokens))
    x1, x2 = length + NUMBER_AT[0], length + NUMBER_AT[2]
    last = 2 * FIRST_NUMBER + len(NUMBERS) - 1
    turned[rows, x1], turned[rows, x2] = last - tokens[rows, x2], last - tokens[rows, x1]
    return turned


_TOKENIZER = locator_tokenizer()
_TURN = np.arange(len(VOCABULARY), dtype=np.int16)
_TURN[[VOCABULARY.index(phrase) for phrase in MIRRORED]] = [VOCABULARY.index(p) for p in MIRRORED.values()]
