"""An inpainter folder -> networks: unet/ vae/ text_encoder/ tokenizer/ scheduler/ [inpainter.json].

Every weight of every file is used, or loading stops. The released format of a LoRA is
`unet.<layer>.lora.down.weight` and `.lora.up.weight`; peft's names, those of attention processors before
diffusers 0.22 (`processor.to_q_lora`) and names without `unet.` are read too.
"""

import json
import logging
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import convert_unet_state_dict_to_peft
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel

from inpainting.models.text_to_image.config import InpainterConfig
from inpainting.models.text_to_image.rca import install_rca
from ldm.checkpoints import load_pretrained, loading
from ldm.device import pick_device, pick_dtype
from ldm.files import file_sha256, first_line, hash_folder, read_json
from ldm.latents import LatentSpace
from ldm.registry.models import existing_folder, how_to_get
from ldm.settings.config import read_config
from ldm.weight_files import open_weights, weight_files

Module = TypeVar("Module", bound=nn.Module)

INPAINTER_FILE = "inpainter.json"
PARTS = ("unet", "text_encoder", "tokenizer", "scheduler")  # and the autoencoder, where the config says
PATCH = "Freestyle"  # prefix of the block names in the published JSON replacement
BLOCKS = ("down_block_types", "mid_block_type", "up_block_types")
CHANNELS = 9  # noisy latents 4, mask 1, latents of the masked image 4
LORA_FILE = "pytorch_lora_weights.safetensors"
KEY = re.compile(r"unet\.(.+)\.lora_([AB])\.weight")
HALVES = {"A": "down", "B": "up"}  # as messages call them
ADAPTER = "inpainting"


@dataclass(eq=False)
class Inpainter:
    """The networks of one inpainting model, in eval mode on one device."""

    unet: UNet2DConditionModel
    latent_space: LatentSpace
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    config: InpainterConfig
    folder: Path | None = None
    lora: Path | None = None  # the file that was merged into the UNet's weights

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def resolution(self) -> int:
        """Shorter side in pixels that the model was trained at."""
        return self.config.resolution or self.unet.config.sample_size * self.latent_space.factor

    def to(self, device: torch.device | str) -> "Inpainter":
        for network in (self.unet, self.latent_space, self.text_encoder):
            network.to(device)
        return self


@loading()
def load_inpainter(
    folder: Path | str,
    lora: Path | str | None = None,
    *,
    lora_scale: float = 1.0,
    device: torch.device | str = "auto",
    dtype: torch.dtype | str = "auto",
) -> Inpainter:
    """Load a model folder, merge a LoRA in the released format, switch to rectified attention.

    device, dtype: also by name, see `ldm.device`. lora: a file, or its folder
    Raises ValueError naming the folder, file or key that is missing, unexpected or of another shape.
    """
    folder, device = Path(folder), pick_device(str(device))
    dtype = pick_dtype(dtype, device) if isinstance(dtype, str) else dtype
    config = read_inpainter_config(folder)
    named = lora or (folder / config.lora if config.lora else None)
    file = lora_file(Path(named)) if named else None
    blocks = read_json(folder / "unet" / "config.json")
    changes = {key: stock(blocks[key]) for key in BLOCKS if key in blocks}
    unet = load_network(UNet2DConditionModel, folder / "unet", dtype, **changes)
    if (channels := unet.config.in_channels) != CHANNELS:
        raise ValueError(f"{folder}/unet: takes {channels} channels, an inpainting model {CHANNELS}")
    if file is not None:  # W + scale alpha / r (up down), merged, so that the layers stay stock ones
        weights, metadata = read_lora(unet, file, dtype)
        unet.load_lora_adapter(weights, prefix="unet", adapter_name=ADAPTER, metadata=metadata)
        unet.fuse_lora(lora_scale=lora_scale)
        unet.unload_lora()
    if config.notice:
        logging.getLogger(__name__).info("%s", config.notice)
    space = LatentSpace.from_pretrained(folder / config.vae, dtype, load_network)
    encoder = load_network(CLIPTextModel, folder / "text_encoder", dtype)
    tokenizer = load_tokenizer(folder / "tokenizer")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    rectified = install_rca(unet.requires_grad_(False))
    for network in (rectified, space) if device.type == "cpu" and dtype is torch.bfloat16 else ():
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions: 1.2 times faster
    return Inpainter(rectified, space, encoder, tokenizer, scheduler, config, folder, file).to(device)


def read_inpainter_config(folder: Path) -> InpainterConfig:
    """The configuration of a complete folder, without the weights; default values where it has none."""
    config = read_config(InpainterConfig, existing_folder(folder) / INPAINTER_FILE, InpainterConfig())
    absent = [part for part in (*PARTS, config.vae) if not (folder / part).is_dir()]
    if absent:
        raise ValueError(f"{folder}: not a complete inpainting model; missing {', '.join(absent)}")
    return config


def stock(block: Any) -> Any:
    """Block names of the published JSON files, whose weights are stock -> those of diffusers."""
    if isinstance(block, str):
        return block.removeprefix(PATCH)
    return block and [stock(name) for name in block]


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    existing_folder(folder)
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder}: not a CLIP tokenizer ({first_line(error)})") from None


def load_network(kind: type[Module], folder: Path, dtype: torch.dtype, **changes: Any) -> Module:
    """One network, strictly, from .safetensors or else .bin. changes: entries of config.json"""
    variant = weight_files(folder)[0].stem.partition(".")[2].partition("-")[0] or None  # such as fp16
    changes["dtype" if issubclass(kind, PreTrainedModel) else "torch_dtype"] = dtype
    return load_pretrained(kind, folder, exact=True, local_files_only=True, variant=variant, **changes)


def weights_of(model: Inpainter) -> dict[str, Any]:
    """SHA-256 of the weight files that were read; empty for a model that was made in memory."""
    if model.folder is None:
        return {}
    hashes: dict[str, Any] = {"lora": file_sha256(model.lora)} if model.lora else {}
    for part in ("unet", "text_encoder", model.config.vae):
        first, *more = weight_files(model.folder / part)
        hashes[part] = hash_folder(model.folder / part) if more else file_sha256(first)
    return hashes


def lora_file(path: Path) -> Path:
    if path.is_dir():  # .bin: as diffusers wrote before 0.20
        files = [path / LORA_FILE, (path / LORA_FILE).with_suffix(".bin")]
        path = next((one for one in files if one.is_file()), files[0])
    if not path.is_file():
        raise ValueError(f"{path}: no such LoRA file{how_to_get(path)}")
    return path


def read_lora(unet: nn.Module, file: Path, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict | None]:
    """The weights of a LoRA under peft's names, and the settings that its file states, such as unet.r.

    None: it states none, and alpha is the rank. ValueError where the weights do not fit the UNet.
    """
    source = open_weights(file)
    weights = convert_unet_state_dict_to_peft({key: source.read(key).to(dtype) for key in source.shapes})
    header: dict[str, str] = {}
    if file.suffix == ".safetensors":  # newer diffusers writes rank and alpha there
        with safe_open(file, "pt") as opened:
            header = opened.metadata() or {}
    metadata = json.loads(header.get("lora_adapter_metadata") or "null")
    if not any(key.startswith("unet.") for key in weights):  # of a UNet alone
        weights = {f"unet.{key}": value for key, value in weights.items()}
        metadata = metadata and {f"unet.{key}": value for key, value in metadata.items()}
    check_lora(unet, weights, file)
    return weights, metadata


def check_lora(unet: nn.Module, weights: dict[str, Tensor], where: Path | str) -> None:
    """Raise ValueError unless every weight, named as by peft, has its place and its other half."""
    layers = dict(unet.named_modules())
    halves: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    strange = []
    for key, value in weights.items():
        match = KEY.fullmatch(key)
        if match is None or not isinstance(layers.get(match[1]), (nn.Linear, nn.Conv2d)):
            strange.append(key)
        else:
            halves[match[1]][HALVES[match[2]]] = tuple(value.shape)
    if strange or not weights:
        named = f"{len(strange)} of {len(weights)} keys fit no layer of this UNet: {strange[:3]}"
        raise ValueError(f"{where}: not a LoRA of this model; {named if weights else 'it is empty'}")
    for name, shapes in halves.items():
        tall, wide = layers[name].weight.shape[:2]
        if set(shapes) != {"down", "up"}:
            raise ValueError(f"{where}: layer {name} has only its {next(iter(shapes))} half")
        up, down = shapes["up"], shapes["down"]
        if down[1] != wide or up[:2] != (tall, down[0]):
            raise ValueError(f"{where}: layer {name} is {tall} x {wide}, its LoRA {up} x {down}")
