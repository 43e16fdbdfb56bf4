"""Training step of the compositor (Lightning): noise a target, predict, weighted squared error.

All randomness of a step comes from (seed, number of the batch), so a resumed run repeats what an
uninterrupted one would have done; it is drawn for all devices together, of which each takes its part.
Legend: b batch, c latent channels, h w latent pixels.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from einops import rearrange
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from cldm.model import Compositor, Conditions
from cldm.training.checkpoints import WHOLE, shard
from cldm.training.settings import CompositorTrainConfig
from datasets.base import MOVING, STILL
from datasets.pairs import model_inputs
from ldm.denoise import min_snr_weight, prediction_target
from ldm.seeds import seed_of
from ldm.training.run import trained

FREE = 0.3  # fraction of examples whose timestep ignores the source's dynamics (published)


@dataclass(frozen=True, eq=False)
class StepRandomness:
    """Random numbers of b examples, drawn on the CPU."""

    noise: Tensor  # (b, c, h, w) normal
    timesteps: Tensor  # (b,) int64, uniform over all timesteps
    drops: Tensor  # (3, b) in [0, 1): identity, detail, depth
    free: Tensor  # (b,) in [0, 1): below FREE the timestep stays as it is

    @classmethod
    def draw(
        cls, seed: int, batch_number: int, shape: Sequence[int], timesteps: int, rank: int = 0, world: int = 1
    ) -> "StepRandomness":
        """Of one batch. shape: (b, c, h, w) of one device; timesteps: of the noise schedule."""
        b, count = shape[0], shape[0] * world
        generator = torch.Generator().manual_seed(seed * 1_000_003 + batch_number)
        noise = torch.randn((count, *shape[1:]), generator=generator)
        uniform = torch.randint(0, timesteps, (count,), generator=generator)
        drops = torch.rand((3, count), generator=generator)
        free = torch.rand(count, generator=generator)
        mine = slice(rank * b, (rank + 1) * b)
        return cls(noise[mine], uniform[mine], drops[:, mine], free[mine])

    def to(self, device: torch.device) -> "StepRandomness":
        """On a device, which nothing waits for."""
        values = [self.noise, self.timesteps, self.drops, self.free]
        if device.type == "cuda":
            values = [value.pin_memory() for value in values]
        return StepRandomness(*(value.to(device, non_blocking=True) for value in values))

    def timesteps_by_dynamics(self, dynamics: Tensor, timesteps: int) -> Tensor:
        """(b,) int64: early for MOVING sources, late for STILL ones, in 7 cases of 10. dynamics: (b,)."""
        half = self.timesteps // 2  # uniform over the late half, where little noise is left
        early, late = half + timesteps // 2, half
        bound = self.free >= FREE
        chosen = torch.where(bound & (dynamics == MOVING), early, self.timesteps)
        return torch.where(bound & (dynamics == STILL), late, chosen)


class CompositorModule(pl.LightningModule):
    """The compositor with its loss and optimizer; what does not train is frozen."""

    def __init__(self, model: Compositor, config: CompositorTrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        if config.vae == "sample" and not isinstance(model.latent_space.vae, AutoencoderKL):
            kind = type(model.latent_space.vae).__name__
            raise ValueError(f"train.vae=sample needs an autoencoder with a posterior; {kind} has none: mode")
        self.noise_schedule = DDIMScheduler.from_config(model.scheduler_config)
        unet, encoder = model.unet, model.identity.encoder
        decoder = (unet.up_blocks, unet.conv_norm_out, unet.conv_out)
        parts = (unet, encoder) if config.trainable == "all" else decoder
        model.requires_grad_(False).eval()
        for part in (model.detail, model.depth, *parts):
            part.requires_grad_(True).train()  # only what is in training mode recomputes its activations
        model.identity.projector.requires_grad_(config.train_projector)
        for branch in (model.detail, model.depth):
            branch.net.conv_in.requires_grad_(False)  # never trains
        if encoder.embeddings.mask_token is not None:
            encoder.embeddings.mask_token.requires_grad_(False)
        self.parameters_to_train = [weight for weight in model.parameters() if weight.requires_grad]
        if config.frozen == "bf16":
            for weight in model.parameters():
                weight.data = weight.data if weight.requires_grad else weight.data.bfloat16()
        self.average = self.fresh_average()
        self.strict_loading = False  # frozen weights are in no checkpoint; on_load_checkpoint checks the rest
        self.checked = False  # whether the autoencoder's latents were finite at the first step
        self.batch_number, self.last_rate, self.last_loss = 0, 0.0, torch.zeros(())
        nets = (unet, model.detail.net, model.depth.net)
        if config.attention == "eager":
            for net in nets:
                net.set_attn_processor(AttnProcessor())
            encoder.set_attn_implementation("eager")
        if config.gradient_checkpointing:
            for net in nets:
                net.enable_gradient_checkpointing()
            encoder.gradient_checkpointing_enable()

    def painting(self) -> AbstractContextManager[None]:
        """In which the model paints: autocast where frozen weights in bf16 stand beside those that train."""
        bf16 = self.config.frozen == "bf16"
        return self.trainer.precision_plugin.forward_context() if bf16 else nullcontext()

    def fresh_average(self) -> EMAModel | None:
        return EMAModel(self.parameters_to_train, decay=self.config.ema) if self.config.ema else None

    def configure_model(self) -> None:
        if self.device_mesh is None or isinstance(self.model.unet, FSDPModule):
            return
        shard(self.model, self.device_mesh["data_parallel"])
        self.parameters_to_train = list(trained(self).values())
        self.average = self.fresh_average()

    def averaged_weights(self) -> dict[str, Tensor]:
        """The running average by name, whole and on the CPU of the first device; empty where none is kept."""
        if self.average is None:
            return {}
        weights = {}
        for name, value in zip(trained(self), self.average.shadow_params, strict=True):
            whole = value.full_tensor() if isinstance(value, DTensor) else value  # by all devices together
            weights[name] = whole.detach().cpu() if self.trainer.is_global_zero else torch.empty(0)
        return weights

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        config = self.config
        values: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
        parameters = self.parameters_to_train
        if config.shard_optimizer and self.trainer.world_size > 1:
            optimizer: Optimizer = ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, **values)
        else:
            optimizer = torch.optim.AdamW(parameters, **values)  # not fused: Lightning clips in between
        total = self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: config.lr_factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        self.batch_number = self.global_step * self.trainer.accumulate_grad_batches
        if self.average is not None:
            self.average.to(self.device)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """batch: tensors of `datasets.examples.TrainingSample`, each (b, ...)."""
        batch = {**batch, **model_inputs(batch)}
        latents = self.latents(batch["target_pm1"])
        total, devices = len(self.noise_schedule), (self.global_rank, self.trainer.world_size)
        draws = StepRandomness.draw(self.config.seed, self.batch_number, latents.shape, total, *devices)
        draws = draws.to(self.device)
        self.batch_number += 1
        timesteps = draws.timesteps
        if self.config.timesteps == "dynamics":
            timesteps = draws.timesteps_by_dynamics(batch["dynamics"], total)
        timesteps = shifted_timesteps(timesteps, self.config.timestep_shift, total)
        loss = self.loss(batch, latents, draws.noise, timesteps, draws.drops)
        self.last_loss = loss.detach()
        self.log("loss", self.last_loss, prog_bar=True, logger=False)
        return loss

    @torch.no_grad()
    def latents(self, target_pm1: Tensor) -> Tensor:
        """(b, c, h, w) of targets (b, 3, H, W): the posterior's mode, or by option a sample of it."""
        b, generators = len(target_pm1), None
        if self.config.vae == "sample":
            places = range(self.global_rank * b, (self.global_rank + 1) * b)  # in the batch of all devices
            seeds = [seed_of(self.config.seed, "posterior", self.batch_number, place) for place in places]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        first, self.checked = not self.checked, True  # a check waits for the device
        return self.model.latent_space.encode(target_pm1, generators, check=first).float()

    def loss(self, batch: dict, latents: Tensor, noise: Tensor, timesteps: Tensor, drops: Tensor) -> Tensor:
        """Mean weighted error of the prediction at latents (b, c, h, w) with noise put on them."""
        x = self.noise_schedule.add_noise(latents, noise, timesteps)
        prediction = self.model(x, timesteps, self.conditions(batch, drops))
        target = prediction_target(self.noise_schedule, latents, noise, timesteps)
        weight = min_snr_weight(self.noise_schedule, timesteps, self.config.min_snr)
        return weighted_error(prediction, target, batch["edit_mask"], self.config.mask_weight, weight)

    def held_out_loss(self, batch: dict[str, Any], k: int, count: int) -> Tensor:
        """Of example k of `count` alone: its own noise, timestep k of as many even ones, nothing dropped."""
        batch = {**batch, **model_inputs(batch)}
        latents, total = self.model.latent_space.encode(batch["target_pm1"]).float(), len(self.noise_schedule)
        noise = StepRandomness.draw(self.config.seed, k, latents.shape, total).noise.to(latents)
        timesteps = torch.tensor([(2 * k + 1) * total // (2 * count)], device=self.device)
        return self.loss(batch, latents, noise, timesteps, torch.ones(3, 1, device=self.device))

    def conditions(self, batch: dict[str, Tensor], drops: Tensor) -> Conditions:
        """Conditions with dropout: zero-image tokens, blank hints. drops: (3, b) in [0, 1)."""
        config = self.config
        rates = config.drop_identity, config.drop_detail, config.drop_depth
        keep = torch.stack([drop >= rate for drop, rate in zip(drops, rates, strict=True)])
        given = (batch["reference_01"], batch["detail_pm1"], batch["depth_01"])
        masks = rearrange(keep, "k b -> k b 1 1 1")
        return self.model.conditions(*(value * mask for value, mask in zip(given, masks, strict=True)))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        """A step of the optimizer, then of the average: before any checkpoint of this step is written."""
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        self.last_rate = float(optimizer.param_groups[0]["lr"])
        if self.average is not None:
            self.average.step(self.parameters_to_train)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep what trains, by name, and the average of it."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in trained(self) if name in weights}
        if self.average is not None:
            checkpoint["average"] = self.averaged_weights()
            numbers = self.average.state_dict()
            checkpoint["average_numbers"] = {k: v for k, v in numbers.items() if k != "shadow_params"}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Check the names, restore the average, take today's settings; Lightning loads the rest later."""
        config, step = self.config, checkpoint["global_step"]
        rate = config.lr * config.lr_factor(step, self.trainer.max_steps)
        now: dict[str, Any] = {"initial_lr": config.lr, "lr": rate}
        now |= {"betas": config.betas, "weight_decay": config.weight_decay}
        for state in checkpoint["optimizer_states"]:
            for group in state["param_groups"]:
                group.update(now)
        for state in checkpoint["lr_schedulers"]:
            state["base_lrs"] = [config.lr] * len(state["base_lrs"])
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        more = step * self.trainer.accumulate_grad_batches - progress["total"]["ready"]
        for part in ("total", "current"):  # batches, which may have become larger or smaller
            progress[part] = {name: count + more for name, count in progress[part].items()}
        for part in ["state_dict"] if self.average is None else ["state_dict", "average"]:
            wrong = sorted(checkpoint.get(part, {}).keys() ^ trained(self).keys())
            if wrong:
                raise ValueError(
                    f"the checkpoint's {part} is not of this configuration: {len(wrong)} weights differ, "
                    f"such as {wrong[:3]}; was train.trainable, train.ema or the network changed?"
                )
        if self.average is not None:
            set_model_state_dict(self, dict(checkpoint["average"]), options=WHOLE)
            shadow = {"shadow_params": [value.detach().clone() for value in self.parameters_to_train]}
            self.average.load_state_dict({**checkpoint["average_numbers"], **shadow})


def weighted_error(prediction: Tensor, target: Tensor, mask: Tensor, extra: float, weight: Tensor) -> Tensor:
    """Mean squared error of (b, c, h, w); the mask (b, 1, H, W) counts (1 + extra) times. weight: (b,)."""
    error = (prediction.float() - target.float()).square() * weight[:, None, None, None]
    if not extra:
        return error.mean()
    pixel_weight = 1 + extra * nn.functional.interpolate(mask.float(), size=error.shape[-2:], mode="area")
    return (pixel_weight * error).mean() / pixel_weight.mean()


def shifted_timesteps(chosen: Tensor, shift: float, timesteps: int) -> Tensor:
    """(b,) int64: uniform draws moved towards the noisy end, u -> shift u / (1 + (shift - 1) u), u in (0, 1).

    Esser et al. 2024, equation 23. shift: above 1 noisier, 1 = as drawn, below 1 cleaner
    """
    u = (chosen.double() + 0.5) / timesteps
    return (shift * u / (1 + (shift - 1) * u) * timesteps).long().clamp(0, timesteps - 1)
