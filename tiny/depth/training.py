"""Training of the small depth network: its images, their variation, the loss.

Legend: b batch, h w pixels.
"""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import OpenShard, render_shards
from ldm.checkpoints import folder_written_whole
from ldm.device import pick_device
from ldm.files import write_atomic
from ldm.settings.config import dump_yaml, to_plain
from tiny.depth import network as dpt
from tiny.depth.train import AugmentConfig, DepthScenes, TrainDepthConfig
from tiny.loop import Stage, stages_manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DepthImages:
    """pixels (b, 3, h, w) uint8 and inverse depth (b, h, w) uint16."""

    pixels_u8: np.ndarray
    depth_u16: np.ndarray


def load_images(config: DepthScenes, size: int, *, held_out: bool, device: torch.device) -> DepthImages:
    """Render what is missing and read the shards. Held-out scenes are always anti-aliased."""
    name, count = ("held_out", config.held_out) if held_out else ("train", config.train)
    smooth = held_out or config.smooth_edges
    settings = StoreSettings(
        out=config.folder / f"{name}-{size}{'-smooth' if smooth else ''}", count=count, device=str(device),
        split="eval" if held_out else "train", size=(size, size), reference_size=(16, 16),  # not needed here
        smooth_edges=smooth,
    )  # fmt: skip
    shards = [OpenShard(path) for path in render_shards(settings)]
    rgb, depth = (
        np.concatenate([np.stack([shard.array(one), shard.array(f"without{other}")], 1) for shard in shards])
        for one, other in (("image_u8", "_u8"), ("depth_u16", "_depth_u16"))
    )
    return DepthImages(rearrange(rgb, "n v h w c -> (n v) c h w"), rearrange(depth, "n v h w -> (n v) h w"))


def training_batch(
    images: DepthImages, batch: int, rng: np.random.Generator, config: AugmentConfig, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`batch` augmented images: pixels (b, 3, h, w) in [0, 1] and depth (b, h, w), min-max per crop."""
    index = rng.integers(0, len(images.pixels_u8), batch)
    pixels_01 = torch.from_numpy(images.pixels_u8[index]).to(device).float() / 255
    depth = torch.from_numpy(images.depth_u16[index].astype(np.float32)).to(device)
    side = pixels_01.shape[-1]
    size = (side, side)
    if rng.random() < config.wide and side > 2 * dpt.MULTIPLE:  # one side a multiple of 32 shorter
        size = (side - dpt.MULTIPLE, side) if rng.random() < 0.7 else (side, side - dpt.MULTIPLE)
    # Random crops, half of them mirrored; the largest of this aspect is `whole` of the square image.
    whole = np.array(size) / side
    scale = rng.uniform(config.crop, 1, (batch, 1)) * np.exp(rng.uniform(-1, 1, (batch, 2)) * config.stretch)
    half = np.minimum(scale * whole, 1)  # (b, 2) half sides (h, w) in grid units, where the image is [-1, 1]
    centre = rng.uniform(-1, 1, (batch, 2)) * (1 - half)
    mirror, zero = rng.choice([-1.0, 1.0], batch), np.zeros(batch)
    rows = np.array([[half[:, 1] * mirror, zero, centre[:, 1]], [zero, half[:, 0], centre[:, 0]]])
    theta = torch.from_numpy(rearrange(rows, "xy k b -> b xy k").astype(np.float32))
    grid = functional.affine_grid(theta, [batch, 3, *size], align_corners=False).to(device)
    pixels_01 = functional.grid_sample(pixels_01, grid, padding_mode="border", align_corners=False)
    # Nearest: a mean of two depths across an edge is a surface that is not there.
    depth = functional.grid_sample(
        depth[:, None], grid, mode="nearest", padding_mode="border", align_corners=False
    )

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (batch, channels, 1, 1)).astype(np.float32)).to(device)

    strength = config.colour  # other light and colours, softness and noise; the same geometry
    orders = np.stack(
        [rng.permutation(3) if rng.random() < config.permute else np.arange(3) for _ in range(batch)]
    )
    pixels_01 = pixels_01[torch.arange(batch, device=device)[:, None], torch.from_numpy(orders).to(device)]
    pixels_01 = pixels_01.clamp(0, 1) ** torch.exp(draw(-strength, strength))
    gray = pixels_01.mean(1, keepdim=True)
    pixels_01 = gray + (pixels_01 - gray) * draw(1 - 1.5 * strength, 1 + strength)
    pixels_01 = 0.5 + (pixels_01 - 0.5) * draw(1 - strength, 1 + strength)
    pixels_01 = pixels_01 + draw(-0.3 * strength, 0.3 * strength)
    pixels_01 = pixels_01 * (1 + draw(-0.4 * strength, 0.4 * strength, 3))
    soft = functional.avg_pool2d(functional.pad(pixels_01, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    mix = draw(0, 1) * torch.from_numpy(rng.random((batch, 1, 1, 1)) < config.blur).to(device)
    pixels_01 = pixels_01 + (soft - pixels_01) * mix
    noise = torch.from_numpy(rng.standard_normal(pixels_01.shape, dtype=np.float32)).to(device)
    pixels_01 = pixels_01 + noise * draw(0, config.noise)
    return pixels_01.clamp(0, 1), dpt.min_max(depth[:, 0])


def train_depth(config: TrainDepthConfig) -> None:
    """Train the small depth network on rendered scenes: render, train, measure_depth, save."""
    size, device = config.network.size, pick_device(config.device)
    model = dpt.build_network(config.network, config.seed).to(device)
    # A continued run may change its length and its places only.
    free = ("out", "device", "steps", "minutes", "save_every_s", "log_every")
    same = {name: value for name, value in to_plain(config).items() if name not in free}
    stage = Stage("depth", model, config, config.out, same=same, state_file="checkpoint.pt")
    write_atomic(config.out / "settings.yaml", dump_yaml(config).encode())
    held_out = load_images(config.scenes, size, held_out=True, device=device)
    # What is done needs no images; `train` still puts the averaged weights into the model.
    images = held_out if stage.done else load_images(config.scenes, size, held_out=False, device=device)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((config.seed, step))
        pixels_01, target = training_batch(images, config.batch, rng, config.augment, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            predicted = dpt.predict(model, pixels_01)
        return dpt.depth_loss(predicted.float(), target, config.edges), {}

    stage.train(loss)
    metrics = dpt.measure_depth(model, held_out.pixels_u8, held_out.depth_u16, device)
    log.info("held out: %s", ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    manifest = stages_manifest("depth", model, [stage], config, config.seed, device=device, held_out=metrics)
    with folder_written_whole(config.out / "network") as folder:
        dpt.save_network(model, folder, size, manifest)
    log.info("written: %s", config.out / "network")
