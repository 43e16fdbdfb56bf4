"""What one watches while a model trains: its images of fixed samples, and how much each hint matters.

Control branches learn suddenly; the three numbers of `condition_sensitivity` show when.
Legend: b examples, c latent channels, h w latent pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytorch_lightning as pl
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from cldm.model import Compositor
from cldm.pipeline import CompositorPipeline
from cldm.pretrained import Sampling
from cldm.training.sharding import runs_model
from datasets.base import TrainingSample
from ldm.denoise import Monitor
from ldm.images import from_pm1, write_png
from ldm.sheet import grid

if TYPE_CHECKING:
    from cldm.training.data import PairData

PROBES = ("change_identity", "change_detail", "change_depth")
COUNT = 4  # watched samples
PROBE_AT = 0.6  # of the timesteps: the object's shape is decided there
TITLES = ("reference", "detail hint", "depth hint", "target", "sample")


def watched_samples(trainer: pl.Trainer) -> list[TrainingSample]:
    """The first samples of the run."""
    data: PairData = trainer.datamodule  # type: ignore[attr-defined]
    return [data.dataset[k] for k in range(COUNT)]


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
    alpha = float(DDIMScheduler.from_config(model.scheduler_config).alphas_cumprod[time])  # signal variance
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


class Samples(pl.Callback):
    """A sheet every `every` steps, 0 = never: watched samples with their hints and what the model paints."""

    def __init__(self, folder: Path, every: int, sampling: Sampling) -> None:
        self.folder, self.every, self.sampling = folder, every, sampling
        self.drawn = -1  # step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *ignored: object
    ) -> None:
        step = trainer.global_step
        if not self.every or step % self.every or step == self.drawn or not runs_model(trainer):
            return
        self.drawn = step
        pipeline = CompositorPipeline(pl_module.model, pl_module.device)  # type: ignore[arg-type]
        rows = []
        for pair in watched_samples(trainer):
            painted = pipeline.paint(pair, [0], self.sampling, monitor=Monitor(progress=False))[0]
            rows.append([from_pm1(pair.reference_01 * 2 - 1), from_pm1(pair.detail_pm1[:3]),
                         pair.depth_01[0].numpy(), from_pm1(pair.target_pm1), painted])  # fmt: skip
        if trainer.is_global_zero:
            write_png(self.folder / f"step-{step:08d}.png", grid(rows, TITLES, cell=160))
