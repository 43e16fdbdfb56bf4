"""What one looks at while a model trains: samples of fixed examples, and how much each hint matters.

Control branches learn suddenly; the three numbers of `hint_changes` show when.
Legend: b examples, c latent channels, h w latent pixels.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytorch_lightning as pl
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from cldm.model import Compositor
from cldm.pipeline import paint
from cldm.pretrained import Sampling
from cldm.training.sharding import takes_part
from datasets.base import TrainingSample, collate
from ldm.files import write_atomic
from ldm.images import from_pm1
from ldm.sheet import grid

if TYPE_CHECKING:
    from cldm.training.data import PairData

PROBES = ("change_identity", "change_detail", "change_depth")
COUNT = 4  # examples that are looked at
PROBE_AT = 0.6  # of the timesteps: the object's shape is decided there
TITLES = ("reference", "detail hint", "depth hint", "target", "sample")


class ConditionProbe:
    """The first examples of a run, read once."""

    def __init__(self, count: int = COUNT) -> None:
        self.count = count
        self._pairs: list[TrainingSample] = []

    def pairs(self, trainer: pl.Trainer) -> list[TrainingSample]:
        if not self._pairs:
            data: PairData = trainer.datamodule  # type: ignore[attr-defined]
            self._pairs = [data.dataset[k] for k in range(self.count)]
        return self._pairs

    def batch(self, trainer: pl.Trainer, device: torch.device) -> dict[str, Tensor]:
        return {name: value.to(device) for name, value in collate(self.pairs(trainer)).items()}


@torch.no_grad()
def condition_sensitivity(model: Compositor, batch: dict[str, Tensor], seed: int = 0) -> dict[str, float]:
    """How far the prediction moves when a hint is blanked as in condition dropout, relative to its own size.

    Root mean square over the edit region's latents of the targets, noised to PROBE_AT with noise of `seed`;
    0 = the hint is ignored.
    """
    latents = model.latent_space.encode(batch["target_pm1"])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    time = int(PROBE_AT * model.scheduler_config["num_train_timesteps"])
    timesteps = torch.full((len(latents),), time, device=latents.device)
    inputs = {"reference_01": batch["reference_01"], "detail_pm1": batch["detail_pm1"],
              "depth_01": batch["depth_01"]}  # fmt: skip
    weight = torch.nn.functional.adaptive_max_pool2d(batch["edit_mask"].float(), latents.shape[-2:])
    alpha = noise_level(model, time)
    noisy = alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise

    def predict(blank: str = "") -> Tensor:
        given = {name: value * (name != blank) for name, value in inputs.items()}
        return model(noisy, timesteps, model.conditions(**given)) * weight

    whole = predict()
    size = whole.square().mean().clamp_min(1e-12)
    return {
        name: float(((predict(blank) - whole).square().mean() / size).sqrt())
        for name, blank in zip(PROBES, inputs, strict=True)
    }


def noise_level(model: Compositor, time: int) -> float:
    """Share of the signal's variance that is left at a timestep (alpha bar)."""
    return float(DDIMScheduler.from_config(model.scheduler_config).alphas_cumprod[time])


def sample_sheet(
    model: Compositor, pairs: list[TrainingSample], sampling: Sampling, device: torch.device
) -> bytes:
    """PNG: a row per example with its hints, the truth and a sample of seed 0."""
    rows = []
    for pair in pairs:
        painted = paint(model, pair, [0], sampling, device=device, progress=False)[0]
        hint = from_pm1(pair.detail_pm1[:3])
        rows.append([from_pm1(pair.reference_01 * 2 - 1), hint, pair.depth_01[0].numpy(),
                     from_pm1(pair.target_pm1), painted])  # fmt: skip
    buffer = io.BytesIO()
    Image.fromarray(grid(rows, TITLES, cell=160)).save(buffer, "PNG")
    return buffer.getvalue()


class Samples(pl.Callback):
    """A sheet of samples every `every` steps; 0 = never."""

    def __init__(self, folder: Path, every: int, sampling: Sampling, watched: ConditionProbe) -> None:
        self.folder, self.every, self.sampling, self.watched = folder, every, sampling, watched
        self.drawn = -1  # step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *ignored: object
    ) -> None:
        step = trainer.global_step
        if not self.every or step % self.every or step == self.drawn or not takes_part(trainer):
            return
        self.drawn = step
        model: Compositor = pl_module.model  # type: ignore[assignment]
        sheet = sample_sheet(model, self.watched.pairs(trainer), self.sampling, pl_module.device)
        if trainer.is_global_zero:
            write_atomic(self.folder / f"step-{step:08d}.png", sheet)
