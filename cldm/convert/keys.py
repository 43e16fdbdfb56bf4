"""Names of weights: the original single-file layouts <-> the diffusers and transformers folders.

One rule per network says where each weight of ours lies in the original file (a `Piece`); export reads the
same rules backwards. diffusers converts one way only and drops keys that it does not know. Original names:
LDM for UNet, ControlNet and autoencoder; the released files of DINOv2 and of DPT-Large (MiDaS).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import nn
from transformers import Dinov2Model, DPTForDepthEstimation


@dataclass(frozen=True)
class Piece:
    """A weight of ours in an original file: the index-th of `of` equal chunks of `key` along axis 0."""

    key: str
    index: int = 0
    of: int = 1
    ones: int = 0  # trailing axes of length 1 that only the original has (a 1 x 1 convolution, no matrix)


def original_pieces(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Piece]:
    """Weight -> its place in the original file, without prefix. names: the hub's, if not the model's own."""
    for kind, rule in RULES.items():
        if isinstance(model, kind):
            return {key: rule(key, model.config) for key in names or model.state_dict()}
    raise TypeError(f"no original layout is known for {type(model).__name__}")


def replace_start(key: str, names: dict[str, str]) -> str:
    """Exchange the first name of a dotted key: conv1.weight -> in_layers.2.weight."""
    for ours, original in names.items():
        if key == ours or key.startswith(ours + "."):
            return original + key[len(ours) :]
    raise ValueError(f"unknown weight {key!r}")


LDM_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
LDM_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "controlnet_mid_block": "middle_block_out.0"}  # fmt: skip
BLOCK = re.compile(r"(down|up|mid)_blocks?(?:\.(\d+))?\.(\w+?)s?\.(\d+)\.(.+)")


def ldm_name(key: str, config: Any) -> Piece:
    """UNet and the encoder that a ControlNet shares with it; its own two groups of weights as well."""
    found = BLOCK.fullmatch(key)
    if key.startswith("controlnet_cond_embedding."):
        # The hint stack is a plain sequence of convolutions with activations between them.
        _, *_, block, end = key.split(".")
        ends = {"conv_in": 0, "conv_out": 4 * len(config.conditioning_embedding_out_channels) - 2}
        return Piece(f"input_hint_block.{ends[block] if block in ends else 2 * int(block) + 2}.{end}")
    if key.startswith("controlnet_down_blocks."):
        _, place, end = key.split(".")
        return Piece(f"zero_convs.{place}.0.{end}")
    if not found:
        return Piece(replace_start(key, LDM_ENDS))
    side, kind, rest, level, number = found[1], found[3], found[5], int(found[2] or 0), int(found[4])
    inner = replace_start(rest, LDM_RESNET) if kind == "resnet" else rest
    layers = config.layers_per_block
    if side == "mid":
        return Piece(f"middle_block.{2 * number if kind == 'resnet' else 1}.{inner}")
    if side == "down":
        position = 1 + level * (layers + 1) + (layers if kind == "downsampler" else number)
        inner = rest.replace("conv", "op", 1) if kind == "downsampler" else inner
        return Piece(f"input_blocks.{position}.{1 if kind == 'attention' else 0}.{inner}")
    position = level * (layers + 1) + (layers if kind == "upsampler" else number)
    attends = "CrossAttn" in config.up_block_types[level]
    slot = {"resnet": 0, "attention": 1, "upsampler": 2 if attends else 1}[kind]
    return Piece(f"output_blocks.{position}.{slot}.{inner}")


VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def vae_name(key: str, config: Any) -> Piece:
    """Autoencoder: the decoder counts its levels from the latent side, the original from the pixels."""
    half, _, inside = key.partition(".")
    found = BLOCK.fullmatch(inside)
    if not found:
        return Piece(key.replace(".conv_norm_out.", ".norm_out."))
    side, level, kind, number, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if kind == "attention":
        matrix = rest.startswith("to_") and rest.endswith("weight")
        return Piece(f"{half}.mid.attn_1.{replace_start(rest, VAE_ATTENTION)}", ones=2 if matrix else 0)
    inner = rest.replace("conv_shortcut", "nin_shortcut")
    if side == "mid":
        return Piece(f"{half}.mid.block_{number + 1}.{inner}")
    level = level if side == "down" else len(config.block_out_channels) - 1 - level
    place = f"block.{number}" if kind == "resnet" else kind.removesuffix("r")
    return Piece(f"{half}.{side}.{level}.{place}.{inner}")


DINO_ENDS = {
    "embeddings.cls_token": "cls_token", "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm": "norm"}  # fmt: skip
# (original name, chunk, number of chunks). DINOv2 has two spellings, of transformers 5 and 4 (here side by
# side); the vision transformer inside DPT-Large has the older one and some names of its own.
VIT_BLOCK: dict[str, tuple[str, int, int]] = {
    "norm1": ("norm1", 0, 1), "layernorm_before": ("norm1", 0, 1),
    "norm2": ("norm2", 0, 1), "layernorm_after": ("norm2", 0, 1),
    "layer_scale1.lambda1": ("ls1.gamma", 0, 1), "layer_scale2.lambda1": ("ls2.gamma", 0, 1),
    "attention.q_proj": ("attn.qkv", 0, 3), "attention.attention.query": ("attn.qkv", 0, 3),
    "attention.k_proj": ("attn.qkv", 1, 3), "attention.attention.key": ("attn.qkv", 1, 3),
    "attention.v_proj": ("attn.qkv", 2, 3), "attention.attention.value": ("attn.qkv", 2, 3),
    "attention.o_proj": ("attn.proj", 0, 1), "attention.output.dense": ("attn.proj", 0, 1),
    "mlp.fc1": ("mlp.fc1", 0, 1), "intermediate.dense": ("mlp.fc1", 0, 1),
    "mlp.fc2": ("mlp.fc2", 0, 1), "output.dense": ("mlp.fc2", 0, 1),
    "mlp.gate_proj": ("mlp.w12", 0, 2), "mlp.up_proj": ("mlp.w12", 1, 2), "mlp.weights_in": ("mlp.w12", 0, 1),
    "mlp.down_proj": ("mlp.w3", 0, 1), "mlp.weights_out": ("mlp.w3", 0, 1)}  # fmt: skip


def vit_name(key: str, config: Any = None) -> Piece:
    """DINOv2 of transformers 4 or 5, and the vision transformer of DPT."""
    match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(\w+)", key)
    if not match:
        return Piece(replace_start(key, DINO_ENDS))
    number, name, end = match.groups()
    if name.startswith("layer_scale"):  # a parameter itself
        name, end = f"{name}.{end}", ""
    if name not in VIT_BLOCK:
        raise ValueError(f"unknown weight {key!r}")
    original, index, of = VIT_BLOCK[name]
    return Piece(f"blocks.{number}.{original}{end and '.' + end}", index, of)


# The parts of DPT's neck, by pattern; numbers in the result count from 1 or backwards.
FUSION = {"projection": "out_conv", "residual_layer": "resConfUnit", "convolution": "conv"}
RESIZE = {"projection": 3, "resize": 4}


def dpt_name(key: str, config: Any = None) -> Piece:
    """DPT-Large of MiDaS: ViT-L/16, four reassembled stages, four fusion stages, head."""
    if key.startswith("dpt."):
        piece = vit_name(key.removeprefix("dpt."))
        return replace(piece, key=f"pretrained.model.{piece.key}")
    if key.startswith("head.head."):
        return Piece(key.replace("head.head.", "scratch.output_conv."))
    if found := re.fullmatch(r"neck\.reassemble_stage\.layers\.(\d)\.(\w+)\.(\w+)", key):
        return Piece(f"pretrained.act_postprocess{int(found[1]) + 1}.{RESIZE[found[2]]}.{found[3]}")
    if found := re.fullmatch(r"neck\.reassemble_stage\.readout_projects\.(\d)\.0\.(\w+)", key):
        return Piece(f"pretrained.act_postprocess{int(found[1]) + 1}.0.project.0.{found[2]}")
    if found := re.fullmatch(r"neck\.convs\.(\d)\.weight", key):
        return Piece(f"scratch.layer{int(found[1]) + 1}_rn.weight")
    if found := re.fullmatch(r"neck\.fusion_stage\.layers\.(\d)\.(.+)", key):
        inner = found[2]
        for ours, original in FUSION.items():
            inner = inner.replace(ours, original)
        return Piece(f"scratch.refinenet{4 - int(found[1])}.{inner}")
    raise ValueError(f"unknown weight {key!r}")


RULES: dict[type[nn.Module], Callable[[str, Any], Piece]] = {
    UNet2DConditionModel: ldm_name,
    ControlNetModel: ldm_name,
    AutoencoderKL: vae_name,
    Dinov2Model: vit_name,
    DPTForDepthEstimation: dpt_name,
}
