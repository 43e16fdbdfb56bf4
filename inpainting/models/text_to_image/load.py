"""An inpainter folder -> networks: the stock layout, the published clone, the patched clone, the tiny one.

    unet/ vae/ text_encoder/ tokenizer/ scheduler/ [inpainter.json] [model_index.json, not read]

The published system patched the clone's JSON files with names of its own blocks; their weights are stock, so
the names are mapped back. Every weight of every file is used, or loading stops.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from inpainting.models.text_to_image.card import InpainterConfig
from inpainting.models.text_to_image.lora import load_lora, lora_file
from inpainting.models.text_to_image.rca import install_rca
from ldm.checkpoints import build, folder_written_whole, load_strict, save_part
from ldm.files import first_line, read_json
from ldm.latents import AUTOENCODERS, STATISTICS, LatentSpace
from ldm.settings.config import Layer, merge_layers, to_plain
from ldm.weight_files import WeightFile, open_weights

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)

CARD = "inpainter.json"
PARTS = ("unet", "text_encoder", "tokenizer", "scheduler")  # and the autoencoder, where the card says
WEIGHT_FILES = ("diffusion_pytorch_model", "model", "pytorch_model")
SUFFIXES = (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")
PATCH = "Freestyle"  # prefix of the block names in the published JSON replacement
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
CHANNELS = 9  # noisy latents 4, mask 1, latents of the masked image 4


@dataclass(eq=False)
class Inpainter:
    """The networks of one inpainting model, in eval mode on one device.

    lora: the file that was merged into the UNet's weights, if any
    """

    unet: UNet2DConditionModel
    latent_space: LatentSpace
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    card: InpainterConfig
    folder: Path | None = None
    lora: Path | None = None

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def resolution(self) -> int:
        """Shorter side in pixels that the model was trained at."""
        return self.card.resolution or self.unet.config.sample_size * self.latent_space.factor

    def to(self, device: torch.device | str) -> Inpainter:
        for network in (self.unet, self.latent_space, self.text_encoder):
            network.to(device)
        return self


def load_inpainter(
    folder: Path | str,
    lora: Path | str | None = None,
    *,
    lora_scale: float = 1.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Inpainter:
    """Load a model folder, merge a LoRA in the released format, switch to rectified attention.

    lora: a file, or the folder that holds pytorch_lora_weights.safetensors
    Raises ValueError naming the folder, file or key that is missing, unexpected or of another shape.
    """
    folder = Path(folder)
    card = load_card(folder)
    chosen = lora_file(Path(lora)) if lora else lora_file(folder / card.lora) if card.lora else None
    unet = load_network(UNet2DConditionModel, folder / "unet", dtype, _stock_blocks)
    if unet.config.in_channels != CHANNELS:
        raise ValueError(
            f"{folder}/unet: takes {unet.config.in_channels} channels, an inpainting model {CHANNELS}"
        )
    if chosen is not None:
        load_lora(unet, chosen, lora_scale)
    if card.notice:
        log.info("%s", card.notice)
    inpainter = Inpainter(
        install_rca(unet.requires_grad_(False).eval()),
        _load_latent_space(folder / card.vae, dtype).eval(),
        load_network(CLIPTextModel, folder / "text_encoder", dtype),
        load_tokenizer(folder / "tokenizer"),
        read_json(folder / "scheduler" / "scheduler_config.json"),
        card,
        folder,
        chosen,
    )
    return inpainter.to(device)


def load_card(folder: Path) -> InpainterConfig:
    """The card of a complete folder, without the weights; default values where it has none."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such model folder")
    path = folder / CARD
    card = merge_layers(InpainterConfig, [Layer(read_json(path), f"{path}: ")] if path.is_file() else [])
    absent = [part for part in (*PARTS, card.vae) if not (folder / part).is_dir()]
    if absent:
        raise ValueError(f"{folder}: not a complete inpainting model; missing {', '.join(absent)}")
    return card


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder}: not a CLIP tokenizer ({first_line(error)})") from None


def load_network(
    kind: type[Module],
    folder: Path,
    dtype: torch.dtype,
    change: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Module:
    """One network, strictly, from .safetensors or else .bin, with weight names of older releases mapped.

    change: applied to config.json
    """
    config = change(read_json(folder / "config.json"))
    with init_empty_weights(include_buffers=False):
        model = build(kind, config, folder)
    source = open_weights(weight_file(folder))
    names = _names(source, set(model.state_dict()))
    weights = {}
    for name, key in names.items():
        value = source.read(key)
        weights[name] = value.to(dtype) if value.is_floating_point() else value
    load_strict(model, weights, folder, assign=True)
    return model.eval()


def weight_file(folder: Path) -> Path:
    """The single file by its usual names, full precision and safetensors first; else the folder of shards."""
    for suffix in SUFFIXES:
        for stem in WEIGHT_FILES:
            if (folder / (stem + suffix)).is_file():
                return folder / (stem + suffix)
    return folder


def _names(source: WeightFile, wanted: set[str]) -> dict[str, str]:
    """Name in the model -> name in the file."""
    names = {}
    for key in source.shapes:
        if key.endswith("embeddings.position_ids"):  # a buffer that older releases stored
            continue
        name = re.sub(r"(?<=\.attentions\.\d\.)(query|key|value|proj_attn)\b", _modern, key)
        if name not in wanted:  # the text encoder lost or got this prefix between versions
            forms = (name.removeprefix("text_model."), f"text_model.{name}", name)
            name = next((form for form in forms if form in wanted), name)
        names[name] = key
    return names


def _modern(match: re.Match[str]) -> str:
    return OLD_ATTENTION[match[1]]


def _stock_blocks(config: dict[str, Any]) -> dict[str, Any]:
    """Block names of the published JSON replacement -> those of diffusers."""
    changed = dict(config)
    for key in ("down_block_types", "up_block_types"):
        if key in config:
            changed[key] = [name.removeprefix(PATCH) for name in config[key]]
    if config.get("mid_block_type"):
        changed["mid_block_type"] = config["mid_block_type"].removeprefix(PATCH)
    return changed


def _load_latent_space(folder: Path, dtype: torch.dtype) -> LatentSpace:
    kind = read_json(folder / "config.json").get("_class_name")
    if kind not in AUTOENCODERS:
        allowed = ", ".join(AUTOENCODERS)
        raise ValueError(f"{folder}/config.json: unknown autoencoder {kind!r}; allowed: {allowed}")
    vae = load_network(AUTOENCODERS[kind], folder, dtype)
    path = folder / STATISTICS
    statistics = read_json(path) if path.is_file() else {}
    return LatentSpace(vae, statistics.get("mean"), statistics.get("std"))


def save_inpainter(model: Inpainter, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the whole folder, or nothing; an autoencoder that the card places elsewhere is not written."""
    with folder_written_whole(folder) as partial:
        save_part(model.unet, partial / "unet", dtype)
        save_part(model.text_encoder, partial / "text_encoder", dtype)
        if model.card.vae == "vae":
            model.latent_space.save_pretrained(partial / "vae", dtype)
        model.tokenizer.save_pretrained(partial / "tokenizer")
        (partial / "scheduler").mkdir()
        text = json.dumps(model.scheduler_config, indent=1) + "\n"
        (partial / "scheduler" / "scheduler_config.json").write_text(text, encoding="utf-8")
        (partial / CARD).write_text(json.dumps(to_plain(model.card), indent=1) + "\n", encoding="utf-8")
