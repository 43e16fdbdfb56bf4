"""The configuration of a model folder, and what a user may choose when painting."""

from dataclasses import dataclass

from inpainting.models.text_to_image.rca import LAYOUTS
from inpainting.tokens import ENCODINGS
from ldm.settings.config import CheckedSettings, setting


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
