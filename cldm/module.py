"""Training step of the compositor (Lightning): noise a target, predict, weighted squared error.

All randomness of a step comes from generators seeded by (seed, step), so a resumed run repeats what an
uninterrupted one would have done.  Legend: b batch, c latent channels, h w latent pixels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from cldm.model import Compositor, Conditions
from ldm.config import check_settings, setting


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are the published recipe (AdamW 1e-5, constant rate)."""

    lr: float = setting(1e-5, low=0.0, help="learning rate after warm-up")
    final_lr: float = setting(
        1.0, low=0.0, high=1.0, help="share of lr left at the last step (cosine); 1 = constant"
    )
    hold: float = setting(
        0.0, low=0.0, high=1.0, help="share of all steps at full lr before the cosine begins"
    )
    warmup: int = setting(0, low=0, help="steps of linear warm-up")
    betas: tuple[float, float] = setting((0.9, 0.999), help="AdamW betas")
    weight_decay: float = setting(0.01, low=0.0, help="AdamW weight decay")
    trainable: str = setting(
        "published",
        choices=("published", "all"),
        help="published: control branches, UNet decoder and projector; all: everything but the autoencoder",
    )
    train_projector: bool = setting(True, help="False: the projector stays frozen, as in the published code")
    drop_identity: float = setting(
        0.5, low=0.0, high=1.0, help="share of samples whose tokens are those of the zero image"
    )
    drop_detail: float = setting(0.3, low=0.0, high=1.0, help="share of samples with a blank detail hint")
    drop_depth: float = setting(0.3, low=0.0, high=1.0, help="share of samples with a blank depth hint")
    mask_weight: float = setting(0.0, low=0.0, help="extra loss weight inside the edit mask")
    ema: float = setting(0.0, low=0.0, high=0.99999, help="decay of the weight average; 0 = none")
    attention: str = setting(
        "sdpa", choices=("sdpa", "eager"), help="eager is faster for small networks on a CPU"
    )
    seed: int = setting(0, help="seed of noise, timesteps and dropout")

    def __post_init__(self) -> None:
        check_settings(self)


def trainable_parameters(model: Compositor, config: TrainConfig) -> list[nn.Parameter]:
    """Freeze what does not train; returns the rest. The control branches' first convolutions never train."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    parts: list[nn.Module] = [model.detail, model.depth]
    if config.trainable == "all":
        parts += [model.unet, model.identity.encoder]
    else:
        parts += [model.unet.up_blocks, model.unet.conv_norm_out, model.unet.conv_out]
    if config.train_projector:
        parts.append(model.identity.projector)
    for part in parts:
        part.requires_grad_(True)
    for branch in (model.detail, model.depth):
        branch.net.conv_in.requires_grad_(False)
    mask_token = model.identity.encoder.embeddings.mask_token
    if mask_token is not None:
        mask_token.requires_grad_(False)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class CompositorModule(pl.LightningModule):
    """The compositor with its loss and optimizer."""

    def __init__(self, model: Compositor, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.noise_schedule = DDIMScheduler.from_config(model.scheduler_config)
        self.parameters_to_train = trainable_parameters(model, config)
        self.average = EMAModel(self.parameters_to_train, decay=config.ema) if config.ema else None
        if config.attention == "eager":
            for net in (model.unet, model.detail.net, model.depth.net):
                net.set_attn_processor(AttnProcessor())
            model.identity.encoder.set_attn_implementation("eager")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        config = self.config
        optimizer = torch.optim.AdamW(
            self.parameters_to_train, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )  # not fused: Lightning clips in between
        total = self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, total, config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """batch: stacked `datasets.pairs.Pair` fields, each (b, ...)."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.global_step)
        with torch.no_grad():
            latents = self.model.latent_space.encode(batch["target_pm1"])
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        steps = self.noise_schedule.config.num_train_timesteps
        timesteps = torch.randint(0, steps, (len(latents),), generator=generator).to(latents.device)
        x = self.noise_schedule.add_noise(latents, noise, timesteps)
        prediction = self.model(x, timesteps, self.conditions(batch, generator))
        loss = self.weighted_error(prediction, self.wanted(latents, noise, timesteps), batch["edit_mask"])
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def conditions(self, batch: dict[str, Tensor], generator: torch.Generator) -> Conditions:
        """Conditions with dropout: zero-image tokens, blank hints."""
        config, model = self.config, self.model
        count, device = len(batch["reference_01"]), batch["reference_01"].device
        draws = torch.rand((3, count), generator=generator).to(device)
        keep_identity = (draws[0] >= config.drop_identity)[:, None, None, None]
        keep_detail = (draws[1] >= config.drop_detail)[:, None, None, None]
        keep_depth = (draws[2] >= config.drop_depth)[:, None, None, None]
        return model.conditions(
            batch["reference_01"] * keep_identity,
            batch["detail_pm1"] * keep_detail,
            batch["depth_01"] * keep_depth,
        )

    def wanted(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the UNet should predict: the noise, or the velocity (Salimans and Ho 2022)."""
        if self.noise_schedule.config.prediction_type == "v_prediction":
            return self.noise_schedule.get_velocity(latents, noise, timesteps)
        return noise

    def weighted_error(self, prediction: Tensor, wanted: Tensor, edit_mask: Tensor) -> Tensor:
        """Mean squared error; pixels of the edit mask (b, 1, H, W) count (1 + mask_weight) times."""
        error = (prediction.float() - wanted.float()).square()
        if not self.config.mask_weight:
            return error.mean()
        inside = nn.functional.interpolate(edit_mask.float(), size=error.shape[-2:], mode="area")
        weight = 1 + self.config.mask_weight * inside
        return (weight * error).mean() / weight.mean()

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """A step of the optimizer, then of the average: before any checkpoint of this step is written."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average is not None:
            self.average.step(self.parameters_to_train)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        if self.average is not None:
            checkpoint["average"] = self.average.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        if self.average is not None:
            self.average.load_state_dict(checkpoint["average"])


def rate(step: int, total: int, config: TrainConfig) -> float:
    """Factor on the learning rate: warm-up, 1 until `hold`, then cosine to `final_lr` at `total` steps."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    start = max(config.warmup, config.hold * total)
    progress = min(1.0, max(0.0, step - start) / max(1.0, total - start))
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
