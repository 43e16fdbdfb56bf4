"""What the small prompter learns: first to see painted images, then to write the answer.

Besides the words, some attention is taught: from a caption's tag to its mask, and from its words to the
visible solids that decide them, each with the same weight, so that the most frequent word wins.

Legend: b images, l tokens of a sequence, p patches, s solids, m masks, c captions of all images, d
channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from ldm.mllm.templates import LLAVA_SYSTEM
from tiny.llava import BEGIN, END, IMAGE, PAD, AttentionHook, block_mask, normalised, project, recoloured
from tiny.prompter.data import KINDS, SOLIDS, Painted
from tiny.prompter.words import CAPTION, MASKS, caption_tokens, question_tokens, token
from tiny.words import COLOUR_WORDS

OWNED = 0.25  # a patch belongs to what covers most of it, if that is more than this share
SECTIONS = (len(KINDS), len(COLOUR_WORDS), len(MASKS) + 1, 4)  # 4: cx, cy, w, h
BOX_WEIGHT, SCALE_WEIGHT = 20.0, 0.02
FORMAT_WEIGHT = 0.05  # of tokens that hold no guess: tags, end
FIND_LAYER, DECIDE_LAYER, LOOK_HEADS = 1, 2, 2  # which attention is taught, and how many of its heads
PREFIX = (token(BEGIN), token(LLAVA_SYSTEM), token("USER:"))
ARTICLE, COLOUR, SHAPE = 1, 2, 3  # places of a caption's words, counted from its tag


class VisionPretrainer(nn.Module):
    """What the vision stage trains: the model's own parts, and a linear reading that is thrown away."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.read = nn.Linear(model.config.text_config.hidden_size, sum(SECTIONS))


class CaptionTrainer(nn.Module):
    """The whole prompter and the reading of the vision stage, which goes on teaching it to see."""

    def __init__(self, model: LlavaForConditionalGeneration, read: nn.Linear) -> None:
        super().__init__()
        self.model, self.read = model, read
        self.find, self.decide = AttentionHook(model, FIND_LAYER), AttentionHook(model, DECIDE_LAYER)

    def groups(self, lr: float, vision_lr: float) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters with their peak learning rates: what speaks, and what sees."""
        inner = self.model.model
        speak = [*inner.multi_modal_projector.parameters(), *inner.language_model.parameters(),
                 *self.model.lm_head.parameters()]  # fmt: skip
        see = [*inner.vision_tower.parameters(), *self.read.parameters()]
        return [([p for p in speak if p.requires_grad], lr), (see, vision_lr)]


def pixels_of(painted: Painted, rng: np.random.Generator | None = None) -> Tensor:
    """(b, 3, h, w) as the processor makes them; with an rng the light varies a little."""
    return normalised(recoloured(painted.images_u8, rng))


def vision_loss(patches: Tensor, read: Tensor, painted: Painted) -> tuple[Tensor, dict[str, float]]:
    """Loss of projected patches (b, p, d) with readings (b, p, sum of SECTIONS), and its measures."""
    cover = torch.from_numpy(painted.cover)
    share, owner = cover.max(-1)  # (b, p)
    rows = torch.arange(len(owner))[:, None].expand_as(owner)
    owned, is_mask = share > OWNED, owner >= SOLIDS
    solid = owned & ~is_mask
    colours = torch.full((len(owner), len(MASKS)), -1)  # (b, m) colour of each mask
    for row, one in enumerate(painted.masked):
        colours[row, : len(one.colours)] = torch.tensor(one.colours, dtype=torch.long)
    paint = torch.where(owned & is_mask, colours[rows, (owner - SOLIDS).clamp(min=0)], len(MASKS))
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
class PackedBatch:
    """Questions with answers about b images."""

    tokens: Tensor  # (b, l) from BEGIN to END, padded on the right
    block: Tensor  # (b, l) what sees what, as tiny.llava.block_mask reads it
    row: Tensor  # (c,) image of each caption
    at: Tensor  # (c,) place of its first tag in the sequence
    mask: Tensor  # (c,) number of its mask in the question
    end: Tensor  # (b,) place of END


def tell(painted: Painted, patches: int, alone: np.ndarray | None = None) -> PackedBatch:
    """The published question and answer about every image, as tokens.

    alone: (b,) bool, images of which no caption sees those before it
    """
    rows, captions, ends = [], [], []
    for number, one in enumerate(painted.masked):
        text = [*PREFIX, *[token(IMAGE)] * patches, *question_tokens(list(one.colours))]
        for slot, (solid, mask) in enumerate(zip(one.solids, one.colours, strict=True)):
            captions.append((number, len(text), slot))
            words = (int(painted.colour[number, solid]), int(painted.kind[number, solid]))
            text += caption_tokens(mask, *words)
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
    return PackedBatch(tokens, block, row, at, mask, torch.tensor(ends))


def states_of(model: LlavaForConditionalGeneration, patches: Tensor, told: PackedBatch) -> Tensor:
    """Projected patches (b, p, d) and tokens -> last hidden states (b, l, d)."""
    language, start = model.model.language_model, len(PREFIX)
    words = language.embed_tokens(told.tokens)
    embedded = torch.cat([words[:, :start], patches.to(words.dtype), words[:, start + patches.shape[1] :]], 1)
    mask = block_mask(told.block)
    return language(inputs_embeds=embedded, attention_mask=mask, use_cache=False).last_hidden_state


def answer_loss(
    model: LlavaForConditionalGeneration, states: Tensor, told: PackedBatch
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the words, a little of the form. Measures: loss, right words with the truth so far."""
    at = told.at[:, None] + torch.arange(CAPTION)
    right = told.tokens[told.row[:, None], at]  # (c, CAPTION)
    logits = model.lm_head(states[told.row[:, None], at - 1]).float()
    loss = functional.cross_entropy(logits.transpose(1, 2), right, reduction="none").mean(0)
    every = torch.arange(len(told.end))
    end = functional.cross_entropy(
        model.lm_head(states[every, told.end - 1]).float(), torch.full((len(every),), token(END))
    )
    form = loss[0] + loss[CAPTION - 1] + end
    measures = {f"loss_{name}": loss[place].item() for name, place in (("colour", COLOUR), ("shape", SHAPE))}
    for name, place in (("colour", COLOUR), ("shape", SHAPE)):
        measures[name] = _right(logits[:, place], right[:, place])
    return loss[ARTICLE] + loss[COLOUR] + loss[SHAPE] + FORMAT_WEIGHT * form, measures


def look_loss(
    writing: CaptionTrainer, told: PackedBatch, painted: Painted
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy between taught and wanted attention over the patches; measures: mass where it belongs."""
    cover = torch.from_numpy(painted.cover)[told.row]  # (c, p, s + m)
    every = torch.arange(len(told.row))
    own = cover[every, :, SOLIDS + told.mask]
    side, colour = (torch.from_numpy(values)[told.row] for values in (painted.side, painted.colour))
    hidden = torch.zeros(len(painted.masked), SOLIDS, dtype=torch.bool)
    for row, one in enumerate(painted.masked):
        hidden[row, list(one.solids)] = True
    seen = (colour >= 0) & ~hidden[told.row]  # (c, s) visible solids
    solid = torch.tensor([painted.masked[r].solids[m] for r, m in zip(told.row, told.mask, strict=True)])
    mates = seen & (side == side[every, solid][:, None])
    jobs = (
        ("find", writing.find, (0, ARTICLE, COLOUR), _share(own)),
        ("mates", writing.decide, (0, ARTICLE), _share(_spread(cover, mates))),
        ("all", writing.decide, (COLOUR,), _share(_spread(cover, seen))),
    )
    losses, measures = [], {}
    for name, looking, places, (wanted, there) in jobs:
        assert looking.weights is not None
        if not there.any():
            continue
        at = told.at[:, None] + torch.tensor(places)  # (c, places)
        start = len(PREFIX)
        rows = looking.weights[told.row[:, None], :LOOK_HEADS, at, start : start + wanted.shape[1]]
        rows = rows.float()[there]  # (captions, places, heads, p)
        target = wanted[there][:, None, None]
        losses.append(-(target * rows.clamp(min=1e-6).log()).sum(-1).mean())
        measures[f"look_{name}"] = (rows * (target > 0)).sum(-1).mean().item()
    return torch.stack(losses).sum() if losses else torch.zeros(()), measures


def _spread(cover: Tensor, chosen: Tensor) -> Tensor:
    """(c, p, s + m), (c, s) -> (c, p): the chosen solids, each with the same weight over its patches."""
    solids = cover[..., :SOLIDS] / cover[..., :SOLIDS].sum(1, keepdim=True).clamp(min=1e-3)
    return (solids * chosen[:, None]).sum(-1)


def _share(weights: Tensor) -> tuple[Tensor, Tensor]:
    """(c, p) -> distributions over the patches, and where there is anything (c,)."""
    total = weights.sum(-1, keepdim=True)
    return weights / total.clamp(min=1e-6), total[:, 0] > 1e-6


def forward(
    writing: CaptionTrainer, painted: Painted, pixels: Tensor, look: float, see: float,
    alone: np.ndarray | None = None,
) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """Loss and measures of one batch; look, see: weights of the taught attention and of the vision loss.

    alone: see `tell`
    """
    patches = project(writing.model, pixels)
    told = tell(painted, patches.shape[1], alone)
    total, measures = answer_loss(writing.model, states_of(writing.model, patches, told), told)
    if look:
        attended, masses = look_loss(writing, told, painted)
        total, measures = total + look * attended, measures | masses
    if see:
        seen, of_vision = vision_loss(patches, writing.read(patches.float()), painted)
        total = total + see * seen
        measures |= {f"see_{key}": of_vision[key] for key in ("shape", "colour", "box_l1")}
    return total, measures
