"""Published checkpoints -> our folders, strictly and with a report; planned before anything is written."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial as bound
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from torch import Tensor, nn
from transformers import DPTConfig, DPTForDepthEstimation

from cldm.config import CONFIG_FILE, CompositorConfig, CompositorSettings, ConvertSettings, NetworkConfig
from cldm.convert.plan import Origin, Plan, empty_networks, plan_compositor, plan_single
from cldm.create import create_identity, noise_schedule
from datasets.inputs import PairOptions
from ldm.checkpoints import drawing, empty_parameters, folder_written_whole, save_model_config, stored_names
from ldm.device import DTYPES
from ldm.files import json_bytes, write_json
from ldm.result import write_result
from ldm.settings.config import write_config
from ldm.weight_files import Entry, entry_of, open_weights, write_safetensors

log = logging.getLogger(__name__)

ANYDOOR = "AnyDoor weights: the depth branch is untrained and adds nothing; nearer things stay by mask."
SD21 = "A training start: control branches and projector are untrained."
CONFIGS = {
    "bifrost": CompositorConfig("bifrost", pair=PairOptions(hf_mode="zero")),
    "anydoor": CompositorConfig("anydoor", ANYDOOR, PairOptions(hf_mode="color")),
    "sd21": CompositorConfig("sd21-start", SD21),
}
HOW = {
    "file": "weights from the file", "copy": "copied from the UNet",
    "zero": "zeros (never used)", "fresh": "initialised afresh"}  # fmt: skip
POSITIONS = "original/position_embeddings.safetensors"  # inside image_encoder/, for the way back
POSITION_OFFSET = 0.1  # DINOv2 adds it to the target side before it divides (published code)
DPT_LARGE = DPTConfig(
    hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
    backbone_out_indices=[5, 11, 17, 23], neck_hidden_sizes=[256, 512, 1024, 1024], layer_norm_eps=1e-6,
)  # fmt: skip


def convert_compositor(kind: str, settings: CompositorSettings, network: NetworkConfig | None = None) -> dict:
    """Write a compositor folder from a checkpoint of `kind` (bifrost, anydoor, sd21); returns the report."""
    network = network or NetworkConfig()
    source, config = settings.source, CONFIGS[kind]
    if kind == "sd21" and "768" in source.name:
        log.warning("%s: the 768-pixel SD 2.1 predicts velocity; the 512-pixel base is needed", source)
    file, networks = open_weights(source), empty_networks(network)
    plan = plan_compositor(kind, file, networks, open_weights(settings.dinov2) if settings.dinov2 else None)
    pair = replace(config.pair, size=network.size, reference_size=network.reference_size)
    with folder_written_whole(settings.out) as partial:
        for name, model in networks.items():
            fresh: dict[str, Tensor] = {}
            with drawing(settings.seed):  # projector and hint stacks start from the seed alone
                if name == "projector":
                    fresh = nn.Linear(network.identity_width, network.token_width).state_dict()
                elif name.startswith("control_"):
                    hint = ControlNetConditioningEmbedding(
                        conditioning_embedding_channels=network.block_channels[0],
                        block_out_channels=network.hint_channels,
                        conditioning_channels=4 if name == "control_detail" else 3,
                    ).state_dict()
                    fresh = {f"controlnet_cond_embedding.{key}": value for key, value in hint.items()}
            write_part(model, plan.parts[name], partial / name, settings.dtype, fresh)
        DDIMScheduler.from_config(noise_schedule(network)).save_pretrained(partial / "scheduler")
        write_config(partial / CONFIG_FILE, replace(config, pair=pair))
    return log_report(kind, plan, file.others, settings)


def convert_single(kind: str, settings: ConvertSettings, model: nn.Module | None = None) -> dict[str, Any]:
    """Write a transformers folder of DINOv2 or DPT-Large; returns the report."""
    file = open_weights(settings.source)
    if model is None:  # the network at its published size, without memory
        with drawing(0), empty_parameters():
            dpt = kind == "dpt"
            model = DPTForDepthEstimation(DPT_LARGE) if dpt else create_identity(NetworkConfig()).encoder
    plan = plan_single(model, file)
    with folder_written_whole(settings.out) as partial:
        write_part(model, plan.parts[""], partial, settings.dtype)
        if kind == "dpt":  # what the depth estimator reads: size and normalisation of MiDaS
            mean_and_std = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
            prepared = {"size": 384, "ensure_multiple_of": 32, **mean_and_std}
            write_json(partial / "preprocessor_config.json", prepared)
    return log_report(kind, plan, file.others, settings)


def log_report(kind: str, plan: Plan, others: tuple[str, ...], settings: ConvertSettings) -> dict[str, Any]:
    report: dict[str, Any] = {"verb": kind, "source": settings.source.name, "parts": {}, "dead": {}}
    for name, origins in plan.parts.items():
        part = report["parts"][name or kind] = {}
        for how, meaning in HOW.items():
            shapes = {key: list(origin.shape) for key, origin in origins.items() if origin.how == how}
            if shapes:
                part[how] = {"count": len(shapes), "weights": shapes}
                first, shape = next(iter(shapes.items()))
                log.info("%s: %d %s, first %s %s", name or kind, len(shapes), meaning, first, shape)
    for reason, keys in plan.unused.items():
        report["dead"][reason] = {"count": len(keys), "keys": keys}
        log.info("not used: %d keys, first %s (%s)", len(keys), keys[0], reason)
    report["not_weights"] = list(others)
    if others:
        log.info("not read: %s", ", ".join(others[:8]))
    if settings.report:
        write_result({settings.report: json_bytes(report)})
    return report


def write_part(
    model: nn.Module,
    origins: Mapping[str, Origin],
    folder: Path,
    dtype: str,
    fresh: Mapping[str, Tensor] | None = None,
) -> None:
    """config.json and weights of one network, tensor by tensor."""
    file = folder / "model.safetensors" if isinstance(model, nn.Linear) else save_model_config(model, folder)
    entries = {}
    for name, keys in stored_names(model).items():
        origin = origins[keys[0]]
        # keep: the source's own dtype, fp32 for what the source does not have
        kept = origin.source.dtypes[origin.key] if origin.source is not None else torch.float32
        kind = kept if dtype == "keep" else DTYPES[dtype]
        parts = [bound(weight_of, key, origins[key], fresh) for key in keys]
        shape = (origin.shape[0] * len(keys), *origin.shape[1:])
        entries[name] = Entry(shape, kind, bound(lambda parts: torch.cat([make() for make in parts]), parts))
    write_safetensors(file, entries, progress=True)
    for origin in origins.values():
        if origin.positions and origin.source is not None:
            write_safetensors(folder / POSITIONS, {"pos_embed": entry_of(origin.source.read(origin.key))})


def weight_of(key: str, origin: Origin, fresh: Mapping[str, Tensor] | None) -> Tensor:
    """One weight of ours, in its source's dtype.

    DINOv2's run-time interpolation of the position embedding is done here, once: (1, 1 + grid^2, c) ->
    (1, 1 + side^2, c), bicubic by the factor (side + 0.1) / grid.
    """
    if origin.how in ("zero", "fresh"):
        return (fresh or {}).get(key, torch.zeros(origin.shape))  # zero convolutions are fresh, too
    assert origin.source is not None, f"{key}: a plan with a missing source was not refused"
    value = origin.source.read(origin.key)
    if not origin.positions:
        return value.chunk(origin.of)[origin.index].reshape(origin.shape)
    cls, patches = value.float().split([1, value.shape[1] - 1], 1)
    grid, side = round(patches.shape[1] ** 0.5), round((origin.shape[1] - 1) ** 0.5)
    patches = patches.reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    scaled = nn.functional.interpolate(patches, scale_factor=(side + POSITION_OFFSET) / grid, mode="bicubic")
    return torch.cat([cls, scaled.flatten(2).transpose(1, 2)], 1)
