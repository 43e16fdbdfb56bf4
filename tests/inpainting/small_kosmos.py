"""A random Kosmos-2 with its real processor, a few hundred thousand weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration, Kosmos2Processor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.ldm.small_mllm import WIDTH, llama_like

SIDE, PATCH = 28, 14


def small_kosmos(folder: Path, seed: int = 0) -> Path:
    """A model and its processor as `save_pretrained` writes them."""
    size = {"height": SIDE, "width": SIDE}
    tokenizer = llama_like()
    processor = Kosmos2Processor(
        CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False), tokenizer
    )
    layers = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"embed_dim": WIDTH, "layers": 2, "ffn_dim": 48, "attention_heads": 2, "init_std": 0.2}
    text |= {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    vision = {"hidden_size": WIDTH, "image_size": SIDE, "patch_size": PATCH, **layers}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Kosmos2ForConditionalGeneration(Kosmos2Config(text_config=text, vision_config=vision)).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
