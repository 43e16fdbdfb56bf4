"""The networks of the small inpainter, created from sizes, in Stable Diffusion's inpainting layout.

UNet with 9 input channels (4 latent, 1 mask, 4 latents of the masked image), CLIP text encoder, CLIP
tokenizer, scheduler with v-prediction and zero terminal SNR (Lin et al. 2024).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from inpainting.models.text_to_image.config import InpainterConfig, Recommended
from inpainting.models.text_to_image.load import INPAINTER_FILE
from ldm.checkpoints import save_part
from ldm.files import write_json
from ldm.settings.config import CheckedSettings, setting, write_config
from tiny.words import LENGTH, make_tokenizer

LATENT_CHANNELS = 4
NOTICE = "small inpainter: it knows rendered solids and their words only; photographs need the full model"


@dataclass(frozen=True)
class InpainterNetworks(CheckedSettings):
    """Sizes of the UNet and the text encoder."""

    latent_size: int = setting(32, low=4, help="side of the latents; 4 pixels each")
    block_channels: tuple[int, ...] = setting((32, 64, 128), help="UNet width per level")
    heads: tuple[int, ...] = setting((1, 2, 4), help="attention heads per level")
    attention: tuple[bool, ...] = setting((False, True, True), help="cross-attention at each level")
    norm_groups: int = setting(16, low=1, help="GroupNorm groups")
    text_width: int = setting(128, low=8, help="width of the text encoder")
    text_layers: int = setting(2, low=1, help="layers of the text encoder")
    text_heads: int = setting(4, low=1, help="attention heads of the text encoder")

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len(self.block_channels)
        if len(self.heads) != levels or len(self.attention) != levels:
            raise ValueError(
                f"block_channels has {levels} levels, heads {len(self.heads)}, "
                f"attention {len(self.attention)}; they must agree"
            )


class Networks(nn.Module):
    """What is trained: the UNet and the text encoder; with the tokenizer that the encoder reads."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder


def create_scheduler() -> DDIMScheduler:
    """Cosine schedule with zero terminal SNR, trailing steps, v-prediction.

    Stable Diffusion's own schedule spends half of its steps where a region of a few cells is all noise.
    """
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def create(config: InpainterNetworks, seed: int) -> tuple[Networks, CLIPTokenizer]:
    """Fresh networks and the tokenizer of the world's words. Eager attention: faster to train on a CPU."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=config.latent_size, in_channels=2 * LATENT_CHANNELS + 1, out_channels=LATENT_CHANNELS,
        down_block_types=[("CrossAttn" if on else "") + "DownBlock2D" for on in config.attention],
        up_block_types=[("CrossAttn" if on else "") + "UpBlock2D" for on in reversed(config.attention)],
        block_out_channels=config.block_channels, layers_per_block=1, cross_attention_dim=config.text_width,
        attention_head_dim=config.heads,  # diffusers reads this as the number of heads
        norm_num_groups=config.norm_groups, use_linear_projection=True,
    )  # fmt: skip
    unet.set_attn_processor(AttnProcessor())
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=config.text_width, intermediate_size=3 * config.text_width,
            projection_dim=config.text_width, num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads, max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, attn_implementation="eager",
        )
    )  # fmt: skip
    # Embeddings start far apart: with the library's deviation of 0.02 the words are told apart only late.
    nn.init.normal_(text_encoder.get_input_embeddings().weight, std=0.5)
    for name, weight in text_encoder.named_parameters():
        if name.endswith("position_embedding.weight"):
            nn.init.normal_(weight, std=0.1)
    return Networks(unet, text_encoder), tokenizer


def save_folder(
    model: Networks, tokenizer: CLIPTokenizer, vae: AutoencoderTiny, folder: Path, dtype: torch.dtype
) -> None:
    """A folder that `StableDiffusionInpaintPipeline.from_pretrained` loads, and our own loader."""
    save_part(model.unet, folder / "unet", dtype)
    save_part(model.text_encoder, folder / "text_encoder", dtype)
    save_part(vae, folder / "vae", dtype)
    tokenizer.save_pretrained(folder / "tokenizer")
    tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))  # vocab.json and merges.txt
    create_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionInpaintPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    recommended = InpainterConfig(
        name="small inpainter", notice=NOTICE, sampling=Recommended(steps=8, guidance=2.0)
    )
    write_config(folder / INPAINTER_FILE, recommended)
    write_json(folder / "model_index.json", index)
