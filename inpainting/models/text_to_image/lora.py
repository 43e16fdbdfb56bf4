"""LoRA files of the inpainter, read strictly: every key finds its layer, or nothing is loaded.

The released format names layers as `unet.<layer>.lora.down.weight` and `.lora.up.weight`; peft's own names
(`lora_A`, `lora_B`) are read too.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

from diffusers import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn

from ldm.weight_files import open_weights

FILE_NAME = "pytorch_lora_weights.safetensors"
KEY = re.compile(r"unet\.(?P<layer>.+)\.lora(?:\.(?P<half>down|up)|_(?P<peft>[AB]))\.weight")
ADAPTER = "inpainting"


def lora_file(path: Path) -> Path:
    """The file at `path`, which may be the folder that holds it under its released name."""
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file}: no such LoRA file")
    return file


def load_lora(unet: UNet2DConditionModel, path: Path, scale: float = 1.0) -> None:
    """Add a LoRA to the weights of the UNet, W + scale alpha / r (up down); the layers stay stock ones.

    alpha is r, as in the released file, unless the file's header says otherwise.
    Raises ValueError naming keys that fit no layer, halves without their other half and wrong shapes.
    """
    file = lora_file(path)
    source = open_weights(file)
    weights = {key: source.read(key).to(unet.dtype) for key in source.shapes}
    check_lora(unet, weights, file)
    header: dict[str, str] = {}
    if file.suffix == ".safetensors":  # newer diffusers writes rank and alpha there
        with safe_open(file, "pt") as opened:
            header = opened.metadata() or {}
    text = header.get("lora_adapter_metadata")
    metadata = json.loads(text) if text else None
    unet.load_lora_adapter(weights, prefix="unet", adapter_name=ADAPTER, metadata=metadata)
    unet.fuse_lora(lora_scale=scale)
    unet.unload_lora()


def check_lora(unet: nn.Module, weights: dict[str, Tensor], where: Path | str) -> None:
    """Raise ValueError unless every weight has its place and every layer both halves of one rank."""
    layers = dict(unet.named_modules())
    halves: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    strange = []
    for key, value in weights.items():
        match = KEY.fullmatch(key)
        if match is None or not isinstance(layers.get(match["layer"]), (nn.Linear, nn.Conv2d)):
            strange.append(key)
            continue
        half = match["half"] or {"A": "down", "B": "up"}[match["peft"]]
        halves[match["layer"]][half] = tuple(value.shape)
    if strange or not weights:
        named = f"{len(strange)} of {len(weights)} keys fit no layer of this UNet: {strange[:3]}"
        raise ValueError(f"{where}: not a LoRA of this model; {named if weights else 'it is empty'}")
    for name, shapes in halves.items():
        wide, tall = layers[name].weight.shape[1], layers[name].weight.shape[0]
        if set(shapes) != {"down", "up"}:
            raise ValueError(f"{where}: layer {name} has only its {next(iter(shapes))} half")
        rank = shapes["down"][0]
        if shapes["down"][1] != wide or shapes["up"][:2] != (tall, rank):
            raise ValueError(
                f"{where}: layer {name} is {tall} x {wide}, its LoRA {shapes['up']} x {shapes['down']}"
            )
