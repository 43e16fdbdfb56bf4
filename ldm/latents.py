"""Pixels <-> latents, and schedulers by name.

Legend: b batch, c latent channels, h w pixels, f downsampling factor.
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from ldm.checkpoints import load_part, save_part
from ldm.device import check_finite
from ldm.files import named_failure, read_json, write_json
from ldm.images import from_pm1
from ldm.settings.choices import SCHEDULERS, scheduler_name
from ldm.settings.config import nearest

AUTOENCODERS: dict[str, type[nn.Module]] = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny)}
Generators = torch.Generator | list[torch.Generator] | None  # one for all examples, or one for each
STATISTICS = "latent_statistics.json"

STEP_INPUTS = {"model_output", "timestep", "sample"}
LOOP_METHODS = ("set_timesteps", "step", "scale_model_input", "add_noise")  # what sampling calls


class LatentSpace(nn.Module):
    """An autoencoder and what makes zero mean and unit variance of its latents: z = (E(x) - mean) / std."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """mean, std: one number per latent channel; without them SD's one scaling factor, of the config."""
        super().__init__()
        self.vae = vae
        channels = vae.config.latent_channels
        mean = [0.0] * channels if mean is None else mean
        std = [1.0 / vae.config.scaling_factor] * channels if std is None else std
        if len(mean) != channels or len(std) != channels:
            got = f"{len(mean)} means and {len(std)} stds for {channels} channels"
            raise ValueError(f"latent statistics: got {got}")
        self.register_buffer("mean", torch.tensor(mean)[None, :, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[None, :, None, None], persistent=False)

    @property
    def factor(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def channels(self) -> int:
        return self.vae.config.latent_channels

    def raw(self, image_pm1: Tensor, generator: Generators = None) -> Tensor:
        """(b, 3, h, w) -> (b, c, h/f, w/f), not normalised; the KL posterior's mode without a generator."""
        encoded = self.vae.encode(image_pm1)
        if isinstance(self.vae, AutoencoderTiny):
            return encoded.latents
        posterior = encoded.latent_dist
        return posterior.mode() if generator is None else posterior.sample(generator)  # type: ignore[arg-type]

    def encode(self, image_pm1: Tensor, generator: Generators = None, check: bool = True) -> Tensor:
        """(b, 3, h, w) in [-1, 1] -> normalised latents (b, c, h/f, w/f).

        check: ValueError where they are not finite, for which the device is waited for
        """
        raw = self.raw(image_pm1, generator)
        raw = check_finite(raw, "autoencoder (VAE)") if check else raw
        return (raw - self.mean.to(raw.dtype)) / self.std.to(raw.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (b, c, h/f, w/f) -> (b, 3, h, w), about [-1, 1], not clipped."""
        raw = latents * self.std.to(latents.dtype) + self.mean.to(latents.dtype)
        return check_finite(self.vae.decode(raw).sample, "autoencoder (VAE)")

    def decode_u8(self, latents: Tensor) -> np.ndarray:
        """Latents (1, c, h, w) of any device and precision -> RGB (H, W, 3) uint8."""
        latents = latents.to(self.mean.device, next(self.parameters()).dtype)
        return from_pm1(self.decode(latents)[0])

    def save_pretrained(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        save_part(self.vae, folder, dtype)
        statistics = {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        write_json(folder / STATISTICS, statistics)

    @classmethod
    def from_pretrained(
        cls, folder: Path, dtype: torch.dtype = torch.float32, load: Callable[..., Any] = load_part
    ) -> "LatentSpace":
        """A VAE folder, with or without our statistics file. load(class, folder, dtype): reads it."""
        name = read_json(folder / "config.json").get("_class_name")
        if name not in AUTOENCODERS:
            allowed = ", ".join(AUTOENCODERS)
            raise ValueError(f"{folder}/config.json: unknown autoencoder {name!r}; allowed: {allowed}")
        vae = load(AUTOENCODERS[name], folder, dtype)
        if not (folder / STATISTICS).exists():
            return cls(vae)
        statistics = read_json(folder / STATISTICS)
        return cls(vae, statistics.get("mean"), statistics.get("std"))


def scheduler_class(name: str) -> type[diffusers.SchedulerMixin]:
    """A diffusers scheduler by short name or class name, if it can drive the sampling loop."""
    if (kind := getattr(diffusers, scheduler_name(name), None)) is None:
        raise ValueError(nearest(name, SCHEDULERS, "scheduler"))
    with named_failure(f"scheduler {name}", ImportError):  # of a class that needs another library
        usable = all(hasattr(kind, method) for method in LOOP_METHODS)
    if usable:  # it must need nothing else in a step, and take the model's noise schedule as it is
        step = list(inspect.signature(kind.step).parameters.values())[1:]
        needed = {one.name for one in step if one.default is one.empty and one.kind != one.VAR_KEYWORD}
        known = set(inspect.signature(kind.__init__).parameters)
        usable = needed <= STEP_INPUTS and {"beta_schedule", "prediction_type"} <= known
    if not usable:
        raise ValueError(f"scheduler {name} is for other models; use one of {', '.join(SCHEDULERS)}")
    return kind


def make_scheduler(name: str, config: dict) -> diffusers.SchedulerMixin:
    """A scheduler by name with the model's noise schedule; ValueError if it cannot keep zero terminal SNR."""
    kind = scheduler_class(name)
    known = inspect.signature(kind.__init__).parameters
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        # diffusers would drop the rescaling without a warning (findings/zero_snr_dropped.sh).
        wrong = f"scheduler {name!r} cannot keep the zero terminal SNR that this model was trained with"
        raise ValueError(f"{wrong}; use ddim, ddpm, euler, euler-a, dpm++ or unipc")
    # Stable Diffusion's own setting: the Runge-Kutta warm-up needs more steps than users ask for.
    return kind.from_config({"skip_prk_steps": True, **config} if "skip_prk_steps" in known else config)
