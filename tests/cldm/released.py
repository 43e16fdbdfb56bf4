"""Stand-ins for released checkpoints: full-size names and shapes, small files with weights made of names."""

import itertools
import re
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cldm.config import AutoencoderConfig, NetworkConfig
from cldm.convert.keys import original_pieces
from cldm.convert.plan import CONTROLS, ENCODER, PROJECTOR, UNET, VAE, empty_networks
from ldm.weight_files import WeightFile
from tests.conftest import ROOT

MANIFESTS = ROOT / "tests/fixtures/manifests"
PARTS = {  # released file -> prefix of each part
    "bifrost": {
        "schedule": "", "unet": UNET, "vae": VAE, "dinov2": ENCODER,
        "control_detail": "control_model_detail.", "control_depth": "control_model_depth.",
    },
    "anydoor": {
        "schedule": "", "unet": UNET, "vae": VAE, "dinov2": ENCODER, "control_detail": "control_model.",
    },
    "sd21": {"schedule": "", "unet": UNET, "vae": VAE, "text": ENCODER},
    "dinov2_vitg14": {"dinov2": ""},
}  # fmt: skip
PROJECTOR_SHAPES = {PROJECTOR + "weight": (1024, 1536), PROJECTOR + "bias": (1024,)}
GRID = 4  # side of the position embedding in small files

# Every kind of layer of the published networks, a few hundred thousand weights.
MINI = NetworkConfig(
    size=(32, 32),
    reference_size=28,
    block_channels=(32, 64),
    heads=(2, 4),
    attention=(True, False),
    norm_groups=8,
    token_width=24,
    hint_channels=(4, 8),
    identity_width=48,
    identity_layers=2,
    identity_heads=4,
    autoencoder=AutoencoderConfig("kl", (32, 64), 2, 4),
)


def manifest(released: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a released file at full size."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part, prefix in PARTS[released].items():
        text = (MANIFESTS / f"{part.split('_')[0]}.txt").read_text()
        for line in text.splitlines():
            pattern, _, size = line.partition(" ")
            shape = tuple(int(side) for side in size.split("x") if side)
            shapes.update({prefix + key: shape for key in expand(pattern)})
    if released in ("bifrost", "anydoor"):
        shapes.update(PROJECTOR_SHAPES)
    if released == "bifrost":
        shapes["control_model_depth.input_hint_block.0.weight"] = (16, 3, 3, 3)
    return shapes


def expand(pattern: str) -> list[str]:
    """a.{0-2,5}.{weight,bias} -> all eight keys."""
    choices = []
    for index, text in enumerate(re.split(r"\{(.*?)\}", pattern)):
        choices.append([text] if index % 2 == 0 else [one for part in text.split(",") for one in span(part)])
    return ["".join(parts) for parts in itertools.product(*choices)]


def span(text: str) -> list[str]:
    ends = re.fullmatch(r"(\d+)-(\d+)", text)
    return [str(number) for number in range(int(ends[1]), int(ends[2]) + 1)] if ends else [text]


def named_weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """Weights that follow from the name of their key."""
    x = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        fan = int(np.prod(shape[1:]))
        x = x * (0.7 / np.sqrt(fan)) if key.endswith("weight") and fan > 1 else x * 0.02
    else:
        x = 1 + 0.1 * x if key.endswith((".weight", ".gamma")) else 0.05 * x
    return torch.from_numpy(np.asarray(x, np.float32))


def original_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a network in its original file."""
    if isinstance(model, nn.Linear):
        return {key: tuple(value.shape) for key, value in model.state_dict().items()}
    shapes: dict[str, tuple[int, ...]] = {}
    weights = model.state_dict()
    for key, piece in original_pieces(model).items():
        first, *rest = weights[key].shape
        shapes[piece.key] = (first * piece.of, *rest, *(1,) * piece.ones)
    if "pos_embed" in shapes:
        shapes["pos_embed"] = (1, GRID * GRID + 1, shapes["pos_embed"][2])
    return shapes


def checkpoint(kind: str, network: NetworkConfig = MINI) -> dict[str, Tensor]:
    """A small released file: every key of its networks, weights from their names, schedule buffers.

    The same tensors at every call, which nobody may change; the dictionary is the caller's.
    """
    return dict(_made(kind, network))


@lru_cache(maxsize=3)
def _made(kind: str, network: NetworkConfig) -> dict[str, Tensor]:
    prefixes = {"unet": UNET, "vae": VAE, **CONTROLS[kind]}
    if kind != "sd21":
        prefixes |= {"image_encoder": ENCODER, "projector": PROJECTOR}
    networks = empty_networks(network)
    weights = {"betas": torch.zeros(1000), "logvar": torch.zeros(1000)}
    for name, prefix in prefixes.items():
        for key, shape in original_shapes(networks[name]).items():
            weights[prefix + key] = named_weight(prefix + key, shape)
    return weights


def dinov2_file(network: NetworkConfig = MINI) -> dict[str, Tensor]:
    """A small original DINOv2 file."""
    shapes = original_shapes(empty_networks(network)["image_encoder"])
    return {key: named_weight(key, shape) for key, shape in shapes.items()}


def shapes_only(shapes: dict[str, tuple[int, ...]]) -> WeightFile:
    """A file of which only names and shapes are known."""

    def refuse(key: str) -> Tensor:
        raise AssertionError(f"a plan must not read {key}")

    return WeightFile(Path("full.ckpt"), shapes, dict.fromkeys(shapes, torch.float32), refuse)
