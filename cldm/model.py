"""The compositor: SD UNet, a detail and a depth control branch, DINOv2 identity tokens, an autoencoder.

All networks are stock diffusers / transformers objects. What the papers add is small: the control branches
never see the noisy latent (AnyDoor, Bifrost), and their residuals are summed with one weight each.
A folder has a configuration and one sub-folder per network in `save_pretrained` layout: unet/ control_detail/
control_depth/ image_encoder/ projector/ vae/ scheduler/ compositor.json
Legend: b conditions, n images (a multiple of b), c channels, h w latent pixels, H W pixels, r side of the
reference, t tokens (CLS first, then patches).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Dinov2Model

from cldm.config import CONFIG_FILE, CompositorConfig, load_compositor_config
from ldm.checkpoints import folder_written_whole, load_part, load_strict, loading, read_weights, save_part
from ldm.files import read_json
from ldm.images import IMAGENET_MEAN, IMAGENET_STD
from ldm.latents import LatentSpace
from ldm.reuse import attended
from ldm.settings.config import write_config


class IdentityEncoder(nn.Module):
    """Reference image on white -> tokens that the UNet and both control branches attend to (section 3.2).

    The DINOv2 folder must be made for the reference size itself (full size: 224 px, patch 14, 16 x 16
    position embeddings, interpolated once at conversion), so nothing is interpolated here.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Dinov2Model, projector: nn.Linear) -> None:
        super().__init__()
        given, taken = encoder.config.hidden_size, projector.in_features
        if given != taken:
            raise ValueError(f"projector takes {taken} features, the encoder gives {given}")
        self.encoder, self.projector = encoder, projector
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    @property
    def reference_size(self) -> int:
        """Side of the square reference image, pixels."""
        return self.encoder.config.image_size

    def forward(self, reference_01: Tensor) -> Tensor:
        """(b, 3, r, r) in [0, 1], object on white -> (b, t, c) tokens after the final norm, projected."""
        pixels = (reference_01 - self.mean.to(reference_01.dtype)) / self.std.to(reference_01.dtype)
        return self.projector(self.encoder(pixel_values=pixels).last_hidden_state)

    def null(self, count: int = 1) -> Tensor:
        """Tokens (count, t, c) of the all-zero image, the unconditional identity."""
        weight, side = self.projector.weight, self.reference_size  # sharded, its new_zeros would be so too
        black = torch.zeros(1, 3, side, side, dtype=weight.dtype, device=weight.device)
        return self(black).expand(count, -1, -1)

    def save_pretrained(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        save_part(self.encoder, folder / "image_encoder", dtype)
        (folder / "projector").mkdir(parents=True, exist_ok=True)
        weights = {key: value.detach().to("cpu", dtype) for key, value in self.projector.state_dict().items()}
        save_file(weights, folder / "projector" / "model.safetensors")

    @classmethod
    @loading()
    def from_pretrained(cls, folder: Path, dtype: torch.dtype = torch.float32) -> "IdentityEncoder":
        encoder = load_part(Dinov2Model, folder / "image_encoder", dtype)
        weights = read_weights(folder / "projector")
        if "weight" not in weights or weights["weight"].ndim != 2:
            raise ValueError(f"{folder / 'projector'}: needs the matrix 'weight' of a linear layer")
        width, features = weights["weight"].shape
        projector = nn.Linear(features, width)
        load_strict(projector, weights, folder / "projector")
        return cls(encoder, projector.to(dtype)).eval()


class ControlBranch(nn.Module):
    """A stock ControlNetModel whose first convolution is zero and frozen, so that x_t has no influence.

    Its residuals depend on hint, tokens and timestep only: one evaluation serves every image that shares
    them, and the hint embedding is computed once per image (published code: the hint replaces h_0).
    """

    def __init__(self, net: ControlNetModel) -> None:
        super().__init__()
        self.net = net
        for parameter in net.conv_in.parameters():
            parameter.requires_grad_(False)
            if not parameter.is_meta:
                parameter.zero_()

    def embed(self, hint: Tensor) -> Tensor:
        """Hint (b, 3 or 4, H, W) -> embedding (b, c, h, w); depends on nothing else."""
        return self.net.controlnet_cond_embedding(hint)

    def forward(self, embedding: Tensor, timestep: Tensor, tokens: Tensor) -> list[Tensor]:
        """The stock forward from its first sum on: one residual per UNet skip, the mid block's last."""
        net = self.net
        time = net.time_embedding(net.time_proj(timestep.expand(len(embedding))).to(embedding.dtype))
        sample, skips = embedding, [embedding]
        for block in net.down_blocks:
            sample, outputs = block(
                hidden_states=sample, temb=time, **attended(block, {"encoder_hidden_states": tokens})
            )
            skips.extend(outputs)
        sample = net.mid_block(sample, time, encoder_hidden_states=tokens)
        residuals = [zero(skip) for skip, zero in zip(skips, net.controlnet_down_blocks, strict=True)]
        return [*residuals, net.controlnet_mid_block(sample)]


@dataclass(frozen=True)
class Conditions:
    """What stays constant over all steps and all samples of one composite."""

    tokens: Tensor  # (b, t, c)     identity
    detail: Tensor  # (b, c, h, w)  embedded detail hint
    depth: Tensor  # (b, c, h, w)  embedded depth hint

    def halves(self) -> list["Conditions"]:
        """What `with_null` joined: the unconditional half, the conditional one."""
        values = self.tokens, self.detail, self.depth
        return [Conditions(*(value.chunk(2)[half] for value in values)) for half in (0, 1)]

    def digests(self) -> list[str]:
        """What tells these conditions from others: a hash of the shape and bytes of each tensor."""
        parts = [getattr(self, field.name).contiguous() for field in fields(self)]
        data = [str(part.shape).encode() + part.view(torch.uint8).cpu().numpy().tobytes() for part in parts]
        return [hashlib.sha256(each).hexdigest() for each in data]

    def with_null(self, null_tokens: Tensor) -> "Conditions":
        """Both halves of guidance: the unconditional one differs in the tokens only; (2b, ...)."""
        tokens = torch.cat([null_tokens.expand_as(self.tokens), self.tokens])
        return Conditions(tokens, self.detail.repeat(2, 1, 1, 1), self.depth.repeat(2, 1, 1, 1))


class Compositor(nn.Module):
    """Everything with weights. `scheduler_config` is the noise schedule it was trained with."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        detail: ControlNetModel,
        depth: ControlNetModel,
        identity: IdentityEncoder,
        latent_space: LatentSpace,
        scheduler_config: dict,
    ) -> None:
        super().__init__()
        self.unet, self.detail, self.depth = unet, ControlBranch(detail), ControlBranch(depth)
        self.identity, self.latent_space = identity, latent_space
        self.scheduler_config = dict(scheduler_config)
        self.graphs: Any = None  # cldm.graphs.Graphs: computes in the place of UNet and branches in sampling
        net = unet.config
        fits: dict[str, tuple[Any, Any]] = {
            "projector width": (identity.projector.out_features, net.cross_attention_dim),
            "latent channels of the autoencoder": (latent_space.channels, net.in_channels),
        }
        for name, branch, channels in (("detail", detail, 4), ("depth", depth, 3)):
            ours, blocks = branch.config, (branch.config.block_out_channels, net.block_out_channels)
            fits[f"{name} branch token width"] = (ours.cross_attention_dim, net.cross_attention_dim)
            fits[f"{name} branch blocks"] = (list(blocks[0]), list(blocks[1]))
            fits[f"{name} hint channels"] = (ours.conditioning_channels, channels)
        for name, (got, needed) in fits.items():
            if got != needed:
                raise ValueError(f"compositor parts do not fit: {name} is {got}, must be {needed}")

    @property
    def dtype(self) -> torch.dtype:
        """That of the UNet; its own property looks at every weight."""
        return self.unet.conv_in.weight.dtype

    def conditions(self, reference_01: Tensor, detail_pm1: Tensor, depth_01: Tensor) -> Conditions:
        """reference (b, 3, r, r), detail hint (b, 4, H, W), depth hint (b, 3, H, W) -> Conditions."""
        detail, depth = self.detail.embed(detail_pm1), self.depth.embed(depth_01)
        return Conditions(self.identity(reference_01), detail, depth)

    def residuals(
        self, timestep: Tensor, conditions: Conditions, w_detail: float = 1.0, w_depth: float = 1.0
    ) -> list[Tensor]:
        """Fused control residuals for b conditions at one timestep per condition (or one for all).

        c_f = w_detail c_h + w_depth c_d, one entry per UNet skip (paper: w_detail 1, w_depth lambda).
        """
        nets = self.graphs or self
        branches = (nets.detail, conditions.detail, w_detail), (nets.depth, conditions.depth, w_depth)
        weighted = [
            [weight * residual for residual in branch(hint, timestep, conditions.tokens)]
            for branch, hint, weight in branches
            if weight or not w_detail and not w_depth  # a branch of weight 0 is not run
        ]
        return [sum(parts[1:], parts[0]) for parts in zip(*weighted, strict=True)]

    def forward(
        self, x: Tensor, timestep: Tensor, conditions: Conditions, w_detail: float = 1.0, w_depth: float = 1.0
    ) -> Tensor:
        """Noise or velocity of x (n, c, h, w); images [i n/b, (i+1) n/b) use condition and timestep i."""
        times = len(x) // len(conditions.tokens)
        if times * len(conditions.tokens) != len(x):
            raise ValueError(f"{len(x)} images cannot share {len(conditions.tokens)} conditions evenly")
        residuals = self.residuals(timestep, conditions, w_detail, w_depth)
        tokens, *residuals = [shared(value, times) for value in (conditions.tokens, *residuals)]
        if timestep.ndim and len(timestep) > 1:
            timestep = timestep.repeat_interleave(times)
        return self.predict(x, timestep, tokens, residuals)

    def predict(self, x: Tensor, timestep: Tensor, tokens: Tensor, residuals: Sequence[Tensor]) -> Tensor:
        """The stock UNet on x (n, c, h, w) with n rows of tokens and of each residual."""
        *down, mid = residuals
        hints = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return self.unet(x, timestep, encoder_hidden_states=tokens, **hints).sample


def joined_conditions(conditions: Sequence[Conditions]) -> Conditions:
    """Those of several composites, each of b rows: the first row of every one, then the second."""
    names = [field.name for field in fields(Conditions)]
    rows = ([getattr(each, name) for each in conditions] for name in names)
    return Conditions(*(torch.stack(each, dim=1).flatten(0, 1) for each in rows))


def shared(value: Tensor, times: int) -> Tensor:
    """(b, ...) -> (b * times, ...), each row `times` in a row."""
    return value if times == 1 else value.repeat_interleave(times, dim=0)


def save_compositor(
    model: Compositor, config: CompositorConfig, folder: Path, dtype: torch.dtype = torch.float16
) -> None:
    """Write the whole folder, or nothing."""
    with folder_written_whole(folder) as partial:
        save_part(model.unet, partial / "unet", dtype)
        save_part(model.detail.net, partial / "control_detail", dtype)
        save_part(model.depth.net, partial / "control_depth", dtype)
        model.identity.save_pretrained(partial, dtype)
        model.latent_space.save_pretrained(partial / "vae", dtype)
        DDIMScheduler.from_config(model.scheduler_config).save_pretrained(partial / "scheduler")
        write_config(partial / CONFIG_FILE, config)


def load_compositor(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Compositor, CompositorConfig]:
    """On the CPU in eval mode, strictly loaded: ValueError names what is missing, unexpected, mis-shaped."""
    config = load_compositor_config(folder)
    unet = load_part(UNet2DConditionModel, folder / "unet", dtype)
    detail = load_part(ControlNetModel, folder / "control_detail", dtype)
    depth = load_part(ControlNetModel, folder / "control_depth", dtype)
    identity = IdentityEncoder.from_pretrained(folder, dtype)
    space = LatentSpace.from_pretrained(folder / "vae", dtype)
    schedule = read_json(folder / "scheduler" / "scheduler_config.json")
    return Compositor(unet, detail, depth, identity, space, schedule).eval(), config
