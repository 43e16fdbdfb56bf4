"""Untrained inpainting pipelines of several families, small enough for tests, as folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxInpaintPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3InpaintPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz,"
WIDTH = 32


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    letters = [*LETTERS, *(f"{one}</w>" for one in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def clip(projected: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=2 * len(LETTERS) + 2, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=2,
        num_attention_heads=2, projection_dim=WIDTH,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def vae(latents: int = 4, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=latents,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **more,
    )  # fmt: skip


def unet(channels: int, width: int, **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=32, in_channels=channels, out_channels=4, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=width,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=4, norm_num_groups=4, **more,
    )  # fmt: skip


def t5(width: int) -> tuple[T5EncoderModel, PreTrainedTokenizerFast]:
    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "ball": 3}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    config = T5Config(vocab_size=8, d_model=width, d_ff=37, d_kv=8, num_heads=2, num_layers=1)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    return T5EncoderModel(config).eval(), tokenizer


def make(family: str, folder: Path) -> Path:
    """The folder of a pipeline: sd, sd-text (for text alone), sdxl, sd3, sd3-clip (without T5) or flux."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    common = {"tokenizer": clip_tokenizer(folder)}
    ddim, flow = DDIMScheduler(steps_offset=1, clip_sample=False), FlowMatchEulerDiscreteScheduler()
    shifted = {
        "shift_factor": 0.1,
        "scaling_factor": 1.5,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    pipeline: Any
    if family in ("sd", "sd-text"):
        kind = StableDiffusionInpaintPipeline if family == "sd" else StableDiffusionPipeline
        pipeline = kind(
            vae=vae(), text_encoder=clip(), unet=unet(9 if family == "sd" else 4, WIDTH), scheduler=ddim,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False, **common,
        )  # fmt: skip
    elif family == "sdxl":
        added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
        pipeline = StableDiffusionXLInpaintPipeline(
            vae=vae(), text_encoder=clip(), text_encoder_2=clip(True), tokenizer_2=common["tokenizer"],
            unet=unet(4, 2 * WIDTH, projection_class_embeddings_input_dim=WIDTH + 48, **added),
            scheduler=ddim, add_watermarker=False, **common,
        )  # fmt: skip
    elif family in ("sd3", "sd3-clip"):
        encoder, tokenizer = t5(2 * WIDTH) if family == "sd3" else (None, None)
        pipeline = StableDiffusion3InpaintPipeline(
            vae=vae(16, **shifted),
            transformer=SD3Transformer2DModel(
                sample_size=32, patch_size=2, in_channels=16, num_layers=1, attention_head_dim=8,
                num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=2 * WIDTH,
                pooled_projection_dim=2 * WIDTH, out_channels=16,
            ),
            text_encoder=clip(True), text_encoder_2=clip(True), text_encoder_3=encoder, tokenizer_3=tokenizer,
            tokenizer_2=common["tokenizer"], scheduler=flow, **common,
        )  # fmt: skip
    else:
        encoder, tokenizer = t5(WIDTH)
        pipeline = FluxInpaintPipeline(
            vae=vae(2, **shifted),
            transformer=FluxTransformer2DModel(
                patch_size=1, in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16,
                num_attention_heads=2, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH,
                axes_dims_rope=(4, 4, 8),
            ),
            text_encoder=clip(), tokenizer_2=tokenizer, text_encoder_2=encoder, scheduler=flow, **common,
        )  # fmt: skip
    pipeline.save_pretrained(folder / "model")
    return folder / "model"
