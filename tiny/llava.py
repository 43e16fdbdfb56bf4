"""A small LLaVA of stock parts: hybrid vision transformer, two-layer projector, Llama.

The vision tower is that of DPT-Hybrid: a ResNet makes the tokens of a short transformer. A plain transformer
on patches needs several times as many images.

The initial weights matter at this size: with the library's standard deviation of 0.02 attention stays flat.

Legend: b images, p patches (row-major), c channels, h w pixels.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    DPTConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ResNetConfig,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from ldm.checkpoints import folder_written_whole
from ldm.settings.config import CheckedSettings, setting, write_config

PATCH = 16  # pixels per image token and side: the ResNet's stride
PAD, BEGIN, END, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
SPECIAL = (PAD, BEGIN, END, UNKNOWN, IMAGE)  # the first words of every vocabulary
NUMBER_BLUR = 4.0  # bins; neighbouring numbers start with similar rows
MEAN, DEVIATION = 0.5, 0.25  # of pixels in [0, 1]


@dataclass(frozen=True)
class SmallConfig(CheckedSettings):
    """Sizes of the network. 2.7 M parameters as they stand."""

    image: int = setting(128, help="side of the image, pixels", low=32)
    width: int = setting(160, help="channels of the vision transformer and of the language model", low=16)
    heads: int = setting(5, help="attention heads of both", low=1)
    stages: tuple[int, int, int] = setting((32, 64, 128), help="channels of the ResNet's three stages", low=8)
    blocks: tuple[int, int, int] = setting((2, 2, 2), help="blocks of each of them", low=1)
    vision_layers: int = setting(2, help="layers of the vision transformer", low=1)
    layers: int = setting(4, help="layers of the language model", low=2)
    hidden: int = setting(432, help="channels within the language model's gated layers", low=16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image % PATCH:
            raise ValueError(f"image must be a multiple of {PATCH}, got {self.image}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 heads, got {self.width} and {self.heads}")

    @property
    def patches(self) -> int:
        """Image tokens per image."""
        return (self.image // PATCH) ** 2


def create_llava(
    config: SmallConfig, vocabulary: Sequence[str], seed: int, numbers: Sequence[str] = ()
) -> LlavaForConditionalGeneration:
    """An untrained model; the same seed gives the same weights and leaves the global state alone.

    vocabulary: begins with SPECIAL
    numbers: words of the vocabulary, in order, of which neighbours mean nearly the same
    """
    side = config.image // PATCH
    convolutions = ResNetConfig(
        embedding_size=config.stages[0], hidden_sizes=list(config.stages), depths=list(config.blocks),
        layer_type="basic", out_features=["stage1", "stage2", "stage3"],
    )  # fmt: skip
    vision = DPTConfig(
        is_hybrid=True, backbone_config=convolutions, image_size=config.image, patch_size=PATCH,
        backbone_featmap_shape=[1, config.stages[2], side, side], hidden_size=config.width,
        intermediate_size=4 * config.width, num_hidden_layers=config.vision_layers,
        num_attention_heads=config.heads, hidden_act="gelu", hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=config.width, intermediate_size=config.hidden,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.heads,
        max_position_embeddings=512, rope_theta=10000.0, tie_word_embeddings=False,
        initializer_range=config.width**-0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    whole = LlavaConfig(  # last vision layer, class token dropped
        vision_config=vision, text_config=text, image_token_index=vocabulary.index(IMAGE),
        image_seq_length=config.patches, vision_feature_layer=-1, vision_feature_select_strategy="default",
        projector_hidden_act="gelu", tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(whole)
        _initialise(model, config, [vocabulary.index(number) for number in numbers])
    return model


@torch.no_grad()
def _initialise(model: LlavaForConditionalGeneration, config: SmallConfig, numbers: list[int]) -> None:
    projector, language = model.model.multi_modal_projector, model.model.language_model
    for linear in (projector.linear_1, projector.linear_2):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(linear.bias)
    for layer in language.layers:
        for part in (layer.self_attn, layer.mlp):
            for linear in part.modules():
                if isinstance(linear, nn.Linear):
                    nn.init.normal_(linear.weight, std=config.width**-0.5)
        layer.self_attn.o_proj.weight *= (2 * config.layers) ** -0.5
        layer.mlp.down_proj.weight *= (2 * config.layers) ** -0.5
    for table, std in ((language.embed_tokens.weight, 1.0), (model.lm_head.weight, 0.02)):
        nn.init.normal_(table, std=std)
        if numbers:  # random vectors of unit variance, blurred along the numbers: neighbours are alike
            step = torch.arange(len(numbers))
            kernel = torch.exp(-0.5 * ((step[:, None] - step) / NUMBER_BLUR) ** 2)
            kernel = kernel / kernel.square().sum(1, keepdim=True).sqrt()
            table[numbers] = std * (kernel @ torch.randn(len(numbers), config.width))


def make_processor(config: SmallConfig, tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Pads an image to a square with the mean colour, resizes it, normalises it."""
    side = {"height": config.image, "width": config.image}
    pixels = LlavaImageProcessorPil(
        do_pad=True, do_resize=True, size=side, do_center_crop=False, crop_size=side, resample=3,
        image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3,
    )  # fmt: skip
    return LlavaProcessor(
        image_processor=pixels, tokenizer=tokenizer, patch_size=PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip


def word_tokenizer(
    vocabulary: Sequence[str], pieces: str, decoder: decoders.Decoder, chat_template: str
) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words; others become `<unk>`. pieces: regular expression of what is a token."""
    backend = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=UNKNOWN)
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "removed", invert=True)
    backend.decoder = decoder
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN, pad_token=PAD,
        additional_special_tokens=[IMAGE], chat_template=chat_template, padding_side="left",
        model_max_length=512, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def recoloured(pixels_u8: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """(b, h, w, 3) -> float in [0, 1], with a small random gain per image and channel."""
    pixels = pixels_u8.astype(np.float32) / 255
    if rng is None:
        return pixels
    gain = rng.uniform(0.88, 1.12, (len(pixels), 1, 1, 1)) * rng.uniform(0.96, 1.04, (len(pixels), 1, 1, 3))
    return np.clip(pixels * gain.astype(np.float32), 0, 1)


def normalised(pixels_01: np.ndarray) -> Tensor:
    """(b, h, w, 3) in [0, 1] -> (b, 3, h, w), MEAN and DEVIATION taken out as the processor does."""
    return torch.from_numpy((pixels_01 - MEAN) / DEVIATION).permute(0, 3, 1, 2)


def pooled(maps: np.ndarray, patch: int) -> np.ndarray:
    """(n, v, h, w) -> (n, v, p) means of the patches."""
    n, v, h, w = maps.shape
    grid = maps.reshape(n, v, h // patch, patch, w // patch, patch)
    return grid.mean((3, 5), dtype=np.float32).reshape(n, v, -1)


def project(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """(b, 3, h, w) -> projected patches (b, p, c), as the language model gets them."""
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    return model.model.multi_modal_projector(states)


class AttentionHook:
    """Keeps the attention (b, heads, l, l) of one layer of the language model in its last forward pass."""

    def __init__(self, model: LlavaForConditionalGeneration, layer: int) -> None:
        self.weights: Tensor | None = None
        self.hook = model.model.language_model.layers[layer].self_attn.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        self.weights = output[1]


def save_llava(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path, longest: int,
    files: Mapping[str, Any],
) -> None:  # fmt: skip
    """Weights in half precision, processor and tokenizer into a folder, or nothing.

    longest: tokens of an answer; files: JSON beside the weights, by name
    """
    half, tokenizer = copy.deepcopy(model).to(torch.float16), processor.tokenizer
    half.generation_config.update(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, max_new_tokens=longest,
    )  # fmt: skip
    with folder_written_whole(folder) as partial:
        half.save_pretrained(partial)
        processor.save_pretrained(partial)
        for name, content in files.items():
            write_config(partial / name, content)
