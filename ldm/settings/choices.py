"""Names that settings choose from; the code behind them needs libraries that take seconds to import."""

from dataclasses import dataclass

from ldm.settings.schema import CheckedSettings, nearest, setting

DEVICES = ("auto", "cuda", "mps", "cpu")
FLOAT_TYPES = ("fp32", "fp16", "bf16")
STEP_RULES = ("exact", "published")  # which timesteps a sampling run visits, see `ldm.denoise`
SCHEDULERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


def scheduler_name(name: str) -> str:
    """A diffusers scheduler's class name by short name or class name; another name is a ValueError."""
    if name not in SCHEDULERS and not name.endswith("Scheduler"):
        raise ValueError(nearest(name, SCHEDULERS, "scheduler"))
    return SCHEDULERS.get(name, name)


BOOTSTRAPS = 2000

# What `--speed` of multi-mask inpainting sets: the unconditional half of guidance and the deep
# features are computed at every n-th step only; of the steps between so many last layers run, 0 for a level.
UNET_SPEEDS: dict[str, dict[str, int]] = {
    "exact": {},
    "balanced": {"guidance_every": 2, "reuse_every": 2},
    "fast": {"guidance_every": 6, "reuse_every": 3, "reuse_layers": 1},
}


def shard_of(text: str, name: str = "shard") -> tuple[int, int]:
    """ "i/n" -> (i, n); shard i is every n-th item from the i-th. name: of the option, in errors"""
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return int(index), int(count)
    raise ValueError(f"{name} must be i/n with 0 <= i < n, got {text!r}")


RAY_HELP = "divide the work among the devices of a Ray cluster: auto, HOST:PORT, or local for one here"


@dataclass(frozen=True, kw_only=True)
class Divided(CheckedSettings):
    """Settings of work that machines divide."""

    shard: str = setting("0/1", help="i/n: this machine does every n-th part of the work, from the i-th")
    ray: str = setting("", help=RAY_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        shard_of(self.shard)
