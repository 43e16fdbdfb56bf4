"""Train the small locator from nothing on rendered scenes.

    python -m tiny.locator.train configs/tiny/locator.yaml

Interrupted, it continues from its last checkpoint when started again with the same command.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from ldm.files import write_atomic
from ldm.settings.cli import run_module, trainer
from ldm.settings.config import CheckedSettings, dump_yaml, setting
from ldm.training.manifest import make_manifest
from tiny.llava import PATCH, SmallConfig, blind
from tiny.locator.cache import open_scenes
from tiny.locator.folder import create_locator, save_locator
from tiny.locator.language import Answering, measure_answers, train_answers
from tiny.locator.questions import open_bank
from tiny.locator.vision import measure_vision, train_vision
from tiny.loop import Stage, StageSettings, describe_stages

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocatorTraining(CheckedSettings):
    """Everything that decides the trained locator."""

    data: Path = setting(help="folder of scene shards, full views")
    out: Path = setting(help="folder of the run; the locator is in its `model` folder")
    seed: int = setting(0, help="decides first weights, scenes and questions", low=0)
    held_out: int = setting(512, help="last scenes of `data`, kept for the gates", low=1)
    model: SmallConfig = setting(SmallConfig(), help="sizes of the network")
    vision: StageSettings = setting(StageSettings(), help="stage A: seeing")
    matching: StageSettings = setting(StageSettings(), help="stage B: finding a named solid")
    placement: StageSettings = setting(StageSettings(), help="stage C: placing a new solid")
    look: tuple[float, float] = setting((1.0, 0.3), help="weight of the taught attention in B and C", low=0)
    see: float = setting(0.25, help="weight of the vision loss in B and C", low=0)
    questions: tuple[int, int] = setting((4, 2), help="placing,replacing questions per image in C", low=0)
    blind: bool = setting(False, help="control: B and C never see the image")
    cache: Path | None = setting(None, help="folder of arrays made of `data`; default: `cache` in out")


def run(config: LocatorTraining) -> None:
    """Train the small locator stage by stage; the same command again continues."""
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomic(config.out / "settings.yaml", dump_yaml(config).encode())
    cache = config.cache or config.out / "cache"
    scenes = open_scenes(config.data, cache, PATCH)
    order = np.arange(len(scenes))
    train, held_out = order[: -config.held_out], order[-config.held_out :]
    model = create_locator(config.model, config.seed)
    model.model.vision_tower.to(memory_format=torch.channels_last)
    model.set_attn_implementation("eager")  # twice as fast as sdpa in bfloat16 on a CPU
    seeing, see = train_vision(model, scenes, train, config.vision, config.out, config.seed)
    gates = {"vision": measure_vision(model, seeing.read, scenes, held_out)}
    log.info("vision: %s", gates["vision"])
    if config.blind:
        blind(model)
    bank = open_bank(config.data, cache, config.seed)
    answering, stages = Answering(model, seeing.read), [see]
    for name, settings, most, look in (
        ("matching", config.matching, (0, 4), config.look[0]),
        ("placement", config.placement, config.questions, config.look[1]),
    ):
        stages.append(
            train_answers(name, answering, scenes, bank, train, settings, most, look, config.see, config.out,
                          config.seed)
        )  # fmt: skip
        gates[name] = measure_answers(answering, scenes, bank, held_out, most)
        log.info("%s: %s", name, gates[name])
    save_locator(model, config.model, config.out / "model", describe(config, model, stages, gates))
    log.info("written: %s", config.out / "model")


def describe(
    config: LocatorTraining, model: LlavaForConditionalGeneration, stages: list[Stage], gates: dict[str, Any]
) -> dict[str, Any]:
    """The manifest of a run."""
    manifest = make_manifest(
        "locator", model, seed=config.seed, steps=sum(stage.progress.step for stage in stages),
        batch=config.placement.batch, seconds=sum(stage.progress.seconds for stage in stages),
        settings=config, held_out={"gates": gates},
    )  # fmt: skip
    return manifest | describe_stages(stages)


build_app = trainer(LocatorTraining, run)

if __name__ == "__main__":
    run_module(build_app)
