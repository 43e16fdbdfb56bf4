"""Train the small inpainter on rendered scenes, stage by stage, each resumable.

    python -m tiny.inpainter.train configs/tiny/inpainter.yaml

first_stage  AutoencoderTiny with 4 latent channels
painter      UNet and text encoder together: one mask, one prompt, as Stable Diffusion's inpainting model
rca          LoRA on several masks, with rectified cross-attention
joint        the same with all prompts in one token sequence, as published; for the evaluation only
plain        LoRA on the same examples without it: prompts joined with periods
judge        a classifier of colour and shape, for the evaluation only
A stage whose result is there is skipped; an interrupted one continues from its last checkpoint.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.attention_processor import AttnProcessor
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import CLIPTokenizer

from inpainting.models.text_to_image.rca import install_rca
from inpainting.tokens import encode_plans
from ldm.checkpoints import folder_written_whole, load_part
from ldm.files import write_atomic
from ldm.settings.cli import run_module, trainer
from ldm.settings.config import CheckedSettings, setting
from ldm.training.manifest import make_manifest
from tiny.inpainter import autoencoder as first_stage
from tiny.inpainter import classifier as judge
from tiny.inpainter import loss as diffusion
from tiny.inpainter.examples import Encoder, plain_regions, several, single
from tiny.inpainter.loop import LoopConfig, fit
from tiny.inpainter.model import (
    NetworkConfig,
    Networks,
    create,
    create_scheduler,
    load_folder,
    save_folder,
)
from tiny.inpainter.sample import Way
from tiny.regions import Views, read_views

logger = logging.getLogger(__name__)

STAGES = ("first_stage", "painter", "rca", "joint", "plain", "judge")
ADAPTERS = {"rca": Way(True), "joint": Way(True, "joint"), "plain": Way(False)}
ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")  # what the published LoRA adapts
LORA_FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class AdapterConfig(CheckedSettings):
    """The LoRAs; as published but for the rank and the length."""

    rank: int = setting(16, low=1, help="rank; alpha is equal to it")
    most_masks: int = setting(5, low=1, help="masks of one image")
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=2500, batch=8, lr=1e-3, weight_decay=0.0, ema=0.995)
    )


@dataclass(frozen=True)
class TrainConfig(CheckedSettings):
    """Where the scenes are, where the stages go, and their sizes."""

    data: Path = setting(help="folder of shards of whole scenes, training seeds")
    out: Path = setting(help="folder that receives one folder per stage")
    scenes: int | None = setting(None, low=1, help="use only the first scenes")
    stages: tuple[str, ...] = setting(STAGES, help="which stages to run", choices=STAGES)
    first_stage: first_stage.FirstStageConfig = field(default_factory=first_stage.FirstStageConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    painter: LoopConfig = field(default_factory=lambda: LoopConfig(steps=10000, batch=8, lr=8e-4))
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    judge: judge.JudgeConfig = field(default_factory=judge.JudgeConfig)


def run(config: TrainConfig) -> None:
    """Train the small inpainter stage by stage; the same command again continues."""
    views = read_views(config.data, count=config.scenes)
    logger.info("%d scenes, %d solids that can be masked", len(views), sum(map(len, views.regions)))
    runners: dict[str, Callable[[TrainConfig, Views], None]] = {
        "first_stage": run_first_stage,
        "painter": run_painter,
        "judge": run_judge,
        **{name: partial(run_adapter, name=name) for name in ADAPTERS},
    }
    for stage in STAGES:
        if stage in config.stages:
            done = config.out / stage / "manifest.json"
            if done.exists():
                logger.info("%s: done before", stage)
            else:
                runners[stage](config, views)


def run_first_stage(config: TrainConfig, views: Views) -> None:
    run_folder = config.out / "first_stage"
    vae, seconds = first_stage.train(config.first_stage, views.images_u8, run_folder)
    _manifest(run_folder, vae, config, config.first_stage.loop, seconds)


def run_painter(config: TrainConfig, views: Views) -> None:
    """One mask, one prompt."""
    run_folder, loop = config.out / "painter", config.painter
    vae = read_vae(config.out)
    model, tokenizer = create(config.network, loop.seed)
    encoder, scheduler, plain = Encoder(vae), create_scheduler(), plain_regions(views)

    def losses(step: int) -> dict[str, Tensor]:
        rng, generator = draws(loop.seed, step)
        batch = [single(views, plain, rng) for _ in range(loop.batch)]
        plans = [diffusion.one_prompt(one.prompts, tokenizer, rng) for one in batch]
        embeddings, _ = encode_plans(plans, model.text_encoder)
        known = encoder.conditions(batch, rng)
        return {"v": diffusion.loss(model.unet, scheduler, known, embeddings, generator)}

    seconds = fit(model, losses, loop, run_folder)
    save_model(model, tokenizer, vae, run_folder / "model")
    _manifest(run_folder, model, config, loop, seconds)


def run_adapter(config: TrainConfig, views: Views, name: str) -> None:
    """A LoRA of the base model on several masks, with or without rectified cross-attention."""
    run_folder, loop, way = config.out / name, config.adapter.loop, ADAPTERS[name]
    model, tokenizer, vae = load_folder(config.out / "painter" / "model")
    vae.to(memory_format=torch.channels_last)
    model.requires_grad_(False)
    torch.manual_seed(loop.seed)
    add_adapter(model, config.adapter.rank)
    if way.rectified:
        install_rca(model.unet)
    else:
        model.unet.set_attn_processor(AttnProcessor())
    encoder, scheduler = Encoder(vae), create_scheduler()
    levels = len(config.network.block_channels)

    def losses(step: int) -> dict[str, Tensor]:
        rng, generator = draws(loop.seed, step)
        batch = [several(views, config.adapter.most_masks, rng) for _ in range(loop.batch)]
        plans = [
            diffusion.several_prompts(one.prompts, tokenizer, way.encoding, way.rectified, rng)
            for one in batch
        ]
        with torch.no_grad():
            embeddings, owners = encode_plans(plans, model.text_encoder)
        known = encoder.conditions(batch, rng)
        size = (known.latents.shape[2], known.latents.shape[3])
        regions = diffusion.regions_of_batch(batch, owners, size, levels) if way.rectified else None
        return {"v": diffusion.loss(model.unet, scheduler, known, embeddings, generator, regions)}

    seconds = fit(model, losses, loop, run_folder)
    save_adapter(model, run_folder)
    _manifest(run_folder, model, config, loop, seconds)


def run_judge(config: TrainConfig, views: Views) -> None:
    network, seconds = judge.train(config.judge, views, config.out / "judge")
    _manifest(config.out / "judge", network, config, config.judge.loop, seconds)


def draws(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The two sources of chance of one step."""
    rng = np.random.default_rng((seed, step))
    return rng, torch.Generator().manual_seed(int(rng.integers(1 << 62)))


def add_adapter(model: Networks, rank: int) -> None:
    """A fresh LoRA on every attention of the UNet, the only part that learns."""
    model.unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(ATTENTION))
    )


def save_adapter(model: Networks, folder: Path) -> None:
    """`folder/pytorch_lora_weights.safetensors` with the keys of the released LoRA."""
    from diffusers import StableDiffusionInpaintPipeline  # loads every image processor: seconds

    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(model.unet))
    half = {name: value.detach().half() for name, value in weights.items()}
    with folder_written_whole(folder / "lora") as partial_folder:
        StableDiffusionInpaintPipeline.save_lora_weights(
            partial_folder, unet_lora_layers=half, weight_name=LORA_FILE
        )


def read_vae(out: Path) -> AutoencoderTiny:
    folder = out / "first_stage" / "vae"
    if not folder.exists():
        raise ValueError(f"{folder} is missing; run the stage first_stage first")
    return load_part(AutoencoderTiny, folder).to(memory_format=torch.channels_last).requires_grad_(False)


def save_model(model: Networks, tokenizer: CLIPTokenizer, vae: AutoencoderTiny, folder: Path) -> None:
    with folder_written_whole(folder) as partial_folder:
        save_folder(model, tokenizer, vae, partial_folder, torch.float16)


def _manifest(folder: Path, model: nn.Module, config: TrainConfig, loop: LoopConfig, seconds: float) -> None:
    """Written last: its presence marks a finished stage."""
    manifest = make_manifest(
        folder.name, model, seed=loop.seed, steps=loop.steps, batch=loop.batch, seconds=seconds,
        settings=config,
    )  # fmt: skip
    write_atomic(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())


build_app = trainer(TrainConfig, run)

if __name__ == "__main__":
    run_module(build_app)
