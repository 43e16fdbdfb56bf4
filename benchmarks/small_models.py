"""Random networks of published kinds, a few hundred thousand weights each, in their publishers' folders."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    Kosmos2Processor,
    LlavaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cldm.config import CompositorSettings
from cldm.convert.convert import convert_compositor
from cldm.training.settings import RunConfig
from ldm.settings.cli import command, single_app
from ldm.settings.config import load_config
from tiny.world import make_tokenizer

PROMPTER = "assets/tiny/prompter"


def write_clip(folder: Path) -> Path:
    """A small random CLIP: model and tokenizer."""
    tokenizer = make_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ids, **small)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **small)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {"text_config": text.to_dict(), "vision_config": vision.to_dict()}
        model = CLIPModel(CLIPConfig(**parts, projection_dim=16))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_kosmos(folder: Path, tokenizer: Any = None, seed: int = 0) -> Path:
    """A small random Kosmos-2 with its real processor, a few hundred thousand weights."""
    tokenizer = tokenizer or make_tokenizer()
    size = {"height": 28, "width": 28}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    processor = Kosmos2Processor(images, tokenizer)
    layers = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"embed_dim": 32, "layers": 2, "ffn_dim": 48, "attention_heads": 2, "init_std": 0.2}
    text |= {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    vision = {"hidden_size": 32, "image_size": 28, "patch_size": 14, **layers}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Kosmos2ForConditionalGeneration(Kosmos2Config(text_config=text, vision_config=vision)).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_llava(folder: Path) -> None:
    """The small prompt writer with a tokenizer that knows letters."""
    tokenizer, processor = make_tokenizer(), AutoProcessor.from_pretrained(PROMPTER)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor.tokenizer = tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration.from_pretrained(PROMPTER)
        model.resize_token_embeddings(len(tokenizer))
    model.config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def convert(settings: CompositorSettings) -> dict[str, Any]:
    """`cldm.convert bifrost` for a file of the small networks whose training lies beside it."""
    config = load_config(RunConfig, settings.source.with_name("released") / "config.yaml", [])
    return convert_compositor("bifrost", settings, config.network)


build_convert_app = single_app(command(CompositorSettings, convert), bare=False)
