"""What must be known of a compositor besides its weights: how images were prepared in training, which sampler
settings suit it, how large its networks are; and the pre-processing of the published systems.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.fusion import DETAIL_SCALE
from datasets.inputs import PUBLISHED_INFERENCE, PairOptions
from ldm.registry.models import DEFAULT_DEPTH
from ldm.result import overwrite_setting
from ldm.settings.choices import FLOAT_TYPES, STEP_RULES
from ldm.settings.config import CheckedSettings, check_settings, read_config, setting

CONFIG_FILE = "compositor.json"
CROP_TENTHS = (15, 29)  # of the region; published without a seed
OUTPUTS = (".safetensors", ".ckpt", ".pth", ".pt")  # of an export
PARTS = ("unet", "control_detail", "control_depth", "image_encoder", "projector", "vae", "scheduler")


@dataclass(frozen=True)
class Sampling(CheckedSettings):
    """Sampler settings that suit a model; a user's own settings override them one by one."""

    scheduler: str = setting("unipc", help="scheduler name")
    steps: int = setting(20, low=1, high=1000, help="sampling steps of a full run")
    guidance: float = setting(5.0, low=0, high=30, help="classifier-free guidance; 1 = off")
    init: str = setting(
        "noise", choices=("noise", "paste"), help="start from noise or from the noised cut-out paste"
    )
    strength: float = setting(1.0, low=0, high=1, help="noise put on the paste; 0 = the paste itself")
    detail: float = setting(
        0.0, low=0, high=1, help="fraction of the result that is the cut-out itself, relit"
    )
    detail_scale: float = setting(
        DETAIL_SCALE, low=0.01, high=1, help="what counts as fine detail, fraction of the object's size"
    )
    control_evaluations: int = setting(
        0, low=0, high=100, help="evaluations of the control branches, interpolated between; 0 = every step"
    )
    control_batch: int = setting(
        1,
        low=1,
        high=100,
        help="timesteps that the control branches see in one batch: sooner where they are small",
    )
    guidance_interval: tuple[float, float] = setting(
        (0.0, 1.0), low=0, high=1, help="noise levels t/T at which guidance acts; elsewhere one pass"
    )
    guidance_every: int = setting(
        1, low=1, high=10, help="the unconditional half is computed at every n-th step, its difference kept"
    )
    reuse_every: int = setting(
        1, low=1, high=10, help="deep features of the UNet are computed at every n-th step only; 1 = at all"
    )
    reuse_layers: int = setting(
        0, low=0, high=10, help="last layers of the UNet that run at the steps between; 0 = its first level"
    )
    full_last: int = setting(3, low=0, high=10, help="last steps that reuse nothing")
    reimpose: bool = setting(True, help="known background is put back at every step; published: false")
    step_rule: str = setting("exact", choices=STEP_RULES, help="published: every (1000 // steps)-th timestep")

    @property
    def usual_speed(self) -> str | None:
        """Where none is asked for: balanced, unless the sampling says itself what runs less."""
        own = any(getattr(self, key) != getattr(Sampling(), key) for key in SPEEDS["fast"])
        return None if own else "balanced"


@dataclass(frozen=True)
class CompositorConfig:
    name: str = setting("compositor", help="short name for logs and recipes")
    notice: str = setting("", help="shown once when the model is loaded")
    pair: PairOptions = setting(PairOptions(), help="pre-processing that the model was trained with")
    sampling: Sampling = setting(Sampling(), help="default sampler settings")

    def with_compat(self, name: str, seed: int) -> "CompositorConfig":
        """Pre-processing and sampling of a published system; sizes stay the model's."""
        tenths = np.random.default_rng(seed).integers(CROP_TENTHS[0], CROP_TENTHS[1] + 1)
        kept = {field: getattr(self.pair, field) for field in ("size", "reference_size", "augment")}
        pair = replace(PRESETS[name], crop_ratio=float(tenths) / 10, **kept)
        return replace(self, pair=pair, sampling=PUBLISHED_SAMPLING)


# What `--speed` sets; measured by `python -m benchmarks.speed`.
SPEEDS: dict[str, dict[str, Any]] = {
    "exact": {"control_evaluations": 20},
    "balanced": {"control_evaluations": 4, "guidance_every": 4, "reuse_every": 2, "full_last": 1},
    "fast": {
        "control_evaluations": 3, "guidance_every": 6, "reuse_every": 3, "reuse_layers": 1, "full_last": 0
    },
}  # fmt: skip

# Of the two published systems: pre-processing, switch for switch, and sampling.
BOXES: dict[str, Any] = dict.fromkeys(("mask_level", "collage", "region_of"), "box")
PRESETS = {"bifrost": PUBLISHED_INFERENCE}
PRESETS["anydoor"] = replace(PUBLISHED_INFERENCE, hf_mode="color", occlusion="none", **BOXES)
PUBLISHED_SAMPLING = Sampling("ddim", steps=50, guidance=5.0, step_rule="published", reimpose=False)


def missing_parts(folder: Path) -> list[str]:
    """Names of the parts that a compositor folder lacks (their content is checked on loading)."""
    absent = [part for part in PARTS if not (folder / part).is_dir()]
    return absent if (folder / CONFIG_FILE).is_file() else [*absent, CONFIG_FILE]


def require_complete(folder: Path) -> None:
    """Refuse, naming what is missing, a folder that is not a whole compositor."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such model folder")
    if absent := missing_parts(folder):
        raise ValueError(f"{folder}: not a complete compositor folder; missing {', '.join(absent)}")


def load_compositor_config(folder: Path) -> CompositorConfig:
    """The configuration alone, without the weights, of a complete folder."""
    require_complete(folder)
    return read_config(CompositorConfig, folder / CONFIG_FILE)


@dataclass(frozen=True)
class AutoencoderConfig(CheckedSettings):
    """First stage. `kl`: SD's AutoencoderKL; `tiny`: AutoencoderTiny (all levels of one width)."""

    kind: str = setting("kl", choices=("kl", "tiny"), help="autoencoder class")
    channels: tuple[int, ...] = setting((128, 256, 512, 512), help="widths; n levels downsample by 2^(n-1)")
    layers: int = setting(2, low=1, help="residual blocks per level")
    latent_channels: int = setting(4, low=1, help="channels of the latent")


def check_levels(sizes: Any) -> None:
    """Refuse sizes of a UNet whose `block_channels`, `heads` and `attention` differ in length."""
    levels, heads, attention = map(len, (sizes.block_channels, sizes.heads, sizes.attention))
    if heads != levels or attention != levels:
        both = f"heads {heads}, attention {attention}"
        raise ValueError(f"block_channels has {levels} levels, {both}; they must agree")


@dataclass(frozen=True)
class NetworkConfig:
    size: tuple[int, int] = setting((512, 512), help="(h, w) in pixels of the crop that the model paints")
    reference_size: int = setting(224, low=16, help="side of the reference image in pixels")
    block_channels: tuple[int, ...] = setting((320, 640, 1280, 1280), help="UNet width per level")
    heads: tuple[int, ...] = setting((5, 10, 20, 20), help="attention heads per level")
    attention: tuple[bool, ...] = setting((True, True, True, False), help="cross-attention at each level")
    layers_per_block: int = setting(2, low=1, help="residual blocks per level")
    norm_groups: int = setting(32, low=1, help="GroupNorm groups")
    token_width: int = setting(1024, low=1, help="width of the identity tokens")
    hint_channels: tuple[int, ...] = setting(
        (16, 32, 96, 256), help="hint stack widths; must downsample like the autoencoder"
    )
    identity_width: int = setting(1536, low=1, help="DINOv2 width")
    identity_layers: int = setting(40, low=1, help="DINOv2 depth")
    identity_heads: int = setting(24, low=1, help="DINOv2 attention heads")
    identity_patch: int = setting(14, low=1, help="DINOv2 patch side in pixels")
    identity_swiglu: bool = setting(True, help="SwiGLU feed-forward (DINOv2-g) instead of GELU")
    prediction: str = setting("epsilon", choices=("epsilon", "v_prediction"), help="what the UNet predicts")
    zero_snr: bool = setting(False, help="rescale the noise schedule to zero terminal SNR (Lin et al. 2024)")
    zero_conv_std: float = setting(0.0, low=0.0, help="scale of new control outputs; 0 = zero convolutions")
    autoencoder: AutoencoderConfig = setting(AutoencoderConfig(), help="first stage")

    def __post_init__(self) -> None:
        check_settings(self)
        check_levels(self)
        if len(self.hint_channels) != len(self.autoencoder.channels):
            wrong = f"hint_channels downsamples by 2^{len(self.hint_channels) - 1}, the autoencoder by"
            raise ValueError(f"{wrong} 2^{len(self.autoencoder.channels) - 1}; they must agree")


@dataclass(frozen=True)
class ConvertSettings(CheckedSettings):
    source: Path = setting(help="checkpoint: .ckpt, .pth, .pt, .bin, .safetensors, or a folder of these")
    out: Path = setting(help="folder that is written; it appears when it is complete")
    dtype: str = setting("keep", choices=("keep", *FLOAT_TYPES), help="type written; keep: as in the file")
    report: Path | None = setting(None, help="JSON report: what became of every key")


@dataclass(frozen=True)
class CompositorSettings(ConvertSettings):
    dinov2: Path | None = setting(None, help="DINOv2 file or transformers folder for a checkpoint without it")
    seed: int = setting(0, help="seed of the parts that start fresh")


@dataclass(frozen=True)
class ExportSettings:
    source: Path = setting(help="compositor, DINOv2 or DPT folder")
    out: Path = setting(help=".safetensors (written tensor by tensor), or .ckpt, .pth, .pt")
    overwrite: bool = overwrite_setting()
    layout: str = setting("bifrost", choices=("bifrost", "anydoor"), help="anydoor: without the depth branch")
    positions: Path | None = setting(None, help="DINOv2's full position embedding, if not in the folder")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.out.suffix not in OUTPUTS:
            raise ValueError(f"out must end in one of {', '.join(OUTPUTS)}, got {self.out.name}")


@dataclass(frozen=True)
class EvaluateSettings(CheckedSettings):
    model: Path = setting(Path("assets/tiny/compositor"), help="compositor folder")
    scenes: int = setting(300, low=2, help="scenes to measure")
    data: Path = setting(Path("data/scenes/eval"), help="folder of scene shards of the eval split")
    depth_model: Path | None = setting(
        None, help=f"depth network for backgrounds and results; {DEFAULT_DEPTH}"
    )
    given_depth: bool = setting(False, help="give the scene's true depths instead of what users have")
    strengths: tuple[float, ...] = setting((0.2, 0.4, 0.6, 1.0), help="strengths of init paste")
    details: tuple[float, ...] = setting((0.0, 1.0), help="fractions of the relit cut-out in the result")
    steps: int = setting(20, low=1, help="sampling steps of a full run of init paste")
    noise_steps: tuple[int, ...] = setting((1, 4, 20), help="sampling steps of the start from noise")
    guidance: tuple[float, ...] = setting((1.0,), help="classifier-free guidance")
    ablations: int = setting(100, low=0, help="scenes of the ablations; 0 = none")
    identity: bool = setting(True, help="also measure identity among eight rendered candidates")
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    out: Path | None = setting(None, help="JSON file for the numbers; table and sheets go beside it")
    overwrite: bool = overwrite_setting()
