"""The settings of one composite, for command line, YAML, recipes and notebooks.

A model folder that is not given is the full-size one below `models/` (or below the folder that BIFROST_MODELS
names) where it is there, else the one of the bundle in `assets/tiny`.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cldm.config import PRESETS, SPEEDS, Sampling
from datasets.fusion import ALIASES, MODES
from datasets.geometry import box_to_01, check_box01
from ldm.registry.models import DEFAULT_DEPTH
from ldm.result import overwrite_setting
from ldm.settings.choices import scheduler_name
from ldm.settings.config import CheckedSettings, flag_name, setting
from ldm.temporary import as_file
from llava_bifrost.language.reading import parse_instruction
from llava_bifrost.settings import GEOMETRIC, LocatorOptions

FULL_MODEL, TINY_MODEL = Path("models/bifrost"), Path("assets/tiny/compositor")
DEPTH_MODES = ("place", "replace")  # the object is put into the depth map, and nearer objects hide it
AUTO, BIFROST, PASTE = "auto", "bifrost", "paste"  # painters, beside folders
ENGINES = TORCH, COMPILE, OPENVINO = "torch", "compile", "openvino"
SHADOWS = OFF, CONTACT, CAST = "off", "contact", "cast"
SHADOW_MODEL = Path("assets/tiny/shadow")
INPUT_FILES = ("background", "object", "object_mask", "target_mask", "background_depth", "object_depth")


def sampling_setting(name: str) -> Any:
    """The field of `Sampling`, None where --speed or the model decides."""
    rule = Sampling.__dataclass_fields__[name].metadata
    other = "as --speed says" if name in SPEEDS["fast"] else "the model's own"
    return field(default=None, metadata={**rule, "help": f"{rule['help']}; without it {other}"})


@dataclass(frozen=True)
class ComposeSettings(LocatorOptions):
    """Everything that decides a composite. None where the model's own recommendation holds."""

    background: Path = setting(help="background image, any size")  # in Python all images: see `as_file`
    object: Path = setting(help="image of the object")
    object_mask: Path | None = setting(None,
        help="mask of the object (white); without it the alpha channel, SAM, U2-Netp or GrabCut "
        "finds it")  # fmt: skip
    object_box: tuple[float, float, float, float] | None = setting(
        None, help="which thing of its image the object is: a box around it, x1,y1,x2,y2 as fractions"
    )
    box: tuple[float, float, float, float] | None = setting(
        None,
        help="where: x1,y1,x2,y2 as fractions of the background, or in pixels, 120px,80px,400px,300px; "
        "without it the box of the target mask",
    )
    box_px: tuple[float, float, float, float] | None = setting(None, help="the box in pixels", low=0)
    depth: tuple[float, ...] | None = setting(
        None,
        help="how far: d, or far,near, in [0, 1], 1 = nearest point of the background; "
        "without it the ground at the bottom edge of the box",
    )
    instruction: str | None = setting(
        None, help='where, as a sentence instead of --box: "Place the dog behind the sofa"'
    )
    mode: str = setting("place", choices=(*MODES, *ALIASES),
        help="place: stand in the scene; replace: instead of what the target mask shows; id-transfer: "
        "another identity in its silhouette; inpaint (published name: draw): paint the target mask "
        "anew")  # fmt: skip
    target_mask: Path | None = setting(
        None, help="region of the background to replace, transfer to or inpaint (white)"
    )
    erase: str = setting(
        "object",
        choices=("object", "box", "nothing"),
        help="what mode replace removes first, without a target mask: the object that is found in the box "
        "(as an object is cut out: SAM, U2-Netp or GrabCut), all that the box shows, or nothing but what the "
        "new object covers",
    )
    invert_target_mask: bool = setting(False, help="the black part of the target mask is painted")
    within_mask: bool = setting(
        False, help="nothing outside the target mask changes, in any mode; else its edge is grown a little"
    )
    background_depth: Path | None = setting(
        None, help="depth map of the background, any resolution, bright = near; without it estimated"
    )
    object_depth: Path | None = setting(
        None, help="depth map of the object, bright = near; without it a rounded body (--compat: estimated)"
    )
    model: Path | None = setting(
        None,
        help="compositor folder; "
        f"without it {FULL_MODEL.as_posix()} if complete, else {TINY_MODEL.as_posix()}",
    )
    depth_model: Path | None = setting(
        None, help=f"depth network folder (DPT or Depth Anything); {DEFAULT_DEPTH}"
    )
    compat: str | None = setting(None, choices=tuple(PRESETS),
        help="compose as the published system does: its pre-processing, DDIM, paste of the whole "
        "crop")  # fmt: skip
    sam: Path | None = setting(None, help="SAM folder, used to cut out the object")
    cutout: str = setting(
        "auto",
        choices=("auto", "u2netp", "grabcut"),
        help="what cuts out an object without alpha, mask and SAM: the network U2-Netp "
        "(python -m ldm.registry pull u2netp), or GrabCut; auto: the network where it is there",
    )
    painter: str = setting(AUTO,
        help="who paints: bifrost, the compositor; paste, the relit cut-out alone; a folder, any inpainting "
        "pipeline of diffusers; auto: bifrost, but paste for photographs without full-size "
        "weights")  # fmt: skip
    prompt: str | None = setting(
        None, help="what a painter of a folder reads; without it the name of the object's file"
    )
    eraser: str = setting(
        AUTO,
        help="what fills the target mask first, where the painter is not bifrost: a LaMa file, an inpainting "
        "folder, exemplar, opencv; auto: the first of them that is there",
    )
    edge: str = setting("soft", choices=("soft", "hard"),
        help="soft: partly covered pixels along the object's outline, in its own colours; "
        "hard: its mask")  # fmt: skip
    shadow: str = setting(CONTACT, choices=SHADOWS,
        help="what the object does to the light on the ground: contact, dark where it touches it; cast, the "
        "shadow that a small network expects in a rendered room; --compat has none")  # fmt: skip
    seed: int = setting(0, low=0, high=2**32 - 1, help="seed of the first sample; sample i uses seed + i")
    num_samples: int = setting(1, low=1, high=64, help="how many composites to paint")
    best: int | None = setting(
        None,
        low=1,
        high=64,
        help="keep only so many of the samples, the best first; the report has all scores",
    )
    rank_by: str = setting("geometry", choices=("geometry", "identity"),
        help="what is best: depth, occlusion and seam as asked for, or similarity to the object's "
        "image")  # fmt: skip
    steps: int | None = sampling_setting("steps")
    guidance: float | None = sampling_setting("guidance")
    scheduler: str | None = setting(
        None, help="ddim, unipc, dpm++, euler, ... or a diffusers class name; without it the model's own"
    )
    init: str | None = sampling_setting("init")
    strength: float | None = sampling_setting("strength")
    detail: float | None = sampling_setting("detail")
    detail_scale: float | None = sampling_setting("detail_scale")
    speed: str | None = setting(None, choices=tuple(SPEEDS),
        help="balanced, fast: nearly the same image, sooner; without it balanced, but none of them with "
        "--compat and where the model's configuration says what runs less")  # fmt: skip
    control_evaluations: int | None = sampling_setting("control_evaluations")
    guidance_interval: tuple[float, float] | None = sampling_setting("guidance_interval")
    guidance_every: int | None = sampling_setting("guidance_every")
    reuse_every: int | None = sampling_setting("reuse_every")
    reuse_layers: int | None = sampling_setting("reuse_layers")
    full_last: int | None = sampling_setting("full_last")
    engine: str = setting(TORCH, choices=ENGINES,
        help="what computes the compositor's steps; compile: torch.compile of its transformer blocks; "
        "openvino: on a CPU, by a graph that it writes once beside the model's folder")  # fmt: skip
    channels_last: bool = setting(
        False, help="convolutions with channels last in memory, as a CPU in bf16 has them"
    )
    vae: Path | None = setting(
        None, help="folder of an autoencoder that decodes the result, as TAESD; without it the model's own"
    )
    preview_vae: Path | None = setting(None, help="likewise for previews")
    detail_weight: float = setting(1.0, low=0, high=2, help="weight of the detail branch")
    depth_weight: float = setting(1.0, low=0, high=2, help="weight of the depth branch (the paper's lambda)")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    dtype: str = setting("auto", choices=("auto", "fp32", "fp16", "bf16"), help="precision of the networks")
    offload: bool = setting(False, help="keep only the running stage on the device, to save its memory")

    def __post_init__(self) -> None:
        for name in INPUT_FILES:
            if (image := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_file(image, name))
        super().__post_init__()
        if self.scheduler is not None:
            scheduler_name(self.scheduler)
        for name in ("box", "object_box"):
            if (box := getattr(self, name)) is not None:
                check_box01(box, where=flag_name(name))
        if self.box is not None and self.box_px is not None:
            raise ValueError("--box and --box-px are the same in fractions and in pixels: give one of them")
        if (best := self.best or 0) > (count := self.num_samples):
            raise ValueError(f"--best {best} needs --num-samples {best} or more, got {count}")
        if self.compat is not None and (painter := self.painter) not in (AUTO, BIFROST):
            raise ValueError(f"--compat is about the compositor: it does not go with --painter {painter}")
        if self.compat is not None and self.shadow == CAST:
            raise ValueError(f"--compat composes as published, without --shadow {self.shadow}")
        if self.within_mask and (self.target_mask is None or self.compat is not None):
            wrong = "needs --target-mask" if self.target_mask is None else "does not go with --compat"
            raise ValueError(f"--within-mask {wrong}")
        if (depth := self.depth) is not None:
            ordered = len(depth) == 1 or (len(depth) == 2 and depth[0] <= depth[1])
            if not ordered or not all(0 <= value <= 1 for value in depth):
                given, rule = ",".join(f"{value:g}" for value in depth), "0 <= far <= near <= 1 (1 = nearest)"
                raise ValueError(f"--depth must be d or far,near with {rule}, got {given or 'nothing'}")
        if self.instruction is None:
            if self.target_mask is None and self.plain_mode in ("id-transfer", "inpaint"):
                raise ValueError(f"--mode {self.mode} needs --target-mask FILE: the region to paint")
            if self.target_mask is None and self.box is None and self.box_px is None:
                raise ValueError(
                    "--instruction SENTENCE, --box x1,y1,x2,y2 (fractions of the background) or "
                    "--target-mask FILE is needed: where to paint"
                )
            return
        where = ("box", "box_px", "target_mask")
        if both := [flag_name(name) for name in where if getattr(self, name) is not None]:
            raise ValueError(f"--instruction and {both[0]} both say where to paint: give one of them")
        if self.locator_name == GEOMETRIC or not self.instruction.strip():
            parse_instruction(self.instruction)

    @property
    def kept_samples(self) -> int:
        return self.best or self.num_samples

    @property
    def erases(self) -> str:
        """What mode replace removes first; nothing in other modes, with a target mask, or as published."""
        free = self.plain_mode == "replace" and self.target_mask is None and self.compat is None
        return self.erase if free else "nothing"

    @property
    def hard_edge(self) -> bool:
        """Whether the object ends with its mask, as it does in the published systems."""
        return self.edge == "hard" or self.compat is not None

    @property
    def shadow_there(self) -> str:
        """The kind of shadow; off in modes that keep the depth of the background, and as published."""
        return self.shadow if self.plain_mode in DEPTH_MODES and self.compat is None else OFF

    @property
    def plain_mode(self) -> str:
        return ALIASES.get(self.mode, self.mode)

    def in_fractions(self, size_hw: tuple[int, int]) -> "ComposeSettings":
        """The same with a box in pixels as fractions of the background; ValueError where it leaves it."""
        if self.box_px is None:
            return self
        (h, w), (x1, y1, x2, y2) = size_hw, self.box_px
        if not (0 <= x1 < x2 <= w and 0 <= y1 < y2 <= h):
            shown = ",".join(f"{value:g}px" for value in self.box_px)
            rule = f"0 <= x1 < x2 <= {w} and 0 <= y1 < y2 <= {h}"
            raise ValueError(f"--box {shown} must lie in the background, {w} x {h} pixels: {rule}")
        return replace(self, box=box_to_01(self.box_px, size_hw), box_px=None)

    @property
    def input_files(self) -> dict[str, Path]:
        """The images that are read, by the name of their setting."""
        given = {name: getattr(self, name) for name in INPUT_FILES}
        return {name: path for name, path in given.items() if path is not None}


DEFAULTS = Path("configs/inference.yaml")
SHEET_HELP = "also write NAME_sheet.png: inputs, box, depth, mask and result side by side"


@dataclass(frozen=True)
class CompositeSettings(ComposeSettings):
    out: Path = setting(
        Path("outputs/composite.png"), help="image to write (.png, .webp, .jpg); several samples get numbers"
    )
    sheet: bool = setting(True, help=SHEET_HELP)
    layers: bool = setting(
        False,
        help="also write NAME_layers.ora for GIMP or Krita, a zip of PNGs: the background, what changed "
        "around the object, the object, what hides it; with its place and depth in layers.json",
    )
    save_steps: int = setting(0, low=0, help="write a preview every so many steps into NAME_steps; 0 = none")
    overwrite: bool = overwrite_setting()


def moved(name: str) -> Any:
    """The field of an input that lies elsewhere now."""
    return setting(None, help=f"where the {name} lies now; its contents must be the same")


@dataclass(frozen=True)
class ReplaySettings(CheckedSettings):
    image: Path = setting(aliases=("IMAGE",), help="PNG written by the image verb")
    out: Path | None = setting(None, help="image to write; without it NAME_replay.png")
    overwrite: bool = overwrite_setting()
    background: Path | None = moved("background")
    object: Path | None = moved("object's image")
    object_mask: Path | None = moved("mask of the object")
    target_mask: Path | None = moved("target mask")
    background_depth: Path | None = moved("depth map of the background")
    object_depth: Path | None = moved("depth map of the object")
    model: Path | None = moved("compositor folder")
    depth_model: Path | None = moved("folder of the depth network")
