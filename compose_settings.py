"""The settings of one composite, declared once for command line, YAML, recipes and notebooks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cldm.pretrained import is_complete
from datasets.fusion import MODES
from datasets.geometry import check_box01
from ldm.config import check_settings, setting

FULL_MODEL, TINY_MODEL = Path("models/bifrost"), Path("assets/tiny/compositor")
FULL_DEPTH, TINY_DEPTH = Path("models/depth"), Path("assets/tiny/depth")


@dataclass(frozen=True)
class ComposeSettings:
    """Everything that decides a composite. None where the model's own recommendation holds."""

    background: Path = setting(help="background picture")
    object: Path = setting(help="picture of the object")
    object_mask: Path | None = setting(
        None, help="mask of the object (white); default: alpha channel, else found by GrabCut or SAM"
    )
    box: tuple[float, float, float, float] | None = setting(
        None, help="where: x1,y1,x2,y2 as fractions of the background"
    )
    depth: tuple[float, ...] | None = setting(
        None, help="how far: d, or far,near; 1 = nearest point of the background"
    )
    mode: str = setting("place", choices=(*MODES, "draw"), help="draw is the published name of inpaint")
    target_mask: Path | None = setting(
        None, help="region of the background to replace, transfer to or inpaint (white)"
    )
    background_depth: Path | None = setting(
        None, help="depth map of the background, bright = near; default: estimated"
    )
    object_depth: Path | None = setting(
        None, help="depth map of the object, bright = near; default: a rounded body"
    )
    model: Path | None = setting(
        None, help=f"compositor folder; default: {FULL_MODEL} if complete, else {TINY_MODEL}"
    )
    depth_model: Path | None = setting(
        None, help=f"depth network folder; default: {FULL_DEPTH} if present, else {TINY_DEPTH}"
    )
    sam: Path | None = setting(None, help="SAM folder for cutting out the object")
    seed: int = setting(0, low=0, help="seed of the first sample; sample i uses seed + i")
    num_samples: int = setting(1, low=1, high=64, help="how many composites to paint")
    steps: int | None = setting(None, low=1, high=1000, help="sampling steps of a full run")
    guidance: float | None = setting(None, low=0.0, high=30.0, help="classifier-free guidance; 1 = off")
    scheduler: str | None = setting(None, help="ddim, unipc, dpm++, euler, ... or a diffusers class name")
    init: str | None = setting(
        None, choices=("noise", "paste"), help="start from noise or from the noised cut-out paste"
    )
    strength: float | None = setting(
        None, low=0.0, high=1.0, help="noise put on the paste; small = close to the paste"
    )
    detail: float | None = setting(
        None, low=0.0, high=1.0, help="share of the cut-out's own fine detail in the result"
    )
    detail_weight: float = setting(1.0, low=0.0, high=2.0, help="weight of the detail branch")
    depth_weight: float = setting(
        1.0, low=0.0, high=2.0, help="weight of the depth branch (the paper's lambda)"
    )
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    dtype: str = setting("auto", choices=("auto", "fp32", "fp16", "bf16"), help="number type of the networks")
    offload: bool = setting(False, help="keep only the running stage on the device, to save its memory")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.box is not None:
            check_box01(self.box, where="--box")
        if self.depth is not None:
            check_depth(self.depth)


def check_depth(depth: tuple[float, ...]) -> None:
    """Refuse a depth that is not d or far,near within [0, 1]."""
    ordered = len(depth) == 1 or (len(depth) == 2 and depth[0] <= depth[1])
    if not ordered or not all(0 <= value <= 1 for value in depth):
        given = ",".join(f"{value:g}" for value in depth)
        raise ValueError(
            f"--depth must be d or far,near with 0 <= far <= near <= 1 (1 = nearest), got {given}"
        )


def model_folder(settings: ComposeSettings) -> Path:
    """The compositor to use."""
    return settings.model or (FULL_MODEL if is_complete(FULL_MODEL) else TINY_MODEL)


def depth_folder(settings: ComposeSettings) -> Path:
    """The depth network to use."""
    return settings.depth_model or (FULL_DEPTH if (FULL_DEPTH / "config.json").is_file() else TINY_DEPTH)
