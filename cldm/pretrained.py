"""A compositor folder: one sub-folder per network in `save_pretrained` layout, and a card.

    unet/ control_detail/ control_depth/ image_encoder/ projector/ vae/ scheduler/ compositor.json

The card says how images were prepared in training and with which sampler settings the model looks right,
so a small model and the full-size one differ in files, never in code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel

from cldm.conditioner import IdentityEncoder
from cldm.model import Compositor
from datasets.inputs import PairOptions
from datasets.pasteback import DETAIL_SCALE
from ldm.checkpoints import folder_written_whole, load_part, save_part
from ldm.denoise import STEP_RULES
from ldm.files import read_json
from ldm.latents import LatentSpace
from ldm.settings.config import Layer, check_settings, merge_layers, setting, to_plain

CARD = "compositor.json"
PARTS = ("unet", "control_detail", "control_depth", "image_encoder", "projector", "vae", "scheduler")


@dataclass(frozen=True)
class Sampling:
    """Sampler settings that suit a model; a user's own settings override them one by one."""

    scheduler: str = setting("unipc", help="scheduler name")
    steps: int = setting(20, low=1, high=1000, help="sampling steps of a full run")
    guidance: float = setting(5.0, low=0.0, high=30.0, help="classifier-free guidance; 1 = off")
    init: str = setting(
        "noise", choices=("noise", "paste"), help="start from noise or from the noised cut-out paste"
    )
    strength: float = setting(
        1.0, low=0.0, high=1.0, help="noise put on the paste; small = close to the paste"
    )
    detail: float = setting(
        0.0, low=0.0, high=1.0, help="share of the result that is the cut-out itself, relit"
    )
    detail_scale: float = setting(
        DETAIL_SCALE, low=0.01, high=1.0, help="what counts as fine, as a fraction of the object's size"
    )
    step_rule: str = setting(
        "exact", choices=STEP_RULES, help="published: every (1000 // steps)-th timestep, often one step more"
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class CompositorConfig:
    """What a user and the pipeline must know of a compositor besides its weights."""

    name: str = setting("compositor", help="short name for logs and recipes")
    notice: str = setting("", help="printed once when the model is loaded")
    pair: PairOptions = setting(PairOptions(), help="pre-processing that the model was trained with")
    sampling: Sampling = setting(Sampling(), help="default sampler settings")


def save_compositor(
    model: Compositor, card: CompositorConfig, folder: Path, dtype: torch.dtype = torch.float16
) -> None:
    """Write the whole folder, or nothing."""
    with folder_written_whole(folder) as partial:
        save_part(model.unet, partial / "unet", dtype)
        save_part(model.detail.net, partial / "control_detail", dtype)
        save_part(model.depth.net, partial / "control_depth", dtype)
        model.identity.save_pretrained(partial, dtype)
        model.latent_space.save_pretrained(partial / "vae", dtype)
        DDIMScheduler.from_config(model.scheduler_config).save_pretrained(partial / "scheduler")
        (partial / CARD).write_text(json.dumps(to_plain(card), indent=1) + "\n", encoding="utf-8")


def is_complete(folder: Path) -> bool:
    """Whether all parts of a compositor are present (their content is checked on loading)."""
    return (folder / CARD).is_file() and all((folder / part).is_dir() for part in PARTS)


def require_complete(folder: Path) -> None:
    """Refuse, naming what is missing, a folder that is not a whole compositor."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such model folder")
    absent = [part for part in PARTS if not (folder / part).is_dir()]
    absent += [] if (folder / CARD).is_file() else [CARD]
    if absent:
        raise ValueError(f"{folder}: not a complete compositor folder; missing {', '.join(absent)}")


def load_compositor(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Compositor, CompositorConfig]:
    """A compositor on the CPU in eval mode, strictly loaded.

    Raises ValueError naming the folder or file and what is missing, unexpected or mis-shaped.
    """
    card = load_card(folder)
    model = Compositor(
        load_part(UNet2DConditionModel, folder / "unet", dtype),
        load_part(ControlNetModel, folder / "control_detail", dtype),
        load_part(ControlNetModel, folder / "control_depth", dtype),
        IdentityEncoder.from_pretrained(folder, dtype),
        LatentSpace.from_pretrained(folder / "vae", dtype),
        scheduler_settings(folder / "scheduler"),
    )
    return model.eval(), card


def scheduler_settings(folder: Path) -> dict:
    """The noise schedule's config."""
    return read_json(folder / "scheduler_config.json")


def load_card(folder: Path) -> CompositorConfig:
    """The card alone, without the weights, of a complete folder."""
    require_complete(folder)
    return merge_layers(CompositorConfig, [Layer(read_json(folder / CARD), f"{folder / CARD}: ")])
