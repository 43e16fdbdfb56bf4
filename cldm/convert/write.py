"""Writes the networks of a plan, one weight at a time: what is read, cut, interpolated or started fresh."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from torch import Tensor, nn

from cldm.convert.plan import Origin
from cldm.create import NetworkConfig
from ldm.checkpoints import save_model_config
from ldm.device import DTYPES
from ldm.weight_files import Entry, entry_of, write_safetensors

POSITIONS = "original/position_embeddings.safetensors"  # inside image_encoder/, for the way back
POSITION_OFFSET = 0.1  # DINOv2 adds it to the target side before it divides (published code)


def write_part(
    model: nn.Module,
    origins: Mapping[str, Origin],
    folder: Path,
    dtype: str,
    fresh: Mapping[str, Tensor] | None = None,
) -> None:
    """config.json and weights of one network, tensor by tensor."""
    is_linear = isinstance(model, nn.Linear)
    file = folder / "model.safetensors" if is_linear else save_model_config(model, folder)
    entries = {}
    for key, origin in origins.items():
        # keep: the source's own dtype, fp32 for what the source does not have
        kept = origin.source.dtypes[origin.key] if origin.source is not None else torch.float32
        kind = kept if dtype == "keep" else DTYPES[dtype]
        entries[key] = Entry(origin.shape, kind, partial(weight_of, key, origin, fresh))
    write_safetensors(file, entries, progress=True)
    for origin in origins.values():
        if origin.positions and origin.source is not None:
            write_safetensors(folder / POSITIONS, {"pos_embed": entry_of(origin.source.read(origin.key))})


def weight_of(key: str, origin: Origin, fresh: Mapping[str, Tensor] | None) -> Tensor:
    """One weight of ours, in its source's dtype."""
    if origin.how == "zero":
        return torch.zeros(origin.shape)
    if origin.how == "fresh":
        return (fresh or {}).get(key, torch.zeros(origin.shape))  # zero convolutions
    if origin.source is None:
        raise AssertionError(f"{key}: a plan with a missing source was not refused")
    value = origin.source.read(origin.key)
    if origin.positions:
        return interpolate_positions(value, origin.shape[1] - 1)
    return value.chunk(origin.of)[origin.index].reshape(origin.shape)


def interpolate_positions(embedding: Tensor, count: int) -> Tensor:
    """DINOv2's run-time interpolation of the position embedding, done once.

    embedding: (1, 1 + grid^2, c) -> (1, 1 + count, c), bicubic by the factor (side + 0.1) / grid.
    """
    grid, side = round((embedding.shape[1] - 1) ** 0.5), round(count**0.5)
    patches = embedding[:, 1:].float().reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    factor = (side + POSITION_OFFSET) / grid
    scaled = nn.functional.interpolate(patches, scale_factor=factor, mode="bicubic")
    return torch.cat([embedding[:, :1].float(), scaled.flatten(2).transpose(1, 2)], 1)


def fresh_weights(part: str, network: NetworkConfig, seed: int) -> dict[str, Tensor]:
    """Initial weights of hint stack or projector, from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if part == "projector":
            return dict(nn.Linear(network.identity_width, network.token_width).state_dict())
        if not part.startswith("control_"):
            return {}
        hint = ControlNetConditioningEmbedding(
            conditioning_embedding_channels=network.block_channels[0],
            block_out_channels=network.hint_channels,
            conditioning_channels=4 if part == "control_detail" else 3,
        )
    return {f"controlnet_cond_embedding.{key}": value for key, value in hint.state_dict().items()}
