"""The losses of the small prompt writer: of what patches show, of the captions, of some of the attention.

Besides the words, some attention is trained: from a caption's tag to its mask, and from its words to the
visible solids that decide them, each with the same weight, so that the most frequent word wins.

Legend: b images, l tokens of a sequence, p patches, s solids, m masks, c captions of all images, d
channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from ldm.mllm.chat import LLAVA_SYSTEM
from tiny.llava import BEGIN, END, IMAGE, PAD, AttentionHook
from tiny.prompter.data import SOLIDS, Painted
from tiny.prompter.words import CAPTION, MASK_COLORS, QUESTION, token
from tiny.words import COLOUR_WORDS, KINDS, SHAPE_WORDS, Name, caption_of

OWNED = 0.25  # a patch belongs to what covers most of it, if that is more than this fraction
SECTIONS = (len(KINDS), len(COLOUR_WORDS), len(MASK_COLORS) + 1, 4)  # 4: cx, cy, w, h
BOX_WEIGHT, SCALE_WEIGHT = 20.0, 0.02
FORMAT_WEIGHT = 0.05  # of tokens that hold no guess: tags, end
ATTENTION_LAYERS, ATTENTION_HEADS = (1, 2), 2  # whose attention is trained, and how many of its heads
PREFIX = (token(BEGIN), token(LLAVA_SYSTEM), token("USER:"))
ARTICLE, COLOUR, SHAPE = 1, 2, 3  # places of a caption's words, counted from its tag


def painted_loss(patches: Tensor, read: Tensor, painted: Painted) -> tuple[Tensor, dict[str, float]]:
    """Loss of projected patches (b, p, d) with readings (b, p, sum of SECTIONS), and its measures."""
    cover = torch.from_numpy(painted.cover)
    fraction, owner = cover.max(-1)  # (b, p)
    rows = torch.arange(len(owner))[:, None].expand_as(owner)
    owned, is_mask = fraction > OWNED, owner >= SOLIDS
    solid = owned & ~is_mask
    colours = torch.full((len(owner), len(MASK_COLORS)), -1)  # (b, m) colour of each mask
    for row, drawn in enumerate(painted.masks):
        colours[row, : len(drawn.colours)] = torch.tensor(drawn.colours, dtype=torch.long)
    paint = torch.where(owned & is_mask, colours[rows, (owner - SOLIDS).clamp(min=0)], len(MASK_COLORS))
    kind_logits, colour_logits, mask_logits, place = read.float().split(SECTIONS, -1)
    kind = torch.from_numpy(painted.kind)[rows[solid], owner[solid]]
    colour = torch.from_numpy(painted.colour)[rows[solid], owner[solid]]
    off = (place[owned] - torch.from_numpy(painted.place)[rows[owned], owner[owned]]).abs().mean()
    scale = (patches.float().square().mean(-1) - 1).abs().mean()
    total = (
        functional.cross_entropy(kind_logits[solid], kind)
        + functional.cross_entropy(colour_logits[solid], colour, ignore_index=-1)
        + functional.cross_entropy(mask_logits.flatten(0, 1), paint.flatten())
        + BOX_WEIGHT * off
        + SCALE_WEIGHT * scale
    )
    named = colour >= 0
    measures = {
        "shape": _right(kind_logits[solid], kind),
        "colour": _right(colour_logits[solid][named], colour[named]),
        "mask": _right(mask_logits.flatten(0, 1), paint.flatten()),
        "box_l1": off.item(),
    }
    return total, measures


def _right(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(-1) == labels).float().mean().item()


@dataclass(frozen=True, eq=False)
class PackedCaptions:
    """Questions with answers about b images."""

    tokens: Tensor  # (b, l) from BEGIN to END, padded on the right
    block: Tensor  # (b, l) what sees what, as tiny.llava_stages.last_states reads it
    row: Tensor  # (c,) image of each caption
    at: Tensor  # (c,) place of its first tag in the sequence
    mask: Tensor  # (c,) number of its mask in the question
    end: Tensor  # (b,) place of END


def pack_captions(painted: Painted, patches: int, alone: np.ndarray | None = None) -> PackedCaptions:
    """The published question and answer about every image, as tokens.

    alone: (b,) bool, images of which no caption sees those before it
    """
    rows, captions, ends = [], [], []
    for number, drawn in enumerate(painted.masks):
        listed = [part for mask in drawn.colours for part in (token(f" {MASK_COLORS[mask]}"), token(","))]
        text = [
            *PREFIX,
            *[token(IMAGE)] * patches,
            token(QUESTION),
            *listed[:-1],
            token("."),
            token("ASSISTANT:"),
        ]
        for slot, (solid, mask) in enumerate(zip(drawn.solids, drawn.colours, strict=True)):
            captions.append((number, len(text), slot))
            name = Name(
                "", COLOUR_WORDS[painted.colour[number, solid]], SHAPE_WORDS[painted.kind[number, solid]]
            )
            article, *words = caption_of(name).split()
            color = MASK_COLORS[mask]
            text += [token(f"<{color}>"), token(article), *(token(f" {word}") for word in words)]
            text.append(token(f"</{color}>"))
        ends.append(len(text))
        rows.append([*text, token(END)])
    tokens = torch.full((len(rows), max(map(len, rows))), token(PAD))
    block = torch.full_like(tokens, -1)
    for number, text in enumerate(rows):
        tokens[number, : len(text)], block[number, : len(text)] = torch.tensor(text), 0
    for number, start, slot in captions:
        if alone is not None and alone[number]:
            block[number, start : start + CAPTION] = slot + 1
    row, at, mask = torch.tensor(captions).T
    return PackedCaptions(tokens, block, row, at, mask, torch.tensor(ends))


def caption_loss(
    model: LlavaForConditionalGeneration, states: Tensor, packed: PackedCaptions
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the words, and a little of the form; right words are counted given the true ones."""
    at = packed.at[:, None] + torch.arange(CAPTION)
    right = packed.tokens[packed.row[:, None], at]  # (c, CAPTION)
    logits = model.lm_head(states[packed.row[:, None], at - 1]).float()
    loss = functional.cross_entropy(logits.transpose(1, 2), right, reduction="none").mean(0)
    every = torch.arange(len(packed.end))
    end = functional.cross_entropy(
        model.lm_head(states[every, packed.end - 1]).float(), torch.full((len(every),), token(END))
    )
    form = loss[0] + loss[CAPTION - 1] + end
    measures = {f"loss_{name}": loss[place].item() for name, place in (("colour", COLOUR), ("shape", SHAPE))}
    for name, place in (("colour", COLOUR), ("shape", SHAPE)):
        measures[name] = _right(logits[:, place], right[:, place])
    return loss[ARTICLE] + loss[COLOUR] + loss[SHAPE] + FORMAT_WEIGHT * form, measures


def evidence_loss(
    hooks: Sequence[AttentionHook], packed: PackedCaptions, painted: Painted
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of attention against its target over the patches; measures: mass where it belongs."""
    cover = torch.from_numpy(painted.cover)[packed.row]  # (c, p, s + m)
    every = torch.arange(len(packed.row))
    own = cover[every, :, SOLIDS + packed.mask]
    side, colour = (torch.from_numpy(values)[packed.row] for values in (painted.side, painted.colour))
    hidden = torch.zeros(len(painted.masks), SOLIDS, dtype=torch.bool)
    for row, drawn in enumerate(painted.masks):
        hidden[row, list(drawn.solids)] = True
    seen = (colour >= 0) & ~hidden[packed.row]  # (c, s) visible solids
    solid = torch.tensor([painted.masks[r].solids[m] for r, m in zip(packed.row, packed.mask, strict=True)])
    mates = seen & (side == side[every, solid][:, None])
    jobs = (
        ("find", hooks[0], (0, ARTICLE, COLOUR), _distribution(own)),
        ("mates", hooks[1], (0, ARTICLE), _distribution(_spread(cover, mates))),
        ("all", hooks[1], (COLOUR,), _distribution(_spread(cover, seen))),
    )
    losses, measures = [], {}
    for name, hook, places, (wanted, there) in jobs:
        assert hook.weights is not None
        if not there.any():
            continue
        at = packed.at[:, None] + torch.tensor(places)  # (c, places)
        start = len(PREFIX)
        rows = hook.weights[packed.row[:, None], :ATTENTION_HEADS, at, start : start + wanted.shape[1]]
        rows = rows.float()[there]  # (captions, places, heads, p)
        target = wanted[there][:, None, None]
        losses.append(-(target * rows.clamp(min=1e-6).log()).sum(-1).mean())
        measures[f"look_{name}"] = (rows * (target > 0)).sum(-1).mean().item()
    return torch.stack(losses).sum() if losses else torch.zeros(()), measures


def _spread(cover: Tensor, chosen: Tensor) -> Tensor:
    """(c, p, s + m), (c, s) -> (c, p): the chosen solids, each with the same weight over its patches."""
    solids = cover[..., :SOLIDS] / cover[..., :SOLIDS].sum(1, keepdim=True).clamp(min=1e-3)
    return (solids * chosen[:, None]).sum(-1)


def _distribution(weights: Tensor) -> tuple[Tensor, Tensor]:
    """(c, p) -> distributions over the patches, and where there is anything (c,)."""
    total = weights.sum(-1, keepdim=True)
    return weights / total.clamp(min=1e-6), total[:, 0] > 1e-6
