"""A new small LLaVA of stock parts: hybrid vision transformer, two-layer projector, Llama.

The vision tower is that of DPT-Hybrid: a ResNet makes the tokens of a short transformer. A plain transformer
on patches needs several times as many pictures.

The first weights matter at this size: with the library's standard deviation of 0.02 attention stays flat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DPTConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, ResNetConfig

from ldm.config import check_settings, setting
from llava_bifrost.small.vocabulary import IMAGE, NUMBERS, VOCABULARY

PATCH = 16  # pixels per image token and side: the ResNet's stride
NUMBER_BLUR = 4.0  # bins; neighbouring numbers start with similar rows


@dataclass(frozen=True)
class SmallConfig:
    """Sizes of the network. 2.7 M parameters as they stand."""

    image: int = setting(128, help="side of the picture, pixels", low=32)
    width: int = setting(160, help="channels of the vision transformer and of the language model", low=16)
    heads: int = setting(5, help="attention heads of both", low=1)
    stages: tuple[int, int, int] = setting((32, 64, 128), help="channels of the ResNet's three stages", low=8)
    blocks: tuple[int, int, int] = setting((2, 2, 2), help="blocks of each of them", low=1)
    vision_layers: int = setting(2, help="layers of the vision transformer", low=1)
    layers: int = setting(4, help="layers of the language model", low=2)
    hidden: int = setting(432, help="channels within the language model's gated layers", low=16)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.image % PATCH:
            raise ValueError(f"image must be a multiple of {PATCH}, got {self.image}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 heads, got {self.width} and {self.heads}")

    @property
    def patches(self) -> int:
        """Image tokens per picture."""
        return (self.image // PATCH) ** 2


def llava_config(config: SmallConfig) -> LlavaConfig:
    """The stock configuration: last vision layer, class token dropped."""
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
        vocab_size=len(VOCABULARY), hidden_size=config.width, intermediate_size=config.hidden,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.heads,
        max_position_embeddings=512, rope_theta=10000.0, tie_word_embeddings=False,
        initializer_range=config.width**-0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=VOCABULARY.index(IMAGE),
        image_seq_length=config.patches, vision_feature_layer=-1, vision_feature_select_strategy="default",
        projector_hidden_act="gelu", tie_word_embeddings=False,
    )  # fmt: skip


def create_locator(config: SmallConfig, seed: int) -> LlavaForConditionalGeneration:
    """An untrained locator; the same seed gives the same weights and leaves the global state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(llava_config(config))
        _initialise(model, config)
    return model


@torch.no_grad()
def _initialise(model: LlavaForConditionalGeneration, config: SmallConfig) -> None:
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
    rows = [VOCABULARY.index(number) for number in NUMBERS]
    for table, std in ((language.embed_tokens.weight, 1.0), (model.lm_head.weight, 0.02)):
        nn.init.normal_(table, std=std)
        table[rows] = std * _smooth(len(rows), config.width)


def _smooth(count: int, width: int) -> Tensor:
    """(count, width) unit-variance rows, neighbours alike: random vectors blurred along the first axis."""
    step = torch.arange(count)
    kernel = torch.exp(-0.5 * ((step[:, None] - step) / NUMBER_BLUR) ** 2)
    kernel = kernel / kernel.square().sum(1, keepdim=True).sqrt()
    return kernel @ torch.randn(count, width)


def count_parameters(model: nn.Module) -> int:
    return sum(math.prod(parameter.shape) for parameter in model.parameters())
