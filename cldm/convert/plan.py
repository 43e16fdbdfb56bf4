"""What goes where when a published checkpoint becomes a compositor folder: decided from names and shapes.

A plan is made before anything is read or written. Every key of the file is used or stands on the dead list,
and every weight of ours has an origin; otherwise there is no plan but an error that names the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import Dinov2Model

from cldm.convert.check import Origin, Problems, dead_of
from cldm.convert.keys import Piece, dinov2_name, original_pieces
from cldm.create import NetworkConfig, create_autoencoder, create_control, create_identity, create_unet
from ldm.weight_files import WeightFile

UNET, VAE, ENCODER, PROJECTOR = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.model.",
    "cond_stage_model.projector.",
)
CONTROLS: dict[str, dict[str, str]] = {  # prefix of each branch; without one it is copied from the UNet
    "bifrost": {"control_detail": "control_model_detail.", "control_depth": "control_model_depth."},
    "anydoor": {"control_detail": "control_model."},
    "sd21": {},
}
FRESH_CONTROL = ("controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_mid_block.")


@dataclass
class Plan:
    """parts: folder -> weight -> origin. dead: reason -> keys of the file."""

    parts: dict[str, dict[str, Origin]]
    dead: dict[str, list[str]] = field(default_factory=dict)


def empty_networks(network: NetworkConfig) -> dict[str, nn.Module]:
    """All networks of a compositor without memory for their weights, by folder."""
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        identity = create_identity(network)
        return {
            "unet": create_unet(network),
            "control_detail": create_control(network, 4),
            "control_depth": create_control(network, 3),
            "image_encoder": identity.encoder,
            "projector": identity.projector,
            "vae": create_autoencoder(network.autoencoder),
        }


def plan_compositor(
    kind: str, file: WeightFile, networks: Mapping[str, nn.Module], encoder: WeightFile | None = None
) -> Plan:
    """Plan for a released checkpoint of `kind`; encoder: a DINOv2 file or folder for files without one."""
    prefixes = {"unet": UNET, "vae": VAE, "projector": PROJECTOR, **CONTROLS[kind]}
    problems = Problems(file)
    parts = {}
    for name, model in networks.items():
        if name == "image_encoder":
            inside = ENCODER + "cls_token" in file.shapes
            if encoder is None and not inside:
                raise ValueError(
                    f"{file.path}: has no DINOv2 weights; name a file or folder that has them with --dinov2 "
                    "(dinov2_vitg14_pretrain.pth, or the folder of facebook/dinov2-giant)"
                )
            other = encoder if encoder is not None else file
            finder = problems if other is file else Problems(other)
            parts[name] = plan_encoder(model, other, ENCODER if other is file else "", finder)
            if other is not file:
                finder.finish(dead_of(finder))
                problems.allow(key for key in file.shapes if inside and is_encoder(key))
        elif name.startswith("control") and name not in CONTROLS[kind]:
            parts[name] = plan_copied_control(model, file, problems)
        elif name == "projector" and PROJECTOR + "weight" not in file.shapes and kind == "sd21":
            weights = model.state_dict()
            parts[name] = {key: Origin("fresh", tuple(value.shape)) for key, value in weights.items()}
        else:
            parts[name] = plan_network(model, file, prefixes[name], problems)
    dead = dead_of(problems)
    problems.finish(dead)
    return Plan(parts, dead)


def plan_single(model: nn.Module, file: WeightFile) -> Plan:
    """Plan for one vision transformer (DINOv2, DPT) from its released file, or from any known folder."""
    problems = Problems(file)
    plan = plan_encoder if isinstance(model, Dinov2Model) else plan_network
    weights = plan(model, file, "", problems)
    dead = dead_of(problems)
    problems.finish(dead)
    return Plan({"": weights}, dead)


def plan_network(model: nn.Module, file: WeightFile, prefix: str, problems: Problems) -> dict[str, Origin]:
    """Every weight of a network from its own keys in the file."""
    origins = {}
    is_linear = isinstance(model, nn.Linear)
    pieces = {key: Piece(key) for key in model.state_dict()} if is_linear else original_pieces(model)
    for key, value in model.state_dict().items():
        shape = tuple(value.shape)
        if key.startswith("conv_in.") and prefix.startswith("control_model"):
            origins[key] = Origin("zero", shape)
        else:
            origins[key] = problems.take(prefix, pieces[key], shape)
    return origins


def plan_copied_control(model: nn.Module, file: WeightFile, problems: Problems) -> dict[str, Origin]:
    """A branch that starts as a copy of the UNet's encoder, with fresh hint stack and zero convolutions."""
    origins = {}
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for key, piece in original_pieces(model).items():
        shape = shapes[key]
        if key.startswith("conv_in."):
            origins[key] = Origin("zero", shape)
        elif key.startswith(FRESH_CONTROL):
            origins[key] = Origin("fresh", shape)
        else:
            origins[key] = problems.take(UNET, piece, shape, how="copy")
    return origins


def plan_encoder(model: nn.Module, file: WeightFile, prefix: str, problems: Problems) -> dict[str, Origin]:
    """DINOv2 from its original names, or from a folder of transformers 4 or 5."""
    table = {}
    for key in file.shapes:
        if key.startswith(("embeddings.", "encoder.layer.", "layernorm.")):
            table[dinov2_name(key)] = key
    origins = {}
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for key, piece in original_pieces(model).items():
        shape = shapes[key]
        stored = table.get(piece)
        whole = table.get(Piece(piece.key))
        positions = piece.key == "pos_embed"
        if stored:
            origins[key] = problems.take("", Piece(stored), shape, positions=positions)
        else:
            found = Piece(whole, piece.index, piece.of) if whole else piece
            origins[key] = problems.take("" if whole else prefix, found, shape, positions=positions)
    return origins


def is_encoder(key: str) -> bool:
    """Whether a key belongs to the DINOv2 weights inside a checkpoint."""
    starts = tuple(
        ENCODER + name
        for name in ("cls_token", "pos_embed", "mask_token", "patch_embed.", "blocks.", "norm.")
    )
    return key.startswith(starts)
