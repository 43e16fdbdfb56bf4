"""The settings of one composite, for command line, YAML, recipes and notebooks, and the networks they name.

A model folder that is not given is the full-size one below `models/` (or below the folder that BIFROST_MODELS
names) where it is there, else the one of the bundle in `assets/tiny`.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cldm.model import Compositor
from cldm.pretrained import (
    PRESETS,
    CompositorConfig,
    load_compositor,
    load_compositor_config,
    missing_parts,
)
from datasets.fusion import ALIASES, MODES
from datasets.geometry import check_box01
from ldm.device import pick_device, pick_dtype
from ldm.experts.depth import DepthEstimator
from ldm.experts.detect import Detector
from ldm.latents import scheduler_class
from ldm.registry.models import FULL_DEPTH, TINY_DEPTH, depth_folder, resolve_model_path
from ldm.settings.config import flag_name, setting
from llava_bifrost.choice import GEOMETRIC, LocatorOptions
from llava_bifrost.language.instruction import parse_instruction
from llava_bifrost.locator import Locator, load_locator

logger = logging.getLogger(__name__)

FULL_MODEL, TINY_MODEL = Path("models/bifrost"), Path("assets/tiny/compositor")
DEPTH_MODES = ("place", "replace")  # the object is put into the depth map, and nearer objects hide it
INPUT_FILES = ("background", "object", "object_mask", "target_mask", "background_depth", "object_depth")


@dataclass(frozen=True)
class ComposeSettings(LocatorOptions):
    """Everything that decides a composite. None where the model's own recommendation holds."""

    background: Path = setting(help="background image, any size")
    object: Path = setting(help="image of the object")
    object_mask: Path | None = setting(
        None, help="mask of the object (white); without it the alpha channel, else SAM or GrabCut finds it"
    )
    box: tuple[float, float, float, float] | None = setting(
        None, help="where: x1,y1,x2,y2 as fractions of the background; without it the box of the target mask"
    )
    depth: tuple[float, ...] | None = setting(
        None,
        help="how far: d, or far,near, in [0, 1], 1 = nearest point of the background; "
        "without it the ground at the bottom edge of the box",
    )
    instruction: str | None = setting(
        None, help='where, as a sentence instead of --box: "Place the dog behind the sofa"'
    )
    mode: str = setting(
        "place",
        choices=(*MODES, *ALIASES),
        help="place: stand in the scene; replace: instead of what the target mask shows; id-transfer: "
        "another identity in its silhouette; inpaint (published name: draw): paint the target mask anew",
    )
    target_mask: Path | None = setting(
        None, help="region of the background to replace, transfer to or inpaint (white)"
    )
    invert_target_mask: bool = setting(False, help="the black part of the target mask is painted")
    background_depth: Path | None = setting(
        None, help="depth map of the background, any resolution, bright = near; without it estimated"
    )
    object_depth: Path | None = setting(
        None, help="depth map of the object, bright = near; without it a rounded body"
    )
    model: Path | None = setting(
        None,
        help="compositor folder; "
        f"without it {FULL_MODEL.as_posix()} if complete, else {TINY_MODEL.as_posix()}",
    )
    depth_model: Path | None = setting(
        None,
        help="depth network folder (DPT or Depth Anything); "
        f"without it {FULL_DEPTH.as_posix()} if present, else {TINY_DEPTH.as_posix()}",
    )
    compat: str | None = setting(
        None,
        choices=tuple(PRESETS),
        help="compose as the published system does: its pre-processing, DDIM, paste of the whole crop",
    )
    sam: Path | None = setting(None, help="SAM folder, used to cut out the object")
    seed: int = setting(0, low=0, high=2**32 - 1, help="seed of the first sample; sample i uses seed + i")
    num_samples: int = setting(1, low=1, high=64, help="how many composites to paint")
    steps: int | None = setting(
        None, low=1, high=1000, help="sampling steps of a full run; without it the model's own"
    )
    guidance: float | None = setting(
        None, low=0, high=30, help="classifier-free guidance, 1 = off; without it the model's own"
    )
    scheduler: str | None = setting(
        None, help="ddim, unipc, dpm++, euler, ... or a diffusers class name; without it the model's own"
    )
    init: str | None = setting(
        None,
        choices=("noise", "paste"),
        help="start from noise or from the noised cut-out paste; without it the model's own",
    )
    strength: float | None = setting(
        None, low=0, high=1, help="noise put on the paste, 0 = the paste itself; without it the model's own"
    )
    detail: float | None = setting(
        None,
        low=0,
        high=1,
        help="fraction of the result that is the cut-out itself, relit; without it the model's own",
    )
    detail_scale: float | None = setting(
        None,
        low=0.01,
        high=1,
        help="what counts as fine detail, fraction of the object's size; without it the model's own",
    )
    detail_weight: float = setting(1.0, low=0, high=2, help="weight of the detail branch")
    depth_weight: float = setting(1.0, low=0, high=2, help="weight of the depth branch (the paper's lambda)")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    dtype: str = setting("auto", choices=("auto", "fp32", "fp16", "bf16"), help="precision of the networks")
    offload: bool = setting(False, help="keep only the running stage on the device, to save its memory")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scheduler is not None:
            scheduler_class(self.scheduler)
        if self.box is not None:
            check_box01(self.box, where="--box")
        if (depth := self.depth) is not None:
            ordered = len(depth) == 1 or (len(depth) == 2 and depth[0] <= depth[1])
            if not ordered or not all(0 <= value <= 1 for value in depth):
                given = ",".join(f"{value:g}" for value in depth) or "nothing"
                raise ValueError(
                    f"--depth must be d or far,near with 0 <= far <= near <= 1 (1 = nearest), got {given}"
                )
        if self.instruction is None:
            if self.target_mask is None and self.plain_mode in ("id-transfer", "inpaint"):
                raise ValueError(f"--mode {self.mode} needs --target-mask FILE: the region to paint")
            if self.target_mask is None and self.box is None:
                raise ValueError(
                    "--instruction SENTENCE, --box x1,y1,x2,y2 (fractions of the background) or "
                    "--target-mask FILE is needed: where to paint"
                )
            return
        for name in ("box", "target_mask"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"--instruction and {flag_name(name)} both say where to paint: give one of them"
                )
        if self.locator_name == GEOMETRIC or not self.instruction.strip():
            parse_instruction(self.instruction)

    @property
    def plain_mode(self) -> str:
        """The mode by its own name."""
        return ALIASES.get(self.mode, self.mode)

    @property
    def input_files(self) -> dict[str, Path]:
        """The images that are read, by the name of their setting."""
        given = {name: getattr(self, name) for name in INPUT_FILES}
        return {name: path for name, path in given.items() if path is not None}


def compositor_folder(chosen: Path | None = None) -> Path:
    """The compositor to use: the chosen one, else the full-size one where it is complete."""
    full = resolve_model_path(FULL_MODEL)
    return chosen or (TINY_MODEL if missing_parts(full) else full)


@dataclass
class Models:
    """Compositor, depth network, locators and detectors on one device."""

    folder: Path
    depth_folder: Path
    config: CompositorConfig
    device: torch.device
    dtype: torch.dtype  # of the compositor
    offload: bool = False
    requested: tuple[Any, ...] = ()  # what `load_models` was given: folders, device, dtype, offload
    loaded: dict[Path, Any] = field(default_factory=dict)  # locators and detectors by folder

    def _once(self, folder: Path, load: Callable[..., Any]) -> Any:
        if folder not in self.loaded:
            self.loaded[folder] = load(folder, device=str(self.device))
        return self.loaded[folder]

    def locator(self, folder: Path) -> Locator:
        """The language model that reads sentences."""
        return self._once(folder, load_locator)

    def detector(self, folder: Path) -> Detector:
        """The network that finds named objects."""
        return self._once(folder, Detector.load)

    @cached_property
    def compositor(self) -> Compositor:
        """In eval mode, on the device, or on the CPU until a stage needs it."""
        model, _ = load_compositor(self.folder, self.dtype)
        return model if self.offload else model.to(self.device)

    @cached_property
    def depth(self) -> DepthEstimator:
        """The depth network, in single precision."""
        return DepthEstimator.load(self.depth_folder, device=str(self.device))


def load_models(settings: ComposeSettings, known: Models | None = None) -> Models:
    """Check device and folder, log the compositor's notice once; weights are read when first needed.

    known: models of other settings, which are returned where these settings need the same
    """
    folder, depth = compositor_folder(settings.model), depth_folder(settings.depth_model)
    requested = (folder, depth, settings.device, settings.dtype, settings.offload)
    if known is not None and known.requested == requested:
        return known
    device, config = pick_device(settings.device), load_compositor_config(folder)
    if config.notice:
        logger.info("%s", config.notice)
    dtype = pick_dtype(settings.dtype, device)
    return Models(folder, depth, config, device, dtype, settings.offload, requested)
