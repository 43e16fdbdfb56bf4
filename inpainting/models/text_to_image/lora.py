"""A LoRA of the inpainter learns: its loss, its names in the released file, the run."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import Tensor, nn

from inpainting.data.datasets import InpaintingDataset
from inpainting.models.text_to_image.load import LORA_FILE, Inpainter, load_inpainter, lora_file, read_lora
from inpainting.models.text_to_image.rca import region_kwargs
from inpainting.models.text_to_image.sample import known_channels
from inpainting.models.text_to_image.train_text_to_image_lora import TrainLoraConfig
from inpainting.tokens import encode_plans, plan_tokens
from ldm.checkpoints import drawing
from ldm.denoise import min_snr_weight, noise_for, prediction_target
from ldm.device import DTYPES
from ldm.files import write_atomic
from ldm.mllm.training import fill_adapter
from ldm.seeds import seed_of
from ldm.settings.config import dump_yaml
from ldm.training.fit import Task, fit, make_accelerator
from ldm.training.run import Layout, refuse_foreign

ADAPTER = "default"


@dataclass(eq=False)
class LoraLoss:
    """Mean squared error of the UNet's prediction over all latent pixels (published)."""

    model: Inpainter
    config: TrainLoraConfig

    def __post_init__(self) -> None:
        self.schedule = DDPMScheduler.from_config(self.model.scheduler_config)

    def __call__(self, unet: nn.Module, batch: dict[str, Any], seeds: Sequence[int]) -> Tensor:
        """batch: of `InpaintingDataset.collate_fn`, on the device; seeds: one per image."""
        image, space, config = batch["pixel_values"], self.model.latent_space, self.config
        size = (image.shape[2] // space.factor, image.shape[3] // space.factor)
        noise, generators = noise_for(seeds, (space.channels, *size))
        noise = noise.to(image.device)
        if config.noise_offset:
            offsets = [torch.randn(space.channels, 1, 1, generator=generator) for generator in generators]
            noise = noise + config.noise_offset * torch.stack(offsets).to(image.device)
        count = int(self.schedule.config.num_train_timesteps)
        draws = [torch.randint(count, (1,), generator=generator) for generator in generators]
        timesteps = torch.cat(draws).to(image.device)
        how: dict[str, Any] = {"encoding": config.encoding, "regions": config.rca}
        plans = [plan_tokens(texts, self.model.tokenizer, **how) for texts in batch["texts"]]
        with torch.no_grad():
            latents = self.encode(image, generators)
            masked = self.encode(batch["masked_pixel_values"], generators)
            text, region_ids = encode_plans(plans, self.model.text_encoder)
        union = batch["masks"].bool()
        x = self.schedule.add_noise(latents, noise, timesteps)
        nine = torch.cat([x, known_channels(union, masked, config.layout)], 1)
        kwargs = None
        if config.rca:
            masks = batch["freestyle_layout_mask"][:, 1:].bool() & union  # the rows hold the background too
            levels, layout = len(self.model.unet.config.block_out_channels), config.layout
            kwargs = region_kwargs(masks, region_ids, size, levels=levels, layout=layout, dtype=text.dtype)
        prediction = unet(nine, timesteps, encoder_hidden_states=text, cross_attention_kwargs=kwargs).sample
        target = prediction_target(self.schedule, latents, noise, timesteps)
        error = (prediction.float() - target.float()).square().mean((1, 2, 3))
        return (error * min_snr_weight(self.schedule, timesteps, config.min_snr)).mean()

    def encode(self, image_pm1: Tensor, generators: list[torch.Generator]) -> Tensor:
        """(b, 3, H, W) -> (b, c, h, w), drawn from the autoencoder's posterior as published."""
        space = self.model.latent_space
        parameter = next(space.vae.parameters())
        return space.encode(image_pm1.to(parameter.dtype), generators).float()


def released_key(name: str) -> str:
    """Name of a LoRA parameter in the UNet -> its key in the released file."""
    for ours, released in (("A", "down"), ("B", "up")):
        ending = f".lora_{ours}.{ADAPTER}.weight"
        if name.endswith(ending):
            return f"unet.{name.removesuffix(ending)}.lora.{released}.weight"
    raise ValueError(f"{name} is no parameter of a LoRA")


def train_lora(config: TrainLoraConfig) -> Path:
    """Train; returns the file of the best LoRA. The same call again continues."""
    out = config.project_dir
    refuse_foreign(out, [LORA_FILE], "project_dir; resume_from=FOLDER trains on from released weights")
    accelerator = make_accelerator(config.fit, out)
    dtype = DTYPES.get(config.fit.precision, torch.float32)  # "no" is full precision
    model = load_inpainter(config.pretrained, device="cpu", dtype=dtype)
    begun: dict[str, Tensor] = {}
    if config.resume_from is not None:  # read before the UNet has layers of its own for a LoRA
        file = lora_file(config.resume_from)
        begun, stated = read_lora(model.unet, file, torch.float32)
        rank, alpha = ((stated or {}).get(f"unet.{name}") for name in ("r", "lora_alpha"))
        if rank != alpha:
            raise ValueError(f"{file}: alpha is {alpha} and rank {rank}; only a LoRA of scale 1 is continued")
    rank, targets, dropout = config.lora.rank, list(config.lora.targets), config.lora.dropout
    adapter = LoraConfig(  # gaussian: it changes nothing yet
        r=rank, lora_alpha=rank, target_modules=targets, lora_dropout=dropout, init_lora_weights="gaussian"
    )
    with drawing(seed_of(config.fit.seed, "lora")):
        model.unet.add_adapter(adapter, adapter_name=ADAPTER)
    cast_training_params(model.unet, torch.float32)
    if begun:
        weights = {key.removeprefix("unet."): value for key, value in begun.items()}
        fill_adapter(model.unet, weights, f"{config.resume_from}: not a LoRA of these lora settings")
    if config.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    how: dict[str, Any] = {"seed": config.fit.seed, "freestyle": config.rca}
    data = [InpaintingDataset(config.data, model.tokenizer, split, **how) for split in ("train", "val")]
    training, held_out = data
    training.paintings = training.paintings[: config.train_samples or None]
    held_out.paintings = held_out.paintings[: config.val_samples or None]
    if accelerator.is_main_process:
        write_atomic(out / "config.yaml", dump_yaml(config).encode())
    loss, layout = LoraLoss(model, config), Layout(LORA_FILE, released_key)
    task = Task(loss, training, InpaintingDataset.collate_fn, held_out=held_out, layout=layout)
    newest, best = fit(config.fit, out, model.to(accelerator.device).unet, task, accelerator)
    best = best or newest
    if accelerator.is_main_process:
        write_atomic(out / LORA_FILE, (best / LORA_FILE).read_bytes())
        logging.getLogger(__name__).info("LoRA of %s: %s", best.name, out / LORA_FILE)
    accelerator.end_training()
    return out / LORA_FILE
