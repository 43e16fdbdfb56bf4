"""The words of the small locator, questions as tokens (made once per scene), and sequences of them.

One token is one word, one relation phrase, one number or a fixed part of the published sentences. What
carries no information (commas, the full stop) is dropped when reading and put back when writing, so that the
published answer `[0.74, 0.46, 0.97, 0.78], 0.65.` is eight tokens and decodes to itself.

All questions about one image are one sequence: the image's prefix, then blocks that see the prefix and
themselves and count positions from its end, so that every answer is computed as if it were asked alone.
Legend: n scenes, v the two images, q questions of an image (padded), t tokens (padded); b images, l tokens of
a sequence, k questions, j names in questions.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, decoders
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from datasets.scenes.store import read_facts, read_options
from datasets.sources.rendered import shard_files
from ldm.files import written_whole
from llava_bifrost.language.answer import format_answer
from llava_bifrost.language.instruction import make_question
from llava_bifrost.worlds.questions import MIRRORED, place_questions, replace_questions, with_safest_answers
from llava_bifrost.worlds.world import world_of
from tiny.world import BEGIN, COLOUR_WORDS, IMAGE, PAD, PATTERN_NAMES, SHAPE_WORDS, SPECIAL, word_tokenizer

FURNITURE = ("table", "low platform")
NUMBERS = tuple(f"{i / 100:.2f}" for i in range(101))
PHRASES = (
    "to the left of", "to the right of", "left of", "right of", "in front of", "behind",
    "on top of", "at the top of", "above", "over", "on", "below", "underneath", "under", "beneath",
    "next to", "near", "beside", "alongside", "between")  # fmt: skip
TAIL = ", output the bounding box and the depth value of the center point."
WORDS = (
    "USER:", "ASSISTANT:", "Place", "Replace", "the", "and", "with the reference image", TAIL,
    *PHRASES, *dict.fromkeys(w for name in (*PATTERN_NAMES, *FURNITURE) for w in name.split()),
    *COLOUR_WORDS, *SHAPE_WORDS, "[", "]")  # fmt: skip
VOCABULARY = (*SPECIAL, *WORDS, *NUMBERS)
CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{% set texts = [message['content']] %}"
    "{% else %}{% set texts = message['content'] | selectattr('type', 'equalto', 'text') "
    "| map(attribute='text') | list %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ texts | join(' ') + eos_token }}{% endgeneration %}"
    "{% else %}{{ texts | join(' ') + ' ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

TOKENS = 34  # of a question with its answer, at most
PLACED, REPLACED = 8, 5  # questions per image at most; rows of a QuestionCache in this order
ANSWER = 8  # tokens of an answer: [ x1 y1 x2 y2 ] d </s>
NUMBER_AT = np.array([-7, -6, -5, -4, -2])  # of x1, y1, x2, y2, d, from the end
FIRST_NUMBER = VOCABULARY.index(NUMBERS[0])
PREFIX = (VOCABULARY.index(BEGIN), VOCABULARY.index("USER:"))
MIRROR_TOKEN = np.arange(len(VOCABULARY), dtype=np.int16)  # token -> its counterpart in the mirrored image
for phrase, counterpart in MIRRORED.items():
    MIRROR_TOKEN[VOCABULARY.index(phrase)] = VOCABULARY.index(counterpart)
FORMAT = 3


def locator_tokenizer() -> PreTrainedTokenizerFast:
    # What is a token: long phrases first, then numbers, brackets and any other word.
    several = sorted((word for word in WORDS if " " in word), key=len, reverse=True)
    phrases = [re.escape(word) if word == TAIL else rf"\b{re.escape(word)}\b" for word in several]
    pieces = "|".join([*phrases, r"\d\.\d\d(?!\d)", r"\[|\]", r"[A-Za-z]+(?:-[A-Za-z]+)*:?", r"\d+"])
    decoder = decoders.Sequence([
        decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(),
        decoders.Replace("[ ", "["), decoders.Replace(" ]", "],"),
        decoders.Replace(Regex(r"(?<=\d) (?=\d)"), ", "),
        decoders.Replace(Regex(r"(?<=\], \d\.\d\d)\Z"), ".")])  # fmt: skip
    return word_tokenizer(VOCABULARY, pieces, decoder, CHAT)


@dataclass(frozen=True, eq=False)
class QuestionCache:
    """Questions of n scenes. tokens begin after the image's prefix and end with </s>."""

    tokens: np.ndarray  # (n, v, q, t) int16, PAD after the end; the first PLACED rows place, the rest replace
    length: np.ndarray  # (n, v, q) int8, 0: no question
    named: np.ndarray  # (n, v, q, 2) int8 solids that the question names, -1: none
    named_at: np.ndarray  # (n, v, q, 2) int8 position of the last word of each name


def open_questions(data: Path, cache: Path, seed: int, proposals: int = 0, asked: int = 0) -> QuestionCache:
    """The questions of all shards of `data`, made once in `cache`, file by file.

    proposals: per question, of which the safest place is the answer; 0: the place drawn with the question
    asked: scenes that need questions, besides the last shard, which is held out; 0: all
    """
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in QuestionCache.__dataclass_fields__}
    files, start = shard_files(data), 0
    for number, file in enumerate(tqdm(files, desc="questions", unit="shard")):
        made = cache / f"questions-{number:05d}.npz"
        skipped = 0 < asked <= start and file != files[-1]
        options = [*filter(None, [proposals]), *["none"] * skipped]
        recipe = json.dumps([FORMAT, seed, file.name, file.stat().st_size, *options])
        if not made.exists():
            here = shard_questions(file, seed, number, proposals, skipped)
            with written_whole(made) as partial, partial.open("wb") as handle:
                np.savez_compressed(handle, recipe=np.array(recipe), **here)
        with np.load(made) as stored:
            if str(stored["recipe"]) != recipe:
                raise ValueError(f"{made} was made from other scenes or with other settings; remove it")
            for name, rows in arrays.items():
                rows.append(stored[name])
        start += len(arrays["length"][-1])
    return QuestionCache(**{name: np.concatenate(rows) for name, rows in arrays.items()})


def shard_questions(file: Path, seed: int, number: int, proposals: int, skipped: bool) -> dict[str, Any]:
    options, facts = read_options(file), read_facts(file)
    tokenizer = locator_tokenizer().backend_tokenizer
    shape = (len(facts), 2, PLACED + REPLACED)
    arrays: dict[str, np.ndarray] = {
        "tokens": np.full((*shape, TOKENS), VOCABULARY.index(PAD), np.int16),
        "named": np.full((*shape, 2), -1, np.int8), "named_at": np.zeros((*shape, 2), np.int8),
        "length": np.zeros(shape, np.int8)}  # fmt: skip
    for i, fact in enumerate(() if skipped else facts):
        world = world_of(fact, options)
        for view, seen in enumerate((world, world.without(world.removed))):
            rng = np.random.default_rng((seed, 7, number, i, view))
            placed, replaced = place_questions(seen, rng, PLACED), replace_questions(seen, rng, REPLACED)
            if proposals:
                placed = with_safest_answers(seen, placed, rng, proposals)
            for q, question in (*enumerate(placed), *enumerate(replaced, PLACED)):
                at, names = (i, view, q), question.request.anchors or (question.request.target,)
                answer = format_answer(question.answer, decimals=2)
                text = f"{make_question(question.request)} ASSISTANT: {answer}</s>"
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                arrays["tokens"][at][: len(ids)], arrays["length"][at] = ids, len(ids)
                end = 0  # names follow one another in the sentence
                for slot, (solid, name) in enumerate(zip(question.named, names, strict=True)):
                    words = [VOCABULARY.index(word) for word in name.split()]
                    start = next(j for j in range(end, len(ids)) if ids[j : j + len(words)] == words)
                    end = start + len(words)
                    arrays["named"][at][slot], arrays["named_at"][at][slot] = solid, end - 1
    return arrays


def mirrored_questions(tokens: np.ndarray, length: np.ndarray) -> np.ndarray:
    """(k, t) question rows for the mirrored image: left and right phrases and the box change sides."""
    turned, rows = MIRROR_TOKEN[tokens], np.arange(len(tokens))
    x1, x2 = length + NUMBER_AT[0], length + NUMBER_AT[2]
    last = 2 * FIRST_NUMBER + len(NUMBERS) - 1
    turned[rows, x1], turned[rows, x2] = last - tokens[rows, x2], last - tokens[rows, x1]
    return turned


@dataclass(frozen=True, eq=False)
class ImageDraw:
    """Which images a batch has: scenes (b,), image 0 or 1 of each (b,), and which are mirrored (b,)."""

    index: np.ndarray
    view: np.ndarray
    flip: np.ndarray

    @classmethod
    def random(cls, scenes: np.ndarray, count: int, rng: np.random.Generator) -> "ImageDraw":
        index = scenes[rng.integers(len(scenes), size=count)]
        return cls(index, rng.integers(2, size=count), rng.random(count) < 0.5)


@dataclass(frozen=True, eq=False)
class PackedQuestions:
    tokens: Tensor  # (b, l)
    block: Tensor  # (b, l) 0 the prefix, i question i, -1 padding
    position: Tensor  # (b, l)
    row: Tensor  # (k,) image of each question
    end: Tensor  # (k,) position of its </s> in the sequence
    name_row: Tensor  # (j,) image, position and solid of each name in a question
    name_at: Tensor
    name_solid: Tensor


def pack_questions(
    cache: QuestionCache, draw: ImageDraw, rng: np.random.Generator, most: tuple[int, int], patches: int
) -> PackedQuestions:
    """Draw up to most = (placing, replacing) questions about each image, and pack them into one sequence."""
    head = [*PREFIX, *[VOCABULARY.index(IMAGE)] * patches]
    start, rows, questions, names = len(head), [], [], []
    for i, (scene, view, flip) in enumerate(zip(draw.index, draw.view, draw.flip, strict=True)):
        lengths = cache.length[scene, view]
        kinds = zip((range(PLACED), range(PLACED, PLACED + REPLACED)), most, strict=True)
        chosen = [rng.permutation([q for q in slot if lengths[q]])[:top] for slot, top in kinds]
        pick = np.concatenate(chosen).astype(int)
        texts, lengths = cache.tokens[scene, view, pick].astype(np.int64), lengths[pick].astype(np.int64)
        if flip and len(pick):
            texts = mirrored_questions(texts, lengths)
        tokens, block, position = list(head), [0] * start, list(range(start))
        for number, (q, text, count) in enumerate(zip(pick, texts, lengths.tolist(), strict=True), 1):
            pairs = zip(cache.named[scene, view, q], cache.named_at[scene, view, q], strict=True)
            names += [(i, len(tokens) + int(place), int(solid)) for solid, place in pairs if solid >= 0]
            tokens += text[:count].tolist()
            block += [number] * count
            position += range(start, start + count)
            questions.append((i, len(tokens) - 1))
        rows.append((tokens, block, position))
    fillers = zip(zip(*rows, strict=True), (0, -1, 0), strict=True)
    sequences = (pad_sequence(list(map(torch.tensor, column)), True, filler) for column, filler in fillers)
    return PackedQuestions(*sequences, *torch.tensor(questions).T, *torch.tensor(names).T)
