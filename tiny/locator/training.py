"""The small locator: what it sees, and its stages: seeing, finding a named solid, placing a new one.

Each scene gives two images: 0 as rendered, 1 without its removed solid.
Legend: n scenes, v the two images, b images of a batch, h w pixels, p patches (row-major), s solids (padded),
c channels, k questions, j names in questions.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional

from datasets.scenes.store import depth_01, read_facts, read_shard
from datasets.sources.rendered import shard_files
from ldm.files import read_json
from llava_bifrost.locator import CONFIG, LocatorConfig
from tiny import llava, world
from tiny.locator import questions as words
from tiny.locator.questions import ImageDraw
from tiny.locator.train import LocatorTraining
from tiny.loop import Stage, autocast, stages_manifest
from tiny.settings import PATCH
from tiny.world import COLOUR_WORDS, KINDS, PATTERN_NAMES, SHAPE_WORDS

SOLIDS = 8  # rows per scene; the options of the renderer give at most seven
FORMAT = 1
OWNED = 0.25  # a patch belongs to the solid that covers most of it, if that is more than this fraction
UNSURE = 0.1  # patches with a larger fraction of unknown owners do not count
SECTIONS = (len(KINDS), len(COLOUR_WORDS), len(PATTERN_NAMES), 5, 1, 1)  # 5: cx, cy, w, h, d
BOX_WEIGHT, DEPTH_WEIGHT, SCALE_WEIGHT = 20.0, 10.0, 0.02
BLUR = 1.5  # bins of 0.01; width of the soft label of a number
FORMAT_WEIGHT = 0.05
ATTENTION_LAYER, ATTENTION_HEADS = 1, 2  # whose attention is trained, and how many of its heads

NOTICE = (
    "This is the small locator, trained on rendered scenes of plain solids only: it knows their names and "
    "square images of rooms, nothing else. For photographs: a model trained with scripts/train_llava.sh."
)


@dataclass(frozen=True, eq=False)
class SceneArrays:
    """Arrays of n scenes. Labels are -1 where there is no solid or no word of that kind."""

    images_u8: np.ndarray  # (n, v, h, w, 3)
    cover_u8: np.ndarray  # (n, v, p, s) fraction of a patch that shows a solid, 255 = all of it
    unknown_u8: np.ndarray  # (n, p) fraction of a patch of image 1 whose owner is not stored
    patch_depth: np.ndarray  # (n, v, p) float16 depth_01, mean of the patch
    labels: np.ndarray  # (n, s, 3) int8 shape, colour, pattern
    boxes: np.ndarray  # (n, s, 4) float32 amodal boxes, fractions
    depths: np.ndarray  # (n, s, 3) float32 d, far, near


def open_scenes(data: Path, folder: Path) -> SceneArrays:
    """The arrays of all shards of `data`, made once in `folder` and memory-mapped from there."""
    files = shard_files(data)
    recipe = {"format": FORMAT, "patch": PATCH, "shards": [[f.name, f.stat().st_size] for f in files]}
    first, last = (len(read_facts(file)) for file in (files[0], files[-1]))

    def arrays_of(file: Path) -> dict[str, np.ndarray]:
        shard = read_shard(file)
        k, removed = len(shard.facts), np.array([fact.removed for fact in shard.facts])
        without = np.where(shard.instances_u8 == removed[:, None, None] + 1, 255, shard.instances_u8)
        views = np.stack([shard.instances_u8, without], 1)
        cover = np.stack([world.pooled(views == i + 1, PATCH) for i in range(SOLIDS)], -1)
        depth = depth_01(np.stack([shard.depth_u16, shard.without_depth_u16], 1))
        labels = np.full((k, SOLIDS, 3), -1, np.int8)
        boxes, depths = np.zeros((k, SOLIDS, 4), np.float32), np.zeros((k, SOLIDS, 3), np.float32)
        for i, fact in enumerate(shard.facts):
            count = len(fact.names)
            for row, name in enumerate(fact.names):
                labels[i, row, 0], solid = KINDS.index(name.split()[-1]), world.read_name(name)
                if solid is not None:
                    labels[i, row, 1:] = COLOUR_WORDS.index(solid.colour), PATTERN_NAMES.index(solid.pattern)
            boxes[i, :count], depths[i, :count] = fact.boxes01, fact.depths
        return {
            "images_u8": np.stack([shard.image_u8, shard.without_u8], 1),
            "cover_u8": np.round(cover * 255).astype(np.uint8),
            "unknown_u8": np.round(world.pooled(without[:, None] == 255, PATCH)[:, 0] * 255).astype(np.uint8),
            "patch_depth": world.pooled(depth, PATCH).astype(np.float16),
            "labels": labels, "boxes": boxes, "depths": depths}  # fmt: skip

    count = first * (len(files) - 1) + last
    return world.cached_arrays(SceneArrays, folder, recipe, count, files, arrays_of)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    pixels: Tensor  # (b, 3, h, w) normalised
    cover: Tensor  # (b, p, s) fraction of each patch that each solid covers
    known: Tensor  # (b, p) bool
    patch_depth: Tensor  # (b, p)
    labels: Tensor  # (b, s, 3) shape, colour, pattern; -1: none
    place: Tensor  # (b, s, 5) cx, cy, w, h, d


def labelled_images(scenes: SceneArrays, draw: ImageDraw, rng: Generator | None = None) -> LabelledImages:
    """The images of a draw; recoloured with an rng."""
    index, view, flip = draw.index, draw.view, draw.flip
    pixels_u8, cover, depth = (
        np.stack([array[i, v] for i, v in zip(index, view, strict=True)])
        for array in (scenes.images_u8, scenes.cover_u8, scenes.patch_depth)
    )
    unknown = scenes.unknown_u8[index] * (view == 1)[:, None]
    side, boxes = int(cover.shape[1] ** 0.5), np.array(scenes.boxes[index])
    if flip.any():
        pixels_u8[flip] = pixels_u8[flip][:, :, ::-1]
        for patches in (cover, depth, unknown):  # columns in reverse
            turned = patches[flip].reshape(int(flip.sum()), side, side, -1)[:, :, ::-1]
            patches[flip] = turned.reshape(patches[flip].shape)
        boxes[flip] = boxes[flip][..., [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
    low, high = boxes[..., :2], boxes[..., 2:]
    place = np.concatenate([(low + high) / 2, high - low, scenes.depths[index][..., :1]], -1)
    return LabelledImages(
        llava.pixel_values(pixels_u8, rng), torch.from_numpy(cover).float() / 255,
        torch.from_numpy(unknown < UNSURE * 255), torch.from_numpy(depth.astype(np.float32)),
        torch.from_numpy(scenes.labels[index].astype(np.int64)), torch.from_numpy(place.astype(np.float32)),
    )  # fmt: skip


def patch_loss(patches: Tensor, read: Tensor, batch: LabelledImages) -> tuple[Tensor, llava.Measures]:
    """Loss of projected patches (b, p, c) with readings (b, p, sum of SECTIONS), and its measures.

    A linear map of every patch must tell shape, colour and pattern of the solid that owns it, its whole box
    and depth, and the depth of the patch. Patches are kept at unit scale, which is that of word embeddings.
    """
    fraction, owner = batch.cover.max(-1)  # (b, p)
    owned = (fraction > OWNED) & batch.known
    rows = torch.arange(len(owner))[:, None].expand_as(owner)
    what = batch.labels[rows, owner][owned]  # (k, 3)
    words = read.float().split(SECTIONS, -1)
    losses, measures = [], {}
    for i, name in enumerate(("shape", "colour", "pattern")):
        guess, valid = words[i][owned], what[:, i] >= 0
        losses.append(functional.cross_entropy(guess, what[:, i], ignore_index=-1))
        measures[name] = (guess.argmax(-1) == what[:, i])[valid].float().mean().item()
    off = (words[3][owned] - batch.place[rows, owner][owned]).abs().mean()
    depth_off = (words[5][..., 0] - batch.patch_depth).abs().mean()
    shown, known = words[4][..., 0][batch.known], (fraction > OWNED)[batch.known].float()
    solid = functional.binary_cross_entropy_with_logits(shown, known)
    scale = (patches.float().square().mean(-1) - 1).abs().mean()
    total = sum(losses) + BOX_WEIGHT * off + DEPTH_WEIGHT * depth_off + solid + SCALE_WEIGHT * scale
    return total, measures | {"box_l1": off.item(), "depth_l1": depth_off.item(), "solid": solid.item()}


@dataclass(frozen=True, eq=False)
class Training:
    config: LocatorTraining
    trainer: llava.LanguageTrainer
    scenes: SceneArrays
    questions: words.QuestionCache

    def loss_of(self, draw: ImageDraw, batch: LabelledImages, rng: Generator, most: tuple[int, int],
                count: int) -> tuple[Tensor, Tensor, Tensor, llava.Measures]:  # fmt: skip
        """Losses of answers and of attention, projected patches, measures. count: images with questions.

        Besides the answers, two things are trained: a number near the right one is nearly right (a soft
        label), and some attention heads attend from a name to the patches of the solid that it names. The
        measures are the KL of each number, and the fraction of the attention there.
        """
        model = self.trainer.model
        patches = llava.project(model, batch.pixels)
        asked = ImageDraw(draw.index[:count], draw.view[:count], draw.flip[:count])
        packed = words.pack_questions(self.questions, asked, rng, most, patches.shape[1])
        states = llava.last_states(model, patches[:count], packed.tokens, packed.block, packed.position)
        at = packed.end[:, None] + torch.arange(1 - words.ANSWER, 1)  # (k, 8) where the answer's tokens are
        right = packed.tokens[packed.row[:, None], at]
        logits = model.lm_head(states[packed.row[:, None], at - 1]).float()
        numbers = torch.from_numpy(words.NUMBER_AT + words.ANSWER)  # columns of the five numbers
        bins, value = torch.arange(len(words.NUMBERS)), right[:, numbers] - words.FIRST_NUMBER
        soft = torch.softmax(-0.5 * ((bins - value[..., None]) / BLUR) ** 2, -1)  # (k, 5, bins)
        log_p = functional.log_softmax(logits[:, numbers], -1)[..., words.FIRST_NUMBER :]  # the last words
        kl = (soft * (soft.clamp(min=1e-9).log() - log_p)).sum(-1).mean(0)  # (5,)
        other = [i for i in range(words.ANSWER) if i not in numbers.tolist()]
        form = functional.cross_entropy(logits[:, other].flatten(0, 1), right[:, other].flatten())

        cover = batch.cover[packed.name_row, :, packed.name_solid]  # (j, p)
        there = (cover > OWNED) | (cover >= cover.amax(-1, keepdim=True).clamp(min=1e-3))
        image = slice(len(words.PREFIX), len(words.PREFIX) + cover.shape[1])
        weights = self.trainer.attention[ATTENTION_LAYER]
        rows = weights[packed.name_row, :ATTENTION_HEADS, packed.name_at, image].float()
        mass = (rows * there[:, None]).sum(-1)  # (j, heads)
        named = zip(("x1", "y1", "x2", "y2", "d"), kl.tolist(), strict=True)
        measures = {f"kl_{name}": value for name, value in named} | {"look": mass.mean().item()}
        return kl.mean() + FORMAT_WEIGHT * form, -mass.clamp(min=1e-6).log().mean(), patches, measures

    def train(self, name: str, settings: llava.LlavaStage, train: np.ndarray, most: tuple[int, int],
              attention_weight: float) -> Stage:  # fmt: skip
        """A stage with up to most = (placing, replacing) questions per image, finished."""
        config = self.config

        def loss(step: int) -> tuple[Tensor, llava.Measures]:
            rng = np.random.default_rng((config.seed, sum(name.encode()), step))
            draw = ImageDraw.random(train, settings.batch + settings.extra, rng)
            if config.asked:
                draw.index[: settings.batch] %= config.asked
            batch = labelled_images(self.scenes, draw, rng)
            with autocast("cpu", enabled=settings.bf16):
                total, attention, patches, measures = self.loss_of(draw, batch, rng, most, settings.batch)
            if attention_weight:
                total = total + attention_weight * attention
            if config.vision_loss_weight and settings.vision_lr > 0:
                shown, seen = patch_loss(patches, self.trainer.read(patches.float()), batch)
                total = total + config.vision_loss_weight * shown
                measures |= {key: seen[key] for key in ("shape", "box_l1", "depth_l1")}
            return total, measures

        return self.trainer.train_stage(name, settings, config.out, loss)

    @torch.inference_mode()
    def measure(self, held_out: np.ndarray, most: tuple[int, int]) -> llava.Measures:
        """Held-out means: KL of each number given the true ones before, attention on names, what is seen."""
        self.trainer.eval()
        rows = []
        for part in np.array_split(held_out, max(1, len(held_out) // 16)):
            draw = ImageDraw(part, part % 2, np.zeros(len(part), bool))
            batch, rng = labelled_images(self.scenes, draw), np.random.default_rng(int(part[0]))
            patches, measures = self.loss_of(draw, batch, rng, most, len(part))[-2:]
            rows.append(measures | patch_loss(patches, self.trainer.read(patches.float()), batch)[1])
        return llava.rounded_means(rows)


def train_small_locator(config: LocatorTraining) -> None:
    """Train the small locator stage by stage; the same command again continues."""
    cache = config.cache or config.out / "cache"
    scenes = open_scenes(config.data, cache)
    render = f"datasets.scenes render --out {config.data} --count {2 * config.held_out}"
    train, held_out = world.split_scenes(len(scenes.images_u8), config.held_out, render)
    model = llava.create_llava(config.model, words.VOCABULARY, config.seed, words.NUMBERS)
    before: dict[str, Any] = {}
    if config.pretrained:
        facts = read_json(config.pretrained / "manifest.json")
        before = {name: value for name, value in facts.items() if name != "held_out"}
        before["files"] = llava.load_weights(model, config.pretrained)

    def pictured(draw: ImageDraw, rng: Generator | None = None) -> tuple[Tensor, LabelledImages]:
        batch = labelled_images(scenes, draw, rng)
        return batch.pixels, batch

    def draw_batch(rng: Generator, size: int) -> tuple[Tensor, LabelledImages]:
        return pictured(ImageDraw.random(train, size, rng), rng)

    def held_out_batches() -> Iterator[tuple[Tensor, LabelledImages]]:
        for view in (0, 1):
            for part in np.array_split(held_out, max(1, len(held_out) // 64)):
                yield pictured(ImageDraw(part, np.full(len(part), view), np.zeros(len(part), bool)))

    seeing = draw_batch, held_out_batches(), patch_loss
    read, stage, seen = llava.train_vision(config, model, sum(SECTIONS), *seeing)
    questions = words.open_questions(config.data, cache, config.seed, config.proposals, config.asked)
    trainer = llava.LanguageTrainer(model, read, [ATTENTION_LAYER])
    training, stages = Training(config, trainer, scenes, questions), [stage]
    measures = {} if config.pretrained else {"vision": seen}  # a stage of its own makes the readout good
    for name, settings, most, weight in (
        ("matching", config.matching, (0, 4), config.attention_loss_weight[0]),
        ("placement", config.placement, config.questions, config.attention_loss_weight[1]),
    ):
        stages.append(training.train(name, settings, train, most, weight))
        measures[name] = training.measure(held_out, most)
        logging.getLogger(__name__).info("%s: %s", name, measures[name])
    manifest = stages_manifest("locator", model, stages, config, config.seed, held_out={"gates": measures})
    manifest |= {"pretrained": before} if before else {}
    patterns = dict.fromkeys(word for name in PATTERN_NAMES for word in name.split())
    parts = (*patterns, *COLOUR_WORDS, *SHAPE_WORDS, *words.FURNITURE)  # in the order of a name
    answers = LocatorConfig(codec="square", decimals=2, names=parts, notice=NOTICE)
    files = {"manifest.json": manifest, CONFIG: answers}
    llava.save_llava(config, model, 16, words.locator_tokenizer(), files)
