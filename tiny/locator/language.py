"""Run stages B and C."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from tiny.llava import AttentionHook, project
from tiny.locator.cache import Scenes
from tiny.locator.packing import LOOK_LAYER, answer_loss, ask, look_loss, states_of
from tiny.locator.questions import PLACED, REPLACED, QuestionCache
from tiny.locator.vision import images, vision_loss
from tiny.loop import Stage, StageSettings

SLOTS = (range(PLACED), range(PLACED, PLACED + REPLACED))


class Answering(nn.Module):
    """The whole locator and the readings of the vision stage, which go on teaching it to see."""

    def __init__(self, model: LlavaForConditionalGeneration, read: nn.Linear) -> None:
        super().__init__()
        self.model, self.read = model, read

    def groups(self, settings: StageSettings) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters with their peak learning rates: what sees, and what speaks."""
        inner = self.model.model
        speak = [*inner.multi_modal_projector.parameters(), *inner.language_model.parameters(),
                 *self.model.lm_head.parameters()]  # fmt: skip
        return [
            (speak, settings.lr),
            ([*inner.vision_tower.parameters(), *self.read.parameters()], settings.vision_lr),
        ]


def train_answers(
    name: str, answering: Answering, scenes: Scenes, bank: QuestionCache, train: np.ndarray,
    settings: StageSettings,
    most: tuple[int, int], look: float, see: float, out: Path, seed: int,
) -> Stage:  # fmt: skip
    """Train on up to most = (placing, replacing) questions per image; returns the finished stage.

    look, see: weights of the taught attention and of the vision loss.
    """
    model = answering.model
    stage = Stage(name, answering, answering.groups(settings), settings, out)
    looking = AttentionHook(model, LOOK_LAYER)
    model.model.vision_tower.requires_grad_(settings.vision_lr > 0)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((seed, sum(name.encode()), step))
        size, every = settings.batch, settings.batch + settings.extra
        index, view = train[rng.integers(len(train), size=every)], rng.integers(2, size=every)
        flip = rng.random(every) < 0.5
        batch = images(scenes, index, view, flip, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            patches = project(model, batch.pixels)
            some = (index[:size], view[:size], flip[:size])
            asked = ask(bank, *some, rng, SLOTS, most, patches.shape[1])
            states = states_of(model, patches[:size], asked)
            total, measures = answer_loss(model, states, asked)
        if look and looking.weights is not None:
            attended, mass = look_loss(looking.weights, asked, batch)
            total = total + look * attended
            measures["look"] = mass.mean().item()
        if see and settings.vision_lr > 0:
            seen, of_vision = vision_loss(patches, answering.read(patches.float()), batch)
            total = total + see * seen
            measures |= {key: of_vision[key] for key in ("shape", "box_l1", "depth_l1")}
        return total, measures

    try:
        if not stage.load():
            stage.run(loss)
    finally:
        looking.hook.remove()
    return stage


@torch.inference_mode()
def measure_answers(
    answering: Answering, scenes: Scenes, bank: QuestionCache, held_out: np.ndarray, most: tuple[int, int]
) -> dict[str, float]:
    """Held-out means with the right answer given so far: KL of each number, attention on the named solids."""
    model, rows = answering.model.eval(), []
    looking = AttentionHook(model, LOOK_LAYER)
    for part in np.array_split(held_out, max(1, len(held_out) // 16)):
        view, flip = part % 2, np.zeros(len(part), bool)
        batch = images(scenes, part, view, flip)
        patches = project(model, batch.pixels)
        rng = np.random.default_rng(int(part[0]))
        asked = ask(bank, part, view, flip, rng, SLOTS, most, patches.shape[1])
        measures = answer_loss(model, states_of(model, patches, asked), asked)[1]
        if looking.weights is not None:
            measures["look"] = look_loss(looking.weights, asked, batch)[1].mean().item()
        rows.append(measures)
    looking.hook.remove()
    return {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0]}
