"""Stages B and C: the language model learns to find a named solid, then to place a new one.

All questions about one image are one sequence: the image's prefix, then blocks that see the prefix and
themselves and count positions from its end, so that every answer is computed as if it were asked alone.
Besides the answers, the loss trains two things: a number near the right one is nearly right (a soft label),
and some attention heads attend from a name to the patches of the solid that it names.

Legend: b images, l tokens of a sequence, k questions, p patches, n the five numbers of an answer.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from tiny.llava import BEGIN, IMAGE
from tiny.locator.questions import (
    ANSWER,
    FIRST_NUMBER,
    NUMBER_AT,
    PLACED,
    REPLACED,
    QuestionCache,
    mirrored_questions,
)
from tiny.locator.tokenizer import NUMBERS, VOCABULARY
from tiny.locator.vision import OWNED, ImageDraw, LabelledImages

BLUR = 1.5  # bins of 0.01; width of the soft label of a number
FORMAT_WEIGHT = 0.05
ATTENTION_LAYER, ATTENTION_HEADS = 1, 2  # whose attention is trained, and how many of its heads
SLOTS = (range(PLACED), range(PLACED, PLACED + REPLACED))  # rows of the questions of each kind
PREFIX = (VOCABULARY.index(BEGIN), VOCABULARY.index("USER:"))


@dataclass(frozen=True, eq=False)
class PackedQuestions:
    """Packed questions of b images."""

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
    start = len(PREFIX) + patches
    texts, questions, names = [], [], []
    for i, (scene, view, flip) in enumerate(zip(draw.index, draw.view, draw.flip, strict=True)):
        lengths = cache.length[scene, view]
        chosen = [
            rng.permutation([q for q in slot if lengths[q]])[:top]
            for slot, top in zip(SLOTS, most, strict=True)
        ]
        pick = np.concatenate(chosen).astype(int)
        tokens, lengths = cache.tokens[scene, view, pick].astype(np.int64), lengths[pick].astype(np.int64)
        if flip and len(pick):
            tokens = mirrored_questions(tokens, lengths)
        texts.append([text[:count] for text, count in zip(tokens, lengths, strict=True)])
        at = start
        for q, count in zip(pick, lengths.tolist(), strict=True):
            pairs = zip(cache.named[scene, view, q], cache.named_at[scene, view, q], strict=True)
            names += [(i, at + int(place), int(solid)) for solid, place in pairs if solid >= 0]
            at += count
            questions.append((i, at - 1))
    width = start + max(sum(map(len, text)) for text in texts)
    tokens, block = np.zeros((len(texts), width), np.int64), np.full((len(texts), width), -1)
    position = np.zeros((len(texts), width), np.int64)
    tokens[:, : len(PREFIX)], tokens[:, len(PREFIX) : start] = PREFIX, VOCABULARY.index(IMAGE)
    block[:, :start], position[:, :start] = 0, np.arange(start)
    for i, text in enumerate(texts):
        at = start
        for q, words in enumerate(text, 1):
            here = slice(at, at + len(words))
            tokens[i, here], block[i, here], position[i, here] = words, q, start + np.arange(len(words))
            at += len(words)
    sequences = [torch.from_numpy(values) for values in (tokens, block, position)]
    return PackedQuestions(*sequences, *torch.tensor(questions).T, *torch.tensor(names).T)


def placement_loss(
    model: LlavaForConditionalGeneration, states: Tensor, packed: PackedQuestions
) -> tuple[Tensor, dict[str, float]]:
    """Soft-label loss of the numbers, a little of the format; measures are the KL of each number."""
    at = packed.end[:, None] + torch.arange(1 - ANSWER, 1)  # (k, 8) positions of the answer's tokens
    right = packed.tokens[packed.row[:, None], at]
    logits = model.lm_head(states[packed.row[:, None], at - 1]).float()
    numbers = torch.from_numpy(NUMBER_AT + ANSWER)  # columns of the five numbers
    bins = torch.arange(len(NUMBERS))
    value = right[:, numbers] - FIRST_NUMBER
    soft = torch.softmax(-0.5 * ((bins - value[..., None]) / BLUR) ** 2, -1)  # (k, n, bins)
    log_p = functional.log_softmax(logits[:, numbers], -1)[..., FIRST_NUMBER : FIRST_NUMBER + len(NUMBERS)]
    kl = (soft * (soft.clamp(min=1e-9).log() - log_p)).sum(-1).mean(0)  # (n,)
    other = [i for i in range(ANSWER) if i not in numbers.tolist()]
    form = functional.cross_entropy(logits[:, other].flatten(0, 1), right[:, other].flatten())
    measures = {
        f"kl_{name}": value.item() for name, value in zip(("x1", "y1", "x2", "y2", "d"), kl, strict=True)
    }
    return kl.mean() + FORMAT_WEIGHT * form, measures


def attention_loss(weights: Tensor, packed: PackedQuestions, batch: LabelledImages) -> tuple[Tensor, Tensor]:
    """-log of the attention from a name to its solid's patches, and that fraction of the attention (j,)."""
    start = len(PREFIX)
    cover = batch.cover[packed.name_row, :, packed.name_solid]  # (j, p)
    there = (cover > OWNED) | (cover >= cover.amax(-1, keepdim=True).clamp(min=1e-3))
    rows = weights[packed.name_row, :ATTENTION_HEADS, packed.name_at, start : start + cover.shape[1]].float()
    mass = (rows * there[:, None]).sum(-1)  # (j, heads)
    return -mass.clamp(min=1e-6).log().mean(), mass.mean(-1)
