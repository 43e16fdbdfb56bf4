"""The stages of the small inpainter, each with its model and its loss."""

import logging
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from inpainting.models.text_to_image.rca import install_rca, region_kwargs
from inpainting.tokens import encode_plans, plan_tokens
from ldm.checkpoints import drawing, folder_written_whole, load_part
from ldm.files import write_json
from tiny.inpainter import model as networks
from tiny.inpainter.examples import Encoder, UnetInputs, several, single
from tiny.inpainter.train import ADAPTERS, STAGES, InpainterTraining
from tiny.loop import Stage, autocast, stages_manifest
from tiny.settings import DiffusionStage
from tiny.world import Views, box_masks, read_views

logger = logging.getLogger(__name__)

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")  # what the published LoRA adapts
LORA_FILE = "pytorch_lora_weights.safetensors"
DROP_PROMPT = 0.1  # condition dropout of classifier-free guidance, as published
OUTSIDE = 0.1  # weight of the loss over the whole image beside that inside the masks


def train_inpainter(config: InpainterTraining) -> None:
    """Train the small inpainter stage by stage; the same command again continues."""
    views = read_views(config.data, count=config.scenes)
    logger.info("%d scenes, %d solids that can be masked", len(views), sum(map(len, views.regions)))
    for name in (stage for stage in STAGES if stage in config.stages):
        folder = config.out / name
        if (folder / "manifest.json").exists():
            logger.info("%s: done before", name)
            continue
        model: nn.Module
        if name == "first_stage":
            model, stage = networks.train_autoencoder(config.first_stage, views.images_u8, folder)
        elif name == "judge":
            model, stage = networks.train_classifier(config.classifier, views, folder)
        elif name == "painter":
            model, stage = train_painter(config, views)
        else:
            model, stage = train_adapter(config, views, name)
        assert isinstance(stage.settings, DiffusionStage)
        manifest = stages_manifest(name, model, [stage], config, stage.settings.seed)
        write_json(folder / "manifest.json", manifest)  # last: its presence marks a finished stage


def train_painter(config: InpainterTraining, views: Views) -> tuple[nn.Module, Stage]:
    out, settings, vae_folder = config.out / "painter", config.painter, config.out / "first_stage" / "vae"
    if not vae_folder.exists():
        raise ValueError(f"{vae_folder} is missing; run the stage first_stage first")
    vae = load_part(AutoencoderTiny, vae_folder).to(memory_format=torch.channels_last).requires_grad_(False)
    model, tokenizer = networks.create(config.network, settings.seed)
    encoder, scheduler = Encoder(vae), networks.create_scheduler()
    solids = [(scene, index) for scene, regions in enumerate(views.regions) for index in range(len(regions))]
    plain = [(scene, index) for scene, index in solids if not views.regions[scene][index].name.pattern]

    @autocast("cpu", enabled=settings.bf16)
    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng, generator = draws(settings.seed, step)
        batch = [single(views, plain, rng) for _ in range(settings.batch)]
        plans = []
        for example in batch:
            if rng.random() < DROP_PROMPT:
                plans.append(plan_tokens([""], tokenizer))
                continue
            # Some prompts are repeated: the text encoder meets words at every place of a long prompt without
            # ever seeing two different ones, so the base model knows one prompt per image only.
            times = int(rng.integers(2, 6)) if rng.random() < 0.3 else 1
            plans.append(plan_tokens(example.prompts * times, tokenizer, regions=bool(rng.random() < 0.5)))
        embeddings, _ = encode_plans(plans, model.text_encoder)
        return painting_loss(model.unet, scheduler, encoder.conditions(batch, rng), embeddings, generator), {}

    stage = Stage("painter", model, settings, out).train(loss)
    with folder_written_whole(out / "model") as folder:
        model.save_folder(tokenizer, vae, folder, torch.float16)
    return model, stage


def train_adapter(config: InpainterTraining, views: Views, name: str) -> tuple[nn.Module, Stage]:
    """A LoRA of the base model on several masks, with or without rectified cross-attention."""
    from diffusers import StableDiffusionInpaintPipeline  # loads every image processor: seconds

    out, settings, options = config.out / name, config.adapter.loop, ADAPTERS[name]
    base = config.out / "painter" / "model"
    if not (base / "model_index.json").exists():
        raise ValueError(f"{base}: no model_index.json; train the stage painter first")
    parts = load_part(UNet2DConditionModel, base / "unet"), load_part(CLIPTextModel, base / "text_encoder")
    model = networks.PainterNetworks(*parts).requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    vae = load_part(AutoencoderTiny, base / "vae").to(memory_format=torch.channels_last)
    lora = LoraConfig(r=(rank := config.adapter.rank), lora_alpha=rank, init_lora_weights="gaussian",
                      target_modules=list(ATTENTION))  # fmt: skip
    with drawing(settings.seed):
        model.unet.add_adapter(lora)
    if options.rca:
        install_rca(model.unet)
    else:
        model.unet.set_attn_processor(AttnProcessor())
    encoder, scheduler = Encoder(vae), networks.create_scheduler()

    @autocast("cpu", enabled=settings.bf16)
    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng, generator = draws(settings.seed, step)
        batch = [several(views, config.adapter.most_masks, rng) for _ in range(settings.batch)]
        plans = []
        for example in batch:  # as published, words are dropped for single masks only
            dropped = len(example.prompts) == 1 and rng.random() < DROP_PROMPT
            prompts, encoding = [""] if dropped else example.prompts, options.encoding or "separate"
            plans.append(plan_tokens(prompts, tokenizer, encoding=encoding, regions=options.rca))
        with torch.no_grad():
            embeddings, owners = encode_plans(plans, model.text_encoder)
        known, regions = encoder.conditions(batch, rng), None
        if options.rca:  # absent regions are empty masks
            most = max(len(example.boxes) for example in batch)
            masks = np.zeros((len(batch), most, *views.images_u8.shape[1:3]), bool)
            for row, example in zip(masks, batch, strict=True):
                row[: len(example.boxes)] = box_masks(example.boxes, row.shape[1:])
            h, w = known.latents.shape[2:]
            levels = len(config.network.block_channels)
            regions = region_kwargs(torch.from_numpy(masks), owners, (h, w), levels=levels)
        return painting_loss(model.unet, scheduler, known, embeddings, generator, regions), {}

    stage = Stage(name, model, settings, out).train(loss)
    # With the keys of the released LoRA.
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(model.unet))
    half = {name: value.detach().half() for name, value in weights.items()}
    with folder_written_whole(out / "lora") as folder:
        StableDiffusionInpaintPipeline.save_lora_weights(folder, unet_lora_layers=half, weight_name=LORA_FILE)
    return model, stage


def painting_loss(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    known: UnetInputs,
    embeddings: Tensor,
    generator: torch.Generator,
    regions: dict[str, Any] | None = None,
) -> Tensor:
    """Squared error of v, averaged over each image's masked cells, plus OUTSIDE times that of the image."""
    noise = torch.randn(known.latents.shape, generator=generator)
    t = torch.randint(scheduler.config.num_train_timesteps, (len(noise),), generator=generator)
    x = torch.cat([scheduler.add_noise(known.latents, noise, t), known.mask, known.masked], dim=1)
    predicted = unet(x, t, encoder_hidden_states=embeddings, cross_attention_kwargs=regions).sample
    target = scheduler.get_velocity(known.latents, noise, t)
    error = (predicted.float() - target).square().mean(1, keepdim=True)
    inside = (error * known.mask).sum((1, 2, 3)) / known.mask.sum((1, 2, 3)).clamp(min=1)
    return inside.mean() + OUTSIDE * error.mean()


def draws(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    rng = np.random.default_rng((seed, step))
    return rng, torch.Generator().manual_seed(int(rng.integers(1 << 62)))
