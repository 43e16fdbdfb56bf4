"""The configuration of a model folder, and what a user may choose when painting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ldm.settings.config import CheckedSettings, setting

LAYOUTS = ("coverage", "nearest")
ENCODINGS = ("joint", "separate")


@dataclass(frozen=True)
class PaintOptions(CheckedSettings):
    """How to paint; None where the model's own recommendation holds."""

    scheduler: str | None = setting(None, help="sampler by name; without it the model's")
    steps: int | None = setting(None, low=1, high=1000, help="sampling steps; without it the model's")
    guidance: float | None = setting(
        None, low=0.0, high=30.0, help="classifier-free guidance, 1 = off; without it the model's"
    )
    strength: float = setting(
        1.0, low=0.01, high=1.0, help="noise put on the image; below 1 its colours and shapes are partly kept"
    )
    negative: str = setting("", help="what no region should show; a region's own negative prompt comes first")
    rca: bool = setting(True, help="rectified cross-attention; off = all prompts joined, read everywhere")
    layout: str | None = setting(
        None,
        choices=LAYOUTS,
        help="cells of a region at coarse resolutions: all it touches, or by top-left pixel (published)",
    )
    encoding: str | None = setting(
        None, choices=ENCODINGS, help="one sequence for all prompts (published), or one for each prompt"
    )
    soft_edges: float = setting(
        0.0, low=0.0, high=256.0, help="pixels over which a prompt fades into neighbouring regions"
    )
    resolution: int | None = setting(
        None, low=16, high=4096, help="shorter side in pixels at which to paint; without it the model's"
    )
    paste_back: bool = setting(
        True, help="keep every pixel outside the masks; off = the whole decoded image (published)"
    )
    feather: float = setting(
        0.005, low=0.0, high=0.5, help="blend inside the masks' edge, as a fraction of the shorter side"
    )


DEFAULTS = PaintOptions()
# The published system, switch by switch.
COMPAT = PaintOptions(layout="nearest", encoding="joint", paste_back=False)


@dataclass(frozen=True)
class Recommended(CheckedSettings):
    """Sampler settings that suit a model. Published: the sampler of the model folder, 50 steps, 7.5."""

    scheduler: str = setting("", help="sampler by name; empty = the class that scheduler_config.json names")
    steps: int = setting(50, low=1, high=1000, help="sampling steps")
    guidance: float = setting(7.5, low=0.0, high=30.0, help="classifier-free guidance, 1 = off")


@dataclass(frozen=True)
class InpainterConfig(CheckedSettings):
    """`inpainter.json` of a model folder; a stock Stable Diffusion folder has none and gets these values."""

    name: str = setting("inpainter", help="short name for logs and recipes")
    notice: str = setting("", help="logged once when the model is loaded")
    vae: str = setting("vae", help="folder of the autoencoder, relative to the model folder")
    lora: str = setting("", help="LoRA that belongs to the model, relative to its folder; empty = none")
    resolution: int = setting(0, low=0, high=4096, help="shorter side in training; 0 = as the UNet says")
    layout: str = setting("coverage", choices=LAYOUTS, help="default layout of regions")
    encoding: str = setting("joint", choices=ENCODINGS, help="how prompts were encoded in training")
    sampling: Recommended = setting(Recommended(), help="default sampler settings")


@dataclass(frozen=True)
class BackboneFiles(CheckedSettings):
    """Files of the metric models. `python -m ldm.registry pull NAME` gets them."""

    inception: Path = setting(
        Path("models/inception_fid/pt_inception-2015-12-05-6726825d.pth"), help="Inception-v3 of FID"
    )
    squeezenet: Path = setting(
        Path("models/squeezenet_lpips/squeezenet1_1-b8a52dc0.pth"), help="SqueezeNet 1.1 of LPIPS"
    )
    clip: Path = setting(Path("models/clip_vit_base_patch32"), help="CLIP folder of CLIPSim")
    clip_iqa: Path = setting(
        Path("models/clip_iqa/RN50.pt"),
        help="CLIP of CLIP-IQA: OpenAI's RN50.pt (published), or a CLIP folder",
    )
