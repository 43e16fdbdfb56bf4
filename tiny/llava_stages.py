"""What the trainings of the small locator and the small prompt writer share: their stages and their folder.

Legend: b images, l tokens of a sequence, p patches, c channels.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from ldm.files import write_atomic
from ldm.settings.config import CheckedSettings, dump_yaml, setting
from tiny.llava import IMAGE, SPECIAL, AttentionHook, SmallConfig, project
from tiny.loop import Loss, Stage, StageSettings, means

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")
Measures = dict[str, float]


@dataclass(frozen=True)
class LlavaStage(StageSettings):
    """A stage of a small LLaVA."""

    extra: int = setting(0, help="images per step without questions, for the vision loss alone", low=0)
    vision_lr: float = setting(0.0, help="learning rate of the vision transformer; 0: frozen", low=0)


@dataclass(frozen=True)
class LlavaTraining(CheckedSettings):
    """What every training of a small LLaVA decides."""

    data: Path = setting(help="folder of shards of rendered scenes, full views")
    out: Path = setting(help="folder of the run; the network is in its `model` folder")
    seed: int = setting(0, help="decides initial weights, scenes, masks and questions", low=0)
    model: SmallConfig = setting(SmallConfig(), help="sizes of the network")
    vision: LlavaStage = setting(LlavaStage(), help="stage of the vision tower")
    blind: bool = setting(False, help="control: the language model never sees the image")


class VisionPretrainer(nn.Module):
    """What the vision stage trains: the model's own parts, and a linear readout of every projected patch."""

    def __init__(self, model: LlavaForConditionalGeneration, outputs: int) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.read = nn.Linear(model.config.text_config.hidden_size, outputs)


class LanguageTrainer(nn.Module):
    """The model, and the readout of the vision stage, whose loss goes on while it learns to answer.

    layers: those of the language model whose attention is trained
    """

    def __init__(self, model: LlavaForConditionalGeneration, read: nn.Linear, layers: Sequence[int]) -> None:
        super().__init__()
        self.model, self.read = model, read
        self.hooks = [AttentionHook(model, layer) for layer in layers]

    def train_stage(self, name: str, settings: LlavaStage, out: Path, loss: Loss) -> Stage:
        """Train projector and language model at `lr`, vision tower and readout at `vision_lr`."""
        inner = self.model.model
        inner.vision_tower.requires_grad_(settings.vision_lr > 0)
        language = [*inner.multi_modal_projector.parameters(), *inner.language_model.parameters(),
                    *self.model.lm_head.parameters()]  # fmt: skip
        vision = [*inner.vision_tower.parameters(), *self.read.parameters()]
        groups = [([p for p in language if p.requires_grad], settings.lr), (vision, settings.vision_lr)]
        return llava_stage(name, self, settings, out, groups).train(loss)


def llava_stage(name: str, module: nn.Module, settings: LlavaStage, out: Path, groups: Any = ()) -> Stage:
    """All stages of a run share its folder."""
    return Stage(name, module, settings, out, groups, state_file=f"{name}.pt", log_file=f"{name}.csv")


def train_vision(
    config: LlavaTraining,
    model: LlavaForConditionalGeneration,
    outputs: int,
    draw: Callable[[np.random.Generator, int], tuple[Tensor, Batch]],
    held_out: Iterable[tuple[Tensor, Batch]],
    vision_loss: Callable[[Tensor, Tensor, Batch], tuple[Tensor, Measures]],
) -> tuple[nn.Linear, Stage, Measures]:
    """The vision stage, then blindness where it is asked for; returns readout, stage and held-out measures.

    draw(rng, size), held_out: pixels (b, 3, h, w) with what they show
    vision_loss(projected patches, readout of them, what they show)
    """
    write_atomic(config.out / "settings.yaml", dump_yaml(config).encode())
    model.model.vision_tower.to(memory_format=torch.channels_last)
    model.set_attn_implementation("eager")  # twice as fast as sdpa in bfloat16 on a CPU; shows its attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        pretrainer = VisionPretrainer(model, outputs)

    def loss(step: int) -> tuple[Tensor, Measures]:
        pixels, batch = draw(np.random.default_rng((config.seed, 1, step)), config.vision.batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.vision.bf16):
            patches = project(model, pixels)
        return vision_loss(patches, pretrainer.read(patches.float()), batch)

    stage = llava_stage("vision", pretrainer, config.vision, config.out).train(loss)
    model.eval()
    with torch.inference_mode():
        rows = []
        for pixels, batch in held_out:
            patches = project(model, pixels)
            rows.append(vision_loss(patches, pretrainer.read(patches), batch)[1])
    measures = rounded_means(rows)
    log.info("vision: %s", measures)
    if config.blind:  # every image token becomes zero, for good
        last = model.model.multi_modal_projector.linear_2
        for parameter in (last.weight, last.bias):
            nn.init.zeros_(parameter.requires_grad_(False))
    return pretrainer.read, stage, measures


def last_states(
    model: LlavaForConditionalGeneration, patches: Tensor, tokens: Tensor, block: Tensor,
    position: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Projected patches (b, p, c) and tokens, blocks, positions (b, l) -> last hidden states (b, l, c)."""
    language = model.model.language_model
    start = tokens[0].tolist().index(SPECIAL.index(IMAGE))
    words = language.embed_tokens(tokens)
    embedded = torch.cat([words[:, :start], patches.to(words.dtype), words[:, start + patches.shape[1] :]], 1)
    # (b, l, l): a token sees the prefix (block 0) and its own block, up to itself.
    same = block[:, :, None] == block[:, None]
    seen = (same | (block == 0)[:, None]) & torch.ones_like(same).tril()
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    return language(inputs_embeds=embedded, attention_mask=mask, position_ids=position,
                    use_cache=False).last_hidden_state  # fmt: skip


def rounded_means(rows: Sequence[Measures]) -> Measures:
    """Means of held-out measures, as a manifest shows them."""
    return {name: round(value, 4) for name, value in means(rows).items()}
