"""The small prompt writer: its words, the losses of what patches show and of captions, its training.

Question and answer are as published, captions as the small inpainter reads them. One token is one word with
the blank before it, one tag, or a fixed sentence; so the tokens of an answer spell exactly its text.

Besides the words, some attention is trained: from a caption's tag to its mask, and from its words to the
visible solids that decide them, each with the same weight, so that the most frequent word wins.
Legend: b images, l tokens of a sequence, p patches, s solids, m masks, c captions of all images, d channels.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import decoders
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from inpainting.prompts import CONFIG_FILE, TEMPLATE, PrompterConfig, discover_question
from ldm.mllm.templates import LLAVA_SYSTEM, TEMPLATES
from tiny import llava, world
from tiny.loop import autocast, stages_manifest
from tiny.prompter.sets import SOLIDS, DrawnMasks, Painted, Sets, draw_masks, open_sets, paint_scenes
from tiny.prompter.train import PrompterTraining
from tiny.settings import MASK_COLORS
from tiny.world import COLOUR_WORDS, KINDS, SHAPE_WORDS, Name, caption_of

QUESTION = discover_question(["#"]).partition(" #")[0]
SENTENCES = (LLAVA_SYSTEM, QUESTION, "USER:", "ASSISTANT:")
TAGS = tuple(f"<{end}{color}>" for color in MASK_COLORS for end in ("", "/"))
SPOKEN = ("a", "an", *(f" {word}" for word in (*COLOUR_WORDS, *SHAPE_WORDS)))
VOCABULARY = (*world.SPECIAL, *SENTENCES, ",", ".", *TAGS, *SPOKEN)
PIECES = "|".join([*map(re.escape, SENTENCES), r"</?[a-z]+>", r" ?(?!USER:|ASSISTANT:)[A-Za-z]+", r"[,.]"])
CAPTION = 5  # tokens of a caption with its tags: <red> a red cone </red>
OWNED = 0.25  # a patch belongs to what covers most of it, if that is more than this fraction
SECTIONS = (len(KINDS), len(COLOUR_WORDS), len(MASK_COLORS) + 1, 4)  # 4: cx, cy, w, h
BOX_WEIGHT, SCALE_WEIGHT = 20.0, 0.02
FORMAT_WEIGHT = 0.05  # of tokens that hold no guess: tags, end
ATTENTION_LAYERS, ATTENTION_HEADS = (1, 2), 2  # whose attention is trained, and how many of its heads
PREFIX = (world.BEGIN, LLAVA_SYSTEM, "USER:")  # before the image
ARTICLE, COLOUR, SHAPE = 1, 2, 3  # places of a caption's words, counted from its tag
VISION = ("model.vision_tower.", "model.multi_modal_projector.")
NOTICE = (
    "This is the small prompt writer, trained on rendered scenes of plain solids in sets only: it writes "
    "captions such as 'a red cone'. For paintings: the released adapter, see docs/prompts.md."
)


def painted_loss(patches: Tensor, read: Tensor, painted: Painted) -> tuple[Tensor, llava.Measures]:
    """Loss of projected patches (b, p, d) with readings (b, p, sum of SECTIONS), and its measures."""
    fraction, owner = torch.from_numpy(painted.cover).max(-1)  # (b, p)
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
    total = functional.cross_entropy(kind_logits[solid], kind)
    total = total + functional.cross_entropy(colour_logits[solid], colour, ignore_index=-1)
    total = total + functional.cross_entropy(mask_logits.flatten(0, 1), paint.flatten())
    total = total + BOX_WEIGHT * off + SCALE_WEIGHT * scale
    named = colour >= 0
    right = {
        "shape": kind_logits[solid].argmax(-1) == kind,
        "colour": colour_logits[solid][named].argmax(-1) == colour[named],
        "mask": mask_logits.argmax(-1) == paint,
    }
    return total, {name: hits.float().mean().item() for name, hits in right.items()} | {"box_l1": off.item()}


@dataclass(frozen=True, eq=False)
class PackedCaptions:
    tokens: Tensor  # (b, l) from <s> to </s>, padded on the right
    block: Tensor  # (b, l) what sees what, as tiny.llava.last_states reads it
    row: Tensor  # (c,) image of each caption
    at: Tensor  # (c,) place of its first tag in the sequence
    mask: Tensor  # (c,) number of its mask in the question
    end: Tensor  # (b,) place of </s>


def pack_captions(painted: Painted, patches: int, alone: np.ndarray | None = None) -> PackedCaptions:
    """The published question and answer of images, as tokens. alone: (b,) bool, captions see no other."""
    rows, captions, ends = [], [], []
    for number, drawn in enumerate(painted.masks):
        colors = [MASK_COLORS[mask] for mask in drawn.colours]
        listed = [part for color in colors for part in (f" {color}", ",")][:-1]
        text = [*PREFIX, *[world.IMAGE] * patches, QUESTION, *listed, ".", "ASSISTANT:"]
        for slot, (solid, color) in enumerate(zip(drawn.solids, colors, strict=True)):
            captions.append((number, len(text), slot))
            colour, shape = painted.colour[number, solid], painted.kind[number, solid]
            article, *words = caption_of(Name("", COLOUR_WORDS[colour], SHAPE_WORDS[shape])).split()
            text += [f"<{color}>", article, *(f" {word}" for word in words), f"</{color}>"]
        ends.append(len(text))
        rows.append(torch.tensor([VOCABULARY.index(word) for word in (*text, world.END)]))
    tokens = pad_sequence(rows, batch_first=True, padding_value=VOCABULARY.index(world.PAD))
    block = pad_sequence([torch.zeros_like(ids) for ids in rows], batch_first=True, padding_value=-1)
    for number, start, slot in captions:
        if alone is not None and alone[number]:
            block[number, start : start + CAPTION] = slot + 1
    row, at, mask = torch.tensor(captions).T
    return PackedCaptions(tokens, block, row, at, mask, torch.tensor(ends))


def writing_loss(
    trainer: llava.LanguageTrainer,
    painted: Painted,
    pixels: Tensor,
    weights: tuple[float, float],
    alone: np.ndarray | None = None,
) -> tuple[Tensor, llava.Measures]:
    """Loss and measures: words, a little of the form, attention and vision by `weights`."""
    patches = llava.project(trainer.model, pixels)
    packed = pack_captions(painted, patches.shape[1], alone)
    states = llava.last_states(trainer.model, patches, packed.tokens, packed.block)
    at = packed.at[:, None] + torch.arange(CAPTION)
    right = packed.tokens[packed.row[:, None], at]  # (c, CAPTION)
    logits = trainer.model.lm_head(states[packed.row[:, None], at - 1]).float()
    losses = functional.cross_entropy(logits.transpose(1, 2), right, reduction="none").mean(0)
    every = torch.arange(len(packed.end))
    ends = trainer.model.lm_head(states[every, packed.end - 1]).float()
    form = losses[0] + losses[CAPTION - 1] + functional.cross_entropy(ends, packed.tokens[every, packed.end])
    total = losses[ARTICLE] + losses[COLOUR] + losses[SHAPE] + FORMAT_WEIGHT * form
    places = (("colour", COLOUR), ("shape", SHAPE))
    measures = {f"loss_{name}": losses[place].item() for name, place in places}
    hits = (logits.argmax(-1) == right).float().mean(0)
    measures |= {name: hits[place].item() for name, place in places}
    attention_weight, vision_weight = weights
    if attention_weight:
        attention, masses = evidence_loss(trainer.attention, packed, painted)
        total, measures = total + attention_weight * attention, measures | masses
    if vision_weight:
        vision, seen = painted_loss(patches, trainer.read(patches.float()), painted)
        total = total + vision_weight * vision
        measures |= {f"see_{key}": seen[key] for key in ("shape", "colour", "box_l1")}
    return total, measures


def evidence_loss(
    attention: Mapping[int, Tensor],
    packed: PackedCaptions,
    painted: Painted,
) -> tuple[Tensor, llava.Measures]:
    """Cross-entropy of each ATTENTION_LAYERS against its target patches; measures: mass where it belongs."""
    find, gather = (attention[layer] for layer in ATTENTION_LAYERS)
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
        ("find", find, (0, ARTICLE, COLOUR), _distribution(own)),
        ("mates", gather, (0, ARTICLE), _distribution(_spread(cover, mates))),
        ("all", gather, (COLOUR,), _distribution(_spread(cover, seen))),
    )
    losses, measures = [], {}
    for name, layer, places, (wanted, there) in jobs:
        if not there.any():
            continue
        at, start = packed.at[:, None] + torch.tensor(places), len(PREFIX)  # (c, places)
        rows = layer[packed.row[:, None], :ATTENTION_HEADS, at, start : start + wanted.shape[1]]
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


def train_prompter(config: PrompterTraining) -> None:
    """Train the small prompt writer in two stages; the same command again continues."""
    render = f"tiny.prompter.scenes --out {config.data} --count {2 * config.held_out}"
    train, held_out = world.split_scenes(config.scenes, config.held_out, render)
    sets = open_sets(config.data, config.out / "cache", config.scenes)
    model = llava.create_llava(config.model, VOCABULARY, config.seed)
    folder = config.vision_from
    vision_files = llava.load_weights(model, folder, VISION) if folder else {}  # name -> SHA-256

    def draw(rng: np.random.Generator, size: int) -> Painted:
        index, flip = train[rng.integers(len(train), size=size)], rng.random(size) < 0.5
        masks = [draw_masks(sets, scene, config.most, rng) for scene in index.tolist()]
        return paint_scenes(sets, index, flip, masks)

    def draw_with_pixels(rng: np.random.Generator, size: int) -> tuple[Tensor, Painted]:
        return llava.pixel_values((painted := draw(rng, size)).images_u8, rng), painted

    shown = held_out_images(sets, held_out, len(MASK_COLORS))
    read, see, seen = llava.train_vision(config, model, sum(SECTIONS), draw_with_pixels, shown, painted_loss)
    measures = {"vision": seen}
    writer = llava.LanguageTrainer(model, read, ATTENTION_LAYERS)
    settings = config.writing
    weights = config.attention_loss_weight, config.vision_loss_weight if settings.vision_lr > 0 else 0.0
    weights = (0.0, 0.0) if config.blind else weights

    def loss(step: int) -> tuple[Tensor, llava.Measures]:
        rng = np.random.default_rng((config.seed, 2, step))
        painted = draw(rng, settings.batch)
        alone = rng.random(settings.batch) < config.alone
        with autocast("cpu", enabled=settings.bf16):
            return writing_loss(writer, painted, llava.pixel_values(painted.images_u8, rng), weights, alone)

    write = writer.train_stage("writing", settings, config.out, loss)
    writer.eval()
    with torch.inference_mode():
        batches = held_out_images(sets, held_out, config.most)
        rows = [writing_loss(writer, painted, pixels, (1.0, 0.0))[1] for pixels, painted in batches]
    measures["writing"] = llava.rounded_means(rows)
    logging.getLogger(__name__).info("writing: %s", measures["writing"])
    gates, stages = {"gates": measures}, [see, write]
    manifest = stages_manifest("prompter", model, stages, config, config.seed, held_out=gates)
    manifest["vision_from"] = vision_files
    prompts = PrompterConfig(name="tiny prompter", notice=NOTICE, colors=MASK_COLORS, longest=CAPTION)
    files = {"manifest.json": manifest, CONFIG_FILE: prompts}
    tokenizer = world.word_tokenizer(VOCABULARY, PIECES, decoders.Fuse(), TEMPLATES[TEMPLATE], begins=True)
    llava.save_llava(config, model, CAPTION * len(MASK_COLORS) + 1, tokenizer, files)


def held_out_images(sets: Sets, scenes: np.ndarray, most: int) -> Iterator[tuple[Tensor, Painted]]:
    """Batches of scenes with masks that depend on the scene alone; those without masks are left out."""
    for part in np.array_split(scenes, max(1, len(scenes) // 64)):
        masks: dict[int, DrawnMasks] = {}
        for scene in part.tolist():
            drawn = draw_masks(sets, scene, most, np.random.default_rng(scene))
            masks |= {scene: drawn} if drawn.solids else {}
        index, flip = np.array(list(masks)), np.zeros(len(masks), bool)
        painted = paint_scenes(sets, index, flip, list(masks.values()))
        yield llava.pixel_values(painted.images_u8), painted
