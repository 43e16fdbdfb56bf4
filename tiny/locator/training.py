"""The stages of the small locator: seeing, finding a named solid, placing a new one."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from llava_bifrost.locator import CONFIG, LocatorConfig
from tiny import llava
from tiny.locator import questions as words
from tiny.locator import vision
from tiny.locator.train import LocatorTraining
from tiny.locator.vision import ImageDraw, LabelledImages, SceneArrays, labelled_images, patch_loss
from tiny.loop import Stage, stages_manifest
from tiny.world import COLOUR_WORDS, PATTERN_NAMES, SHAPE_WORDS, split_scenes

log = logging.getLogger(__name__)

BLUR = 1.5  # bins of 0.01; width of the soft label of a number
FORMAT_WEIGHT = 0.05
ATTENTION_LAYER, ATTENTION_HEADS = 1, 2  # whose attention is trained, and how many of its heads

NOTICE = (
    "This is the small locator, trained on rendered scenes of plain solids only: it knows their names and "
    "square images of rooms, nothing else. For photographs: a model trained with scripts/train_llava.sh."
)


@dataclass(frozen=True, eq=False)
class Training:
    """What the language stages share."""

    config: LocatorTraining
    trainer: llava.LanguageTrainer
    scenes: SceneArrays
    questions: words.QuestionCache

    def loss_of(
        self, draw: ImageDraw, batch: LabelledImages, rng: np.random.Generator, most: tuple[int, int],
        count: int,
    ) -> tuple[Tensor, Tensor, Tensor, llava.Measures]:  # fmt: skip
        """Losses of answers and of attention, projected patches, measures. count: images with questions.

        Besides the answers, two things are trained: a number near the right one is nearly right (a soft
        label), and some attention heads attend from a name to the patches of the solid that it names. The
        measures are the KL of each number, and the fraction of the attention there.
        """
        model = self.trainer.model
        patches = llava.project(model, batch.pixels)
        packed = words.pack_questions(self.questions, draw.first(count), rng, most, patches.shape[1])
        states = llava.last_states(model, patches[:count], packed.tokens, packed.block, packed.position)
        at = packed.end[:, None] + torch.arange(1 - words.ANSWER, 1)  # (k, 8) where the answer's tokens are
        right = packed.tokens[packed.row[:, None], at]
        logits = model.lm_head(states[packed.row[:, None], at - 1]).float()
        numbers = torch.from_numpy(words.NUMBER_AT + words.ANSWER)  # columns of the five numbers
        bins = torch.arange(len(words.NUMBERS))
        value = right[:, numbers] - words.FIRST_NUMBER
        soft = torch.softmax(-0.5 * ((bins - value[..., None]) / BLUR) ** 2, -1)  # (k, 5, bins)
        log_p = functional.log_softmax(logits[:, numbers], -1)[..., words.FIRST_NUMBER :]  # the last words
        kl = (soft * (soft.clamp(min=1e-9).log() - log_p)).sum(-1).mean(0)  # (5,)
        other = [i for i in range(words.ANSWER) if i not in numbers.tolist()]
        form = functional.cross_entropy(logits[:, other].flatten(0, 1), right[:, other].flatten())

        cover = batch.cover[packed.name_row, :, packed.name_solid]  # (j, p)
        there = (cover > vision.OWNED) | (cover >= cover.amax(-1, keepdim=True).clamp(min=1e-3))
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
            batch = labelled_images(self.scenes, draw, rng)
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
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
        """Held-out means given the ground truth so far: KL of each number, attention on the named solids."""
        self.trainer.eval()
        rows = []
        for part in np.array_split(held_out, max(1, len(held_out) // 16)):
            draw = ImageDraw(part, part % 2, np.zeros(len(part), bool))
            batch, rng = labelled_images(self.scenes, draw), np.random.default_rng(int(part[0]))
            rows.append(self.loss_of(draw, batch, rng, most, len(part))[-1])
        return llava.rounded_means(rows)


def train_small_locator(config: LocatorTraining) -> None:
    """Train the small locator stage by stage; the same command again continues."""
    cache = config.cache or config.out / "cache"
    scenes = vision.open_scenes(config.data, cache)
    render = f"datasets.scenes render --out {config.data} --count {2 * config.held_out}"
    train, held_out = split_scenes(len(scenes), config.held_out, render)
    model = llava.create_llava(config.model, words.VOCABULARY, config.seed, words.NUMBERS)

    def draw_batch(rng: np.random.Generator, size: int) -> tuple[Tensor, LabelledImages]:
        batch = labelled_images(scenes, ImageDraw.random(train, size, rng), rng)
        return batch.pixels, batch

    def held_out_batches() -> Iterator[tuple[Tensor, LabelledImages]]:
        for view in (0, 1):
            for part in np.array_split(held_out, max(1, len(held_out) // 64)):
                draw = ImageDraw(part, np.full(len(part), view), np.zeros(len(part), bool))
                batch = labelled_images(scenes, draw)
                yield batch.pixels, batch

    shown = held_out_batches()
    read, stage, seen = llava.train_vision(config, model, sum(vision.SECTIONS), draw_batch, shown, patch_loss)
    questions = words.open_questions(config.data, cache, config.seed)
    trainer = llava.LanguageTrainer(model, read, [ATTENTION_LAYER])
    training, stages, measures = Training(config, trainer, scenes, questions), [stage], {"vision": seen}
    for name, settings, most, weight in (
        ("matching", config.matching, (0, 4), config.attention_loss_weight[0]),
        ("placement", config.placement, config.questions, config.attention_loss_weight[1]),
    ):
        stages.append(training.train(name, settings, train, most, weight))
        measures[name] = training.measure(held_out, most)
        log.info("%s: %s", name, measures[name])
    manifest = stages_manifest("locator", model, stages, config, config.seed, held_out={"gates": measures})
    patterns = dict.fromkeys(word for name in PATTERN_NAMES for word in name.split())
    parts = (*patterns, *COLOUR_WORDS, *SHAPE_WORDS, *words.FURNITURE)  # in the order of a name
    answers = LocatorConfig(codec="square", decimals=2, names=parts, notice=NOTICE)
    files = {"manifest.json": manifest, CONFIG: answers}
    llava.save_llava(config, model, words.locator_tokenizer(), 16, files)
