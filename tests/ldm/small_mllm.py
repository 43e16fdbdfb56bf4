"""Random language models that see, of several families, a few hundred thousand weights each; no downloads.

Tokenizers are trained here on a few sentences: byte-level BPE (Qwen, SmolVLM), BPE with word-start marks and
byte fallback as LLaMA's, and one word per token with number tokens 0.00 to 1.00.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMProcessor,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from ldm.mllm.model import images_only
from ldm.mllm.templates import TEMPLATES

FAMILIES = ("llava", "llava_words", "llava_next", "qwen2_5_vl", "qwen3_vl", "smolvlm")
SIDE, PATCH, WIDTH = 56, 14, 32
NAMES = ("dog", "cat", "sofa", "chair", "red cube", "blue cone", "lamp", "table")
PHRASES = ("to the left of", "to the right of", "behind", "in front of", "on", "next to")
TAIL = ", output the bounding box and the depth value of the center point."
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOL_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}:"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %} {{ part.text }}"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def sentences() -> list[str]:
    """What the small tokenizers are trained on."""
    asked = [f"Place the {a} {p} the {b}{TAIL}" for a in NAMES for p in PHRASES for b in NAMES if a != b]
    answers = [
        f"[0.{k:03d}, 0.{(k * 7) % 1000:03d}, 1.000, 0.5], 0.{(k * 13) % 1000:03d}." for k in range(100)
    ]
    boxes = ['{"bbox_2d": [12, 345, 678, 1000], "depth": 0.123}']
    return [*asked, *answers, *boxes, "USER: ASSISTANT: user assistant"]


def byte_level(special: list[str], eos: str, pad: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as Qwen's and SmolVLM's."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    raw.train_from_iterator(sentences(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=eos, pad_token=pad)


def llama_like() -> PreTrainedTokenizerFast:
    """BPE over words that begin with a mark, digits apart, unknown characters as bytes: LLaMA's kind."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"\u2581?[A-Za-z]+|\u2581?[^A-Za-z]"), "isolated")
    raw.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", "<image>", "<pad>", *(f"<0x{k:02X}>" for k in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special[:5], show_progress=False)
    raw.train_from_iterator(sentences(), trainer)
    words = {**{name: k for k, name in enumerate(special)}}
    learned = [name for name, _ in sorted(raw.get_vocab().items(), key=lambda item: item[1])]
    for name in [*learned, "\u2581["]:
        words.setdefault(name, len(words))
    merges = [tuple(pair) for pair in json.loads(raw.to_str())["model"]["merges"]]
    merges.append(("\u2581", "["))
    raw.model = models.BPE(words, merges, unk_token="<unk>", byte_fallback=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


def word_level() -> PreTrainedTokenizerFast:
    """One word, bracket or number 0.00 to 1.00 per token; commas and full stops are dropped."""
    found = {word for text in sentences() for word in text.replace(",", " ").replace(".", " ").split()}
    words = sorted(word for word in found if word.isalpha()) + ["USER:", "ASSISTANT:"]
    numbers = [f"{k / 100:.2f}" for k in range(101)]
    names = ["<unk>", "<s>", "</s>", "<image>", "<pad>", "[", "]", *numbers, *words]
    raw = Tokenizer(models.WordLevel({name: k for k, name in enumerate(names)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d\.\d\d|\[|\]|[A-Za-z]+:?"), "removed", invert=True)
    raw.add_special_tokens([AddedToken(name, special=True) for name in names[:5]])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


def clip() -> dict[str, Any]:
    return CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH, projection_dim=WIDTH,
    ).to_dict()  # fmt: skip


def llama(tokenizer: Any) -> dict[str, Any]:
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        initializer_range=0.2,
    ).to_dict()  # fmt: skip


def build_small(family: str, seed: int = 0) -> tuple[Any, Any]:
    """(model, processor) of a family, random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family in ("llava", "llava_words"):
            return _llava(llama_like() if family == "llava" else word_level())
        builders = {"llava_next": _llava_next, "qwen2_5_vl": _qwen, "qwen3_vl": _qwen3, "smolvlm": _smolvlm}
        return builders[family]()


def small_folder(family: str, folder: Path, seed: int = 0) -> Path:
    """A model and its processor as `save_pretrained` writes them."""
    model, processor = build_small(family, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _llava(tokenizer: Any) -> tuple[Any, Any]:
    config = LlavaConfig(
        vision_config=clip(), text_config=llama(tokenizer), image_token_index=tokenizer.image_token_id,
        image_seq_length=(SIDE // PATCH) ** 2, vision_feature_layer=-2,
    )  # fmt: skip
    images = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    processor = LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATES["vicuna_v1"],
    )  # fmt: skip
    return LlavaForConditionalGeneration(config).eval(), processor


def _llava_next() -> tuple[Any, Any]:
    tokenizer = llama_like()
    points = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    config = LlavaNextConfig(
        vision_config=clip(), text_config=llama(tokenizer), image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=points, vision_feature_layer=-2,
    )  # fmt: skip
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=points
    )
    processor = LlavaNextProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATES["llava_hub"],
    )  # fmt: skip
    return LlavaNextForConditionalGeneration(config).eval(), processor


def _qwen_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    return byte_level([*special, "<|image_pad|>", "<|video_pad|>"], "<|im_end|>", "<|endoftext|>")


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    named = {"image": "image_pad", "video": "video_pad"}
    named |= {name: name for name in ("vision_start", "vision_end")}
    return {f"{key}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in named.items()}


def _qwen() -> tuple[Any, Any]:
    tokenizer = _qwen_tokenizer()
    text = {**llama(tokenizer), "model_type": "qwen2_5_vl_text"}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    vision: dict[str, Any] = {"depth": 2, "hidden_size": WIDTH, "intermediate_size": 48, "num_heads": 2}
    vision |= {"out_hidden_size": WIDTH}
    vision |= {"fullatt_block_indexes": [1], "window_size": 56}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_qwen_ids(tokenizer))
    images = Qwen2VLImageProcessorPil(min_pixels=4 * 28 * 28, max_pixels=16 * 28 * 28)
    processor = images_only(Qwen2_5_VLProcessor)(images, tokenizer, chat_template=QWEN_TEMPLATE)
    return Qwen2_5_VLForConditionalGeneration(config).eval(), processor


def _qwen3() -> tuple[Any, Any]:
    tokenizer = _qwen_tokenizer()
    text = {**llama(tokenizer), "model_type": "qwen3_vl_text", "head_dim": 16}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    vision: dict[str, Any] = {"depth": 2, "hidden_size": WIDTH, "intermediate_size": 48, "num_heads": 2}
    vision |= {"out_hidden_size": WIDTH}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16, "patch_size": 16}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_ids(tokenizer))
    images = Qwen2VLImageProcessorPil(patch_size=16, min_pixels=4 * 32 * 32, max_pixels=16 * 32 * 32)
    processor = images_only(Qwen3VLProcessor)(images, tokenizer, chat_template=QWEN_TEMPLATE)
    return Qwen3VLForConditionalGeneration(config).eval(), processor


def _smolvlm() -> tuple[Any, Any]:
    special = ["<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"]
    tokenizer = byte_level([*special, "<global-img>", "<row_1_col_1>"], "<end_of_utterance>", "<|im_end|>")
    vision = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 4}  # 16 tokens: some versions need a multiple of the patch
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = SmolVLMConfig(
        text_config={**llama(tokenizer), "model_type": "llama"}, vision_config=vision, scale_factor=2,
        image_token_id=image_id,
    )  # fmt: skip
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    processor = images_only(SmolVLMProcessor)(
        images, tokenizer, image_seq_len=16, chat_template=SMOL_TEMPLATE
    )
    return SmolVLMForConditionalGeneration(config).eval(), processor
