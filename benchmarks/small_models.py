"""Random networks of published kinds, a few hundred thousand weights each, in their publishers' folders."""

from pathlib import Path
from typing import Any

import transformers as hub
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cldm.config import CompositorSettings
from cldm.convert.convert import convert_compositor
from cldm.training.settings import RunConfig
from ldm.loading import drawing
from ldm.settings.cli import command, single_app
from ldm.settings.config import load_config
from tiny.world import make_tokenizer

LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PROMPTER = "assets/tiny/prompter"


def save(folder: Path, *parts: Any) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """CLIP and its tokenizer."""
    words = make_tokenizer()
    ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    text = hub.CLIPTextConfig(vocab_size=len(words), hidden_size=16, **ids, **LAYERS)
    vision = hub.CLIPVisionConfig(image_size=32, patch_size=8, hidden_size=16, **LAYERS)
    parts = {"text_config": text.to_dict(), "vision_config": vision.to_dict()}
    with drawing(0):
        return save(folder, hub.CLIPModel(hub.CLIPConfig(**parts, projection_dim=16)), words)


def write_kosmos(folder: Path, words: Any = None) -> Path:
    """Kosmos-2 and its real processor. words: another tokenizer"""
    words, size = words or make_tokenizer(), {"height": 28, "width": 28}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    processor = hub.Kosmos2Processor(images, words)  # which adds words
    text = {"embed_dim": 32, "layers": 2, "ffn_dim": 48, "attention_heads": 2, "init_std": 0.2}
    text |= {"vocab_size": len(words), "max_position_embeddings": 512}
    text |= {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    vision = {"hidden_size": 32, "image_size": 28, "patch_size": 14, **LAYERS}
    config = hub.Kosmos2Config(text_config=text, vision_config=vision)
    with drawing(0):
        return save(folder, hub.Kosmos2ForConditionalGeneration(config).eval(), processor)


def write_llava(folder: Path) -> Path:
    """The small prompt writer with a tokenizer that knows letters."""
    processor, words = hub.AutoProcessor.from_pretrained(PROMPTER), make_tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor.tokenizer = words
    model = hub.LlavaForConditionalGeneration.from_pretrained(PROMPTER)
    model.config.image_token_index = words.convert_tokens_to_ids("<image>")
    with drawing(0):
        model.resize_token_embeddings(len(words))
    return save(folder, model, processor)


def convert(settings: CompositorSettings) -> dict[str, Any]:
    """`cldm.convert bifrost` for a file of the small networks whose training lies beside it."""
    config = load_config(RunConfig, settings.source.with_name("released") / "config.yaml", [])
    return convert_compositor("bifrost", settings, config.network)


build_convert_app = single_app(command(CompositorSettings, convert), bare=False)
