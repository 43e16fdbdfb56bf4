"""A small untrained inpainting model with the real classes and a vocabulary of its own, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from inpainting.models.text_to_image.config import InpainterConfig, PaintOptions
from inpainting.models.text_to_image.load import INPAINTER_FILE, Inpainter
from inpainting.models.text_to_image.rca import install_rca
from ldm.checkpoints import save_part
from ldm.files import write_json
from ldm.latents import LatentSpace
from ldm.settings.config import write_config

WORDS = ("a", "an", "the", "red", "green", "blue", "cube", "ball", "cone", "on", "striped", "very", ".", ",")
QUICK = PaintOptions(scheduler="ddim", steps=2, guidance=3.0)
LETTERS = "abcdefghijklmnopqrstuvwxyz.,"


def small_tokenizer(folder: Path, length: int = 77) -> CLIPTokenizer:
    """CLIP's tokenizer with 28 letters; every word of WORDS is one token, any other is spelled."""
    vocabulary = ["!", *LETTERS, *(letter + "</w>" for letter in LETTERS)]
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merge = " ".join(pieces[-2:])
            merges += [merge] if merge not in merges else []
            pieces[-2:] = ["".join(pieces[-2:])]
            vocabulary += pieces[-1:] if pieces[-1] not in vocabulary else []
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {word: index for index, word in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=length, pad_token="!")


def small_unet(seed: int = 0, **changes: object) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    settings = {
        "sample_size": 8, "in_channels": 9, "out_channels": 4, "cross_attention_dim": 16,
        "attention_head_dim": [2, 2, 2], "block_out_channels": [16, 16, 16], "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "norm_num_groups": 4, "use_linear_projection": True,
    }  # fmt: skip
    return UNet2DConditionModel(**{**settings, **changes}).eval()


def small_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def small_autoencoder(kind: str) -> AutoencoderKL | AutoencoderTiny:
    if kind == "tiny":
        return AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
            num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1), latent_channels=4,
        ).eval()  # fmt: skip
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4,
    ).eval()  # fmt: skip


def small_inpainter(folder: Path, autoencoder: str = "kl", card: InpainterConfig | None = None) -> Inpainter:  # noqa: B008
    """In memory; `folder` receives the tokenizer's files."""
    tokenizer = small_tokenizer(folder)
    unet = small_unet()
    space = LatentSpace(small_autoencoder(autoencoder))
    if autoencoder == "tiny":
        space = LatentSpace(space.vae, [0.1, 0.0, -0.1, 0.2], [1.0, 1.5, 0.5, 2.0])
    scheduler = PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
    config = {"_class_name": "PNDMScheduler", **dict(scheduler.config)}
    text_encoder = small_text_encoder(tokenizer)
    return Inpainter(
        install_rca(unet), space.eval(), text_encoder, tokenizer, config, card or InpainterConfig()
    )


def random_image(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def box(h: int, w: int, y0: float, y1: float, x0: float, x1: float) -> np.ndarray:
    mask = np.zeros((h, w), bool)
    mask[round(y0 * h) : round(y1 * h), round(x0 * w) : round(x1 * w)] = True
    return mask


def two(h: int, w: int) -> list[tuple[np.ndarray, str]]:
    left, right = box(h, w, 0.1, 0.6, 0.1, 0.45), box(h, w, 0.4, 0.9, 0.5, 0.95)
    return [(left, "a red cube"), (right, "a green striped ball")]


def save_inpainter(model: Inpainter, folder: Path) -> None:
    """The whole folder in single precision; an autoencoder that lies elsewhere is not written."""
    for part, network in (("unet", model.unet), ("text_encoder", model.text_encoder)):
        save_part(network, folder / part, torch.float32)
    if model.config.vae == "vae":
        model.latent_space.save_pretrained(folder / "vae", torch.float32)
    model.tokenizer.save_pretrained(folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", model.scheduler_config)
    write_config(folder / INPAINTER_FILE, model.config)
