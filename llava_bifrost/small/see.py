"""Run stage A: batches, the trained module, the held-out measures that are its gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from ldm.small_llava import project
from ldm.stages import Stage, StageSettings
from llava_bifrost.small.cache import Scenes
from llava_bifrost.small.vision import pictures, read_head, vision_loss


class Seeing(nn.Module):
    """The parts that stage A trains; they are the model's own, plus the readings."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.read = read_head(model.config.text_config.hidden_size)


def train_vision(
    model: LlavaForConditionalGeneration, scenes: Scenes, train: np.ndarray, settings: StageSettings,
    out: Path, seed: int,
) -> tuple[Seeing, Stage]:  # fmt: skip
    """Train on the scenes with the indices `train`; returns the finished stage with its module."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        seeing = Seeing(model)
    stage = Stage("vision", seeing, [(list(seeing.parameters()), settings.lr)], settings, out)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((seed, 1, step))
        size = settings.batch
        index, view = train[rng.integers(len(train), size=size)], rng.integers(2, size=size)
        batch = pictures(scenes, index, view, rng.random(size) < 0.5, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            patches = project(model, batch.pixels)
        return vision_loss(patches, seeing.read(patches.float()), batch)

    if not stage.load():
        stage.run(loss)
    return seeing, stage


@torch.inference_mode()
def measure_vision(
    model: LlavaForConditionalGeneration, read: nn.Linear, scenes: Scenes, held_out: np.ndarray
) -> dict[str, float]:
    """Means over the held-out scenes, both pictures: accuracies of the words, L1 of box and depth."""
    model.eval()
    rows = []
    for view in (0, 1):
        for part in np.array_split(held_out, max(1, len(held_out) // 64)):
            batch = pictures(scenes, part, np.full(len(part), view), np.zeros(len(part), bool))
            patches = project(model, batch.pixels)
            rows.append(vision_loss(patches, read(patches), batch)[1])
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
