"""Train the small prompt writer on rendered scenes whose solids come in sets.

    python -m tiny.prompter.train configs/tiny/prompter.yaml

It begins with eyes that have learned to see (`vision_from`), learns to see painted masks, then to write what
they hide. Interrupted, it continues from its last checkpoint when started again with the same command.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from inpainting.models.image_to_text.questions import CONFIG_FILE, PrompterConfig
from ldm.checkpoints import folder_written_whole
from ldm.files import hash_folder, write_atomic
from ldm.mllm.load import load_model
from ldm.settings.cli import run_module, trainer
from ldm.settings.config import CheckedSettings, dump_yaml, setting, write_config
from ldm.training.manifest import make_manifest
from tiny.llava import SmallConfig, blind, create_llava, make_processor, project, save_llava
from tiny.loop import Stage, StageSettings, describe_stages
from tiny.prompter.data import Painted, Sets, draw_masks, open_sets, paint, paint_these
from tiny.prompter.model import CaptionTrainer, VisionPretrainer, forward, pixels_of, vision_loss
from tiny.prompter.words import CAPTION, MASKS, VOCABULARY, make_tokenizer

log = logging.getLogger(__name__)

EYES = ("model.vision_tower.", "model.multi_modal_projector.")
NOTICE = (
    "This is the small prompt writer, trained on rendered scenes of plain solids in sets only: it writes "
    "captions such as 'a red cone'. For paintings: the released adapter, see docs/prompts.md."
)


@dataclass(frozen=True)
class PrompterTraining(CheckedSettings):
    """Everything that decides the trained prompt writer."""

    data: Path = setting(help="folder of shards written by tiny.prompter.scenes")
    out: Path = setting(help="folder of the run; the prompt writer is in its `model` folder")
    seed: int = setting(0, help="decides first weights, scenes and masks", low=0)
    scenes: int = setting(8192, help="first scenes of `data` that are used", low=1)
    held_out: int = setting(256, help="the last of them, kept for the gates", low=1)
    most: int = setting(5, help="most masks of one image", low=1, high=len(MASKS))
    model: SmallConfig = setting(SmallConfig(), help="sizes of the network")
    vision_from: Path | None = setting(None, help="folder of a small LLaVA whose eyes are the first weights")
    vision: StageSettings = setting(StageSettings(), help="seeing painted images")
    writing: StageSettings = setting(StageSettings(), help="writing what the masks hide")
    look: float = setting(0.5, help="weight of the taught attention", low=0)
    see: float = setting(0.5, help="weight of the vision loss while writing", low=0)
    alone: float = setting(0.5, help="share of images whose captions do not see one another", low=0, high=1)
    blind: bool = setting(False, help="control: the writing stage never sees the image")


def run(config: PrompterTraining) -> None:
    """Train the small prompt writer stage by stage; the same command again continues."""
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomic(config.out / "settings.yaml", dump_yaml(config).encode())
    sets = open_sets(config.data, config.out / "cache", config.scenes)
    train, held_out = np.split(np.arange(config.scenes), [config.scenes - config.held_out])
    model = create_llava(config.model, VOCABULARY, config.seed)
    eyes = {} if config.vision_from is None else load_vision_tower(model, config.vision_from)
    model.model.vision_tower.to(memory_format=torch.channels_last)
    model.set_attn_implementation("eager")  # faster than sdpa in bfloat16 on a CPU, and shows its attention
    seeing, see = train_vision(config, model, sets, train)
    gates = {"vision": measure_vision(model, seeing.read, sets, held_out)}
    log.info("vision: %s", gates["vision"])
    if config.blind:
        blind(model)
    writing = CaptionTrainer(model, seeing.read)
    write = train_writing(config, writing, sets, train)
    gates["writing"] = measure_writing(writing, sets, held_out, config.most)
    log.info("writing: %s", gates["writing"])
    manifest = describe(config, model, [see, write], gates, eyes)
    save_prompter(model, config.model, config.out / "model", manifest)
    log.info("written: %s", config.out / "model")


def load_vision_tower(model: LlavaForConditionalGeneration, folder: Path) -> dict[str, str]:
    """Start with the vision tower and projector of another model; returns the SHA-256 of its files."""
    weights = load_model(folder, torch.float32).state_dict()
    own = {name: value for name, value in model.state_dict().items() if name.startswith(EYES)}
    given = {name: weights[name] for name in own if name in weights}
    wrong = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if wrong:
        raise ValueError(f"{folder}: its eyes are of another kind or size, such as {wrong[0]}")
    model.load_state_dict(given, strict=False)
    return hash_folder(folder)


def train_vision(
    config: PrompterTraining, model: LlavaForConditionalGeneration, sets: Sets, train: np.ndarray
) -> tuple[VisionPretrainer, Stage]:
    """The first stage; returns it finished, with its module."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        seeing = VisionPretrainer(model)
    settings = config.vision
    stage = Stage("vision", seeing, [(list(seeing.parameters()), settings.lr)], settings, config.out)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((config.seed, 1, step))
        index, flip = train[rng.integers(len(train), size=settings.batch)], rng.random(settings.batch) < 0.5
        painted = paint(sets, index, config.most, flip, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            patches = project(model, pixels_of(painted, rng))
        return vision_loss(patches, seeing.read(patches.float()), painted)

    if not stage.load():
        stage.run(loss)
    return seeing, stage


def train_writing(config: PrompterTraining, writing: CaptionTrainer, sets: Sets, train: np.ndarray) -> Stage:
    """The second stage; returns it finished."""
    settings = config.writing
    writing.model.model.vision_tower.requires_grad_(settings.vision_lr > 0)
    stage = Stage("writing", writing, writing.groups(settings.lr, settings.vision_lr), settings, config.out)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((config.seed, 2, step))
        index, flip = train[rng.integers(len(train), size=settings.batch)], rng.random(settings.batch) < 0.5
        painted = paint(sets, index, config.most, flip, rng)
        see = config.see if settings.vision_lr > 0 and not config.blind else 0.0
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            look = 0.0 if config.blind else config.look
            alone = rng.random(settings.batch) < config.alone
            return forward(writing, painted, pixels_of(painted, rng), look, see, alone)

    if not stage.load():
        stage.run(loss)
    return stage


@torch.inference_mode()
def measure_vision(
    model: LlavaForConditionalGeneration, read: nn.Linear, sets: Sets, held_out: np.ndarray
) -> dict[str, float]:
    """Means over held-out scenes with masks: accuracies of patches, L1 of boxes."""
    model.eval()
    rows = []
    for part in np.array_split(held_out, max(1, len(held_out) // 64)):
        painted = held_out_images(sets, part, len(MASKS))
        patches = project(model, pixels_of(painted))
        rows.append(vision_loss(patches, read(patches), painted)[1])
    return {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0]}


@torch.inference_mode()
def measure_writing(writing: CaptionTrainer, sets: Sets, held_out: np.ndarray, most: int) -> dict[str, float]:
    """Means over held-out scenes with the right answer given so far."""
    writing.model.eval()
    rows = []
    for part in np.array_split(held_out, max(1, len(held_out) // 64)):
        painted = held_out_images(sets, part, most)
        rows.append(forward(writing, painted, pixels_of(painted), 1.0, 0.0)[1])
    return {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0]}


def held_out_images(sets: Sets, scenes: np.ndarray, most: int) -> Painted:
    """Scenes with masks that depend on the scene's number alone; those that allow none are left out."""
    drawn = [draw_masks(sets, scene, most, np.random.default_rng(scene)) for scene in scenes.tolist()]
    kept = [(scene, masked) for scene, masked in zip(scenes, drawn, strict=True) if masked is not None]
    index = np.array([scene for scene, _ in kept])
    return paint_these(sets, index, np.zeros(len(kept), bool), [masked for _, masked in kept])


def save_prompter(
    model: LlavaForConditionalGeneration, config: SmallConfig, folder: Path, manifest: dict[str, Any]
) -> None:
    """Write the whole folder, or nothing."""
    with folder_written_whole(folder) as partial:
        processor = make_processor(config, make_tokenizer())
        save_llava(model, processor, partial, longest=CAPTION * len(MASKS) + 1)
        asked = PrompterConfig(name="tiny prompter", notice=NOTICE, colors=MASKS, longest=CAPTION)
        write_config(partial / CONFIG_FILE, asked)
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def describe(
    config: PrompterTraining,
    model: LlavaForConditionalGeneration,
    stages: list[Stage],
    gates: dict[str, Any],
    eyes: dict[str, str],
) -> dict[str, Any]:
    """The manifest of a run."""
    manifest = make_manifest(
        "prompter", model, seed=config.seed, steps=sum(stage.progress.step for stage in stages),
        batch=config.writing.batch, seconds=sum(stage.progress.seconds for stage in stages),
        settings=config, held_out={"gates": gates},
    )  # fmt: skip
    return manifest | describe_stages(stages) | {"vision_from": eyes}


build_app = trainer(PrompterTraining, run)

if __name__ == "__main__":
    run_module(build_app)
