"""Stages B and C: the language model learns to find a named solid, then to place a new one.

All questions about one image are one sequence: the image's prefix, then blocks that see the prefix and
themselves and count positions from its end, so that every answer is computed as if it were asked alone.
Two things besides the answers are taught: numbers near the right one are nearly right (a soft label), and
some attention heads look from a name to the patches of the solid it names.

Legend: b images, l tokens of a sequence, k questions, p patches, n the five numbers of an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from tiny.llava import BEGIN, IMAGE, block_mask
from tiny.locator.questions import ANSWER, FIRST_NUMBER, NUMBER_AT, QuestionCache, mirrored
from tiny.locator.tokenizer import NUMBERS, VOCABULARY
from tiny.locator.vision import OWNED, Images

BLUR = 1.5  # bins of 0.01; width of the soft label of a number
FORMAT_WEIGHT = 0.05
LOOK_LAYER, LOOK_HEADS = 1, 2  # which attention is taught, and how many of its heads
PREFIX = (VOCABULARY.index(BEGIN), VOCABULARY.index("USER:"))


@dataclass(frozen=True, eq=False)
class Asked:
    """Packed questions of b images."""

    tokens: Tensor  # (b, l)
    block: Tensor  # (b, l) 0 the prefix, i question i, -1 padding
    position: Tensor  # (b, l)
    row: Tensor  # (k,) image of each question
    end: Tensor  # (k,) position of its </s> in the sequence
    look_row: Tensor  # (j,) image, position and solid of each name that is looked up
    look_at: Tensor
    look_solid: Tensor


def ask(bank: QuestionCache, index: np.ndarray, view: np.ndarray, flip: np.ndarray, rng: np.random.Generator,
        slots: tuple[range, ...], most: tuple[int, ...], patches: int) -> Asked:  # fmt: skip
    """Draw up to most[i] questions from the bank's rows slots[i] for each image, and pack them."""
    rows: list[tuple[np.ndarray, ...]] = []
    for scene, v, turned in zip(index, view, flip, strict=True):
        length = bank.length[scene, v]
        chosen = [
            rng.permutation([q for q in slot if length[q]])[:top]
            for slot, top in zip(slots, most, strict=True)
        ]
        pick = np.concatenate(chosen).astype(int)
        tokens, length = bank.tokens[scene, v, pick].astype(np.int64), length[pick].astype(np.int64)
        if turned and len(pick):
            tokens = mirrored(tokens, length)
        rows.append((tokens, length, bank.named[scene, v, pick], bank.named_at[scene, v, pick]))
    return _packed(rows, patches)


def _packed(rows: list[tuple[np.ndarray, ...]], patches: int) -> Asked:
    start = len(PREFIX) + patches
    width = start + max(int(length.sum()) for _, length, _, _ in rows)
    tokens, block = np.zeros((len(rows), width), np.int64), np.full((len(rows), width), -1)
    position = np.zeros((len(rows), width), np.int64)
    tokens[:, : len(PREFIX)], tokens[:, len(PREFIX) : start] = PREFIX, VOCABULARY.index(IMAGE)
    block[:, :start], position[:, :start] = 0, np.arange(start)
    asked, looks = [], []
    for i, (text, lengths, named, named_at) in enumerate(rows):
        at = start
        for q, count in enumerate(lengths):
            here = slice(at, at + count)
            tokens[i, here], block[i, here] = text[q, :count], q + 1
            position[i, here] = start + np.arange(count)
            looks += [
                (i, at + int(spot), int(solid))
                for solid, spot in zip(named[q], named_at[q], strict=True)
                if solid >= 0
            ]
            at += int(count)
            asked.append((i, at - 1))
    row, end = torch.tensor(np.array(asked, np.int64)).T
    look_row, look_at, look_solid = torch.tensor(np.array(looks, np.int64)).T
    packed = [torch.from_numpy(values) for values in (tokens, block, position)]
    return Asked(packed[0], packed[1], packed[2], row, end, look_row, look_at, look_solid)


def states_of(model: LlavaForConditionalGeneration, patches: Tensor, asked: Asked) -> Tensor:
    """Projected patches (b, p, c) and questions -> last hidden states (b, l, c)."""
    language, start = model.model.language_model, len(PREFIX)
    words = language.embed_tokens(asked.tokens)
    embedded = torch.cat([words[:, :start], patches.to(words.dtype), words[:, start + patches.shape[1] :]], 1)
    mask = block_mask(asked.block)
    return language(inputs_embeds=embedded, attention_mask=mask, position_ids=asked.position,
                    use_cache=False).last_hidden_state  # fmt: skip


def answer_loss(
    model: LlavaForConditionalGeneration, states: Tensor, asked: Asked
) -> tuple[Tensor, dict[str, float]]:
    """Soft-label loss of the numbers, a little of the format; measures are the KL of each number."""
    at = asked.end[:, None] + torch.arange(1 - ANSWER, 1)  # (k, 8) positions of the answer's tokens
    right = asked.tokens[asked.row[:, None], at]
    logits = model.lm_head(states[asked.row[:, None], at - 1]).float()
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


def look_loss(weights: Tensor, asked: Asked, batch: Images) -> tuple[Tensor, Tensor]:
    """-log of the attention from a name to its solid's patches, and that share of the attention (j,)."""
    start = len(PREFIX)
    cover = batch.cover[asked.look_row, :, asked.look_solid]  # (j, p)
    there = (cover > OWNED) | (cover >= cover.amax(-1, keepdim=True).clamp(min=1e-3))
    rows = weights[asked.look_row, :LOOK_HEADS, asked.look_at, start : start + cover.shape[1]].float()
    mass = (rows * there[:, None]).sum(-1)  # (j, heads)
    return -mass.clamp(min=1e-6).log().mean(), mass.mean(-1)
