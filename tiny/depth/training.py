"""The small depth network, its training on rendered scenes, and its held-out measures.

A DPT with a Swin v2 backbone: both are stock transformers classes. Relative position biases let it run at any
size that is a multiple of 32. Legend: b batch, h w pixels; depth is relative inverse depth, 1 = nearest.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional
from transformers import DPTConfig, DPTForDepthEstimation, Swinv2Config

from datasets.scenes.settings import SceneOptions, StoreSettings
from datasets.scenes.store import OpenShard, render_shards
from ldm.checkpoints import drawing, folder_written_whole, save_part
from ldm.device import pick_device
from ldm.experts.depth import NOTICE_FILE
from ldm.files import write_atomic, write_json
from ldm.settings.config import dump_yaml, to_plain
from tiny.depth.paste import Cutouts, Images
from tiny.depth.train import AugmentConfig, TrainDepthConfig
from tiny.loop import Stage, autocast, stages_manifest
from tiny.settings import MULTIPLE, DepthNetwork

log = logging.getLogger(__name__)

NOTICE = (
    "This is the small depth network, trained on rendered rooms only: in photographs it orders things hardly "
    "better than the image row does. For photographs give a depth map, or a real depth network "
    "(python -m ldm.registry pull depth)."
)
MEAN = STD = 0.5  # pixels in [-1, 1]
# The network's output for the farthest point: relative depth has no zero, and a ReLU at 0 is dead.
FLOOR = 0.1
LEVELS = 4  # of the backbone, and of the gradient loss
OPEN_OBJECTS = 3, 8  # solids of a scene of the open world: photographs are crowded
COMPARABLE = 0.02  # pixel pairs whose depths differ less than this have no order


def build_network(config: DepthNetwork, seed: int) -> DPTForDepthEstimation:
    """The untrained network; `seed` decides its weights."""
    backbone = Swinv2Config(
        image_size=config.size, patch_size=4, embed_dim=config.width, depths=list(config.depths),
        num_heads=list(config.heads), window_size=config.window, drop_path_rate=0.0,
        out_features=[f"stage{level}" for level in range(1, LEVELS + 1)])  # fmt: skip
    widths = [config.width * 2**level for level in range(LEVELS)]
    settings = DPTConfig(backbone_config=backbone, neck_hidden_sizes=widths, fusion_hidden_size=config.fusion)
    with drawing(seed):
        model = DPTForDepthEstimation(settings)
        # The stock values leave this narrow decoder almost without signal; the full He gain would explode in
        # its chain of residual sums.
        for part in (*model.neck.modules(), *model.head.modules()):
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                part.weight.data.mul_(0.4)
        last = model.head.head[-2]
        nn.init.normal_(last.weight, std=0.05)
        nn.init.constant_(last.bias, FLOOR + 0.4)  # the mean depth of a room: the ReLU after it is alive
    return model


def predict(model: nn.Module, pixels_01: Tensor) -> Tensor:
    """(b, 3, h, w) in [0, 1] -> (b, h, w) inverse depth."""
    return model(pixel_values=(pixels_01 - MEAN) / STD).predicted_depth.float()


def align(predicted: Tensor, target: Tensor) -> Tensor:
    """Scale and shift every map of `predicted` so that it fits `target` best in the least-squares sense."""
    p, t = (rearrange(value, "b h w -> b (h w)") for value in (predicted, target))
    p_mean, t_mean = p.mean(1, keepdim=True), t.mean(1, keepdim=True)
    variance = ((p - p_mean) ** 2).mean(1, keepdim=True)
    scale = ((p - p_mean) * (t - t_mean)).mean(1, keepdim=True) / (variance + 1e-4)
    return (scale.clamp_min(0.1) * (p - p_mean) + t_mean).view_as(predicted)


def depth_loss(predicted: Tensor, target: Tensor, edges: float) -> Tensor:
    """L1 as it stands and after the best scale and shift, and the gradients of the aligned error.

    The gradients at four resolutions give sharp edges and smooth surfaces. target: (b, h, w) in [0, 1]
    """
    target = FLOOR + target
    aligned_error = align(predicted, target) - target
    values = 0.5 * (predicted - target).abs().mean() + 0.5 * aligned_error.abs().mean()
    gradients = target.new_zeros(())
    for level in range(LEVELS):
        error = aligned_error[:, :: 2**level, :: 2**level]
        gradients = gradients + (error[:, 1:] - error[:, :-1]).abs().mean()
        gradients = gradients + (error[:, :, 1:] - error[:, :, :-1]).abs().mean()
    return values + edges * (gradients / LEVELS)


def min_max(values: Tensor) -> Tensor:
    """(b, h, w) -> [0, 1] per map; constant maps give zeros."""
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    return (values - low) / (high - low).clamp_min(1e-6)


@torch.no_grad()
def measure_depth(
    model: nn.Module, pixels_u8: np.ndarray, depth_u16: np.ndarray, device: torch.device
) -> dict[str, float]:
    """Held-out measures on images (b, 3, h, w) uint8 with depth (b, h, w) uint16: mean error of the min-max
    normalised prediction (mae) and after the best scale and shift (mae_aligned), and the fraction of random
    pixel pairs, with depths further apart than 0.02, in the right depth order (order).
    """
    model.eval()
    rng = np.random.default_rng(0)
    absolute, aligned, right, pairs, n = 0.0, 0.0, 0, 0, len(pixels_u8)
    for start in range(0, n, 16):
        pixels_01 = torch.from_numpy(pixels_u8[start : start + 16]).to(device).float() / 255
        target = min_max(torch.from_numpy(depth_u16[start : start + 16].astype(np.float32)))
        predicted = predict(model, pixels_01).cpu()
        absolute += float((min_max(predicted) - target).abs().mean((1, 2)).sum())
        aligned += float((align(predicted, target) - target).abs().mean((1, 2)).sum())
        p, t = predicted.flatten(1), target.flatten(1)
        i, j = torch.from_numpy(rng.integers(0, p.shape[1], (2, 2000)))
        ordered = (t[:, i] - t[:, j]).abs() > COMPARABLE
        right += int((((p[:, i] > p[:, j]) == (t[:, i] > t[:, j])) & ordered).sum())
        pairs += int(ordered.sum())
    order = right / max(pairs, 1)
    return {"mae": absolute / n, "mae_aligned": aligned / n, "order": order, "images": float(n)}


def save_network(model: nn.Module, folder: Path, size: int, manifest: dict[str, Any]) -> None:
    """A folder that `ldm.experts.depth.DepthEstimator` loads: fp16 weights, preprocessing, manifest."""
    save_part(model, folder)
    preprocessing = {
        "image_processor_type": "DPTImageProcessor", "do_resize": True,
        "size": {"height": size, "width": size}, "keep_aspect_ratio": True, "ensure_multiple_of": MULTIPLE,
        "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [MEAN] * 3, "image_std": [STD] * 3}  # fmt: skip
    write_json(folder / "preprocessor_config.json", preprocessing)
    write_json(folder / NOTICE_FILE, {"notice": NOTICE})
    write_json(folder / "manifest.json", manifest)


def shards_of(config: TrainDepthConfig, world: str, held_out: bool, device: torch.device) -> list[OpenShard]:
    """Shards of a world; renders what is missing, held out smooth."""
    scenes, size, opened = config.scenes, config.network.size, world == "open"
    name, count = ("held_out", scenes.held_out) if held_out else ("train", scenes.train)
    smooth = held_out or scenes.smooth_edges
    settings = StoreSettings(
        out=scenes.folder / f"{name}{'-open' if opened else ''}-{size}{'-smooth' if smooth else ''}",
        count=config.open if opened and not held_out else count, device=str(device), world=world,
        split="eval" if held_out else "train", size=(size, size), reference_size=(16, 16),  # not needed here
        cutouts=scenes.cutouts if opened else None, smooth_edges=smooth,
        objects=OPEN_OBJECTS if opened else SceneOptions.objects)  # fmt: skip
    return [OpenShard(path) for path in render_shards(settings)]


def load_images(shards: Sequence[OpenShard]) -> Images:
    """Pixels (b, 3, h, w) uint8, inverse depth (b, h, w) uint16: each scene, then it without one solid."""
    rgb, depth = (
        np.concatenate([np.stack([shard.array(one), shard.array(f"without{other}")], 1) for shard in shards])
        for one, other in (("image_u8", "_u8"), ("depth_u16", "_depth_u16"))
    )
    return rearrange(rgb, "n v h w c -> (n v) c h w"), rearrange(depth, "n v h w -> (n v) h w")


def training_batch(
    images: Images, batch: int, rng: Generator, config: AugmentConfig, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`batch` of `load_images`, augmented: pixels (b, 3, h, w) in [0, 1], depth (b, h, w), per crop too.

    batch: how many are drawn at random; 0: all, in order
    """
    index = rng.integers(0, len(images[0]), batch) if batch else np.arange(len(images[0]))
    batch = len(index)
    pixels_01 = torch.from_numpy(images[0][index]).to(device).float() / 255
    depth = torch.from_numpy(images[1][index].astype(np.float32)).to(device)
    side = pixels_01.shape[-1]
    size = (side, side)
    if rng.random() < config.wide and side > 2 * MULTIPLE:  # one side a multiple of 32 shorter
        size = (side - MULTIPLE, side) if rng.random() < 0.7 else (side, side - MULTIPLE)
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
    depth = functional.grid_sample(depth[:, None], grid, "nearest", "border", align_corners=False)

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (batch, channels, 1, 1)).astype(np.float32)).to(device)

    strength = config.colour  # other light and colours, softness and noise; the same geometry
    orders = [rng.permutation(3) if rng.random() < config.permute else np.arange(3) for _ in range(batch)]
    channels = torch.from_numpy(np.stack(orders)).to(device)
    pixels_01 = pixels_01[torch.arange(batch, device=device)[:, None], channels]
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
    return pixels_01.clamp(0, 1), min_max(depth[:, 0])


def train_depth(config: TrainDepthConfig) -> None:
    """Train the small depth network on rendered scenes: render, train, measure_depth, save."""
    size, device = config.network.size, pick_device(config.device)
    model = build_network(config.network, config.seed).to(device)
    # A continued run may change its length and its places only.
    free = ("out", "device", "steps", "minutes", "save_every_s", "log_every")
    same = {name: value for name, value in to_plain(config).items() if name not in free}
    stage = Stage("depth", model, config, config.out, same=same, state_file="checkpoint.pt")
    write_atomic(config.out / "settings.yaml", dump_yaml(config).encode())
    worlds = ["plain", "open"] if config.open else ["plain"]
    rest = {world: shards_of(config, world, held_out=True, device=device) for world in worlds}
    held_out = {world: load_images(shards) for world, shards in rest.items()}
    images, cutouts = held_out["plain"], None
    if not stage.done:  # what is done needs no images; `train` still puts the averaged weights into the model
        shards = [one for world in worlds for one in shards_of(config, world, held_out=False, device=device)]
        images = load_images(shards)
        cutouts = Cutouts.read(shards) if config.pasted or config.exchanged else None

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((config.seed, step))
        drawn, count = images, config.batch
        if cutouts is not None:
            drawn, count = cutouts.batch(images, count, rng, config.pasted, config.exchanged), 0
        pixels_01, target = training_batch(drawn, count, rng, config.augment, device)
        with autocast(device.type, enabled=config.bf16):
            predicted = predict(model, pixels_01)
        return depth_loss(predicted.float(), target, config.edges), {}

    stage.train(loss)
    measured = {world: measure_depth(model, *held, device) for world, held in held_out.items()}
    metrics = {name if world == "plain" else f"{world}_{name}": value
               for world, values in measured.items() for name, value in values.items()}  # fmt: skip
    log.info("held out: %s", ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    manifest = stages_manifest("depth", model, [stage], config, config.seed, device=device, held_out=metrics)
    with folder_written_whole(config.out / "network") as folder:
        save_network(model, folder, size, manifest)
    log.info("written: %s", config.out / "network")
