"""Train the small first stage (an autoencoder) on stored scenes, then measure it against PCA of patches.

    python -m tiny.compositor.autoencoder configs/tiny/autoencoder.yaml

A linear map of the same size (PCA of f x f patches) is the yardstick: below it nothing has been learned.
"""

from __future__ import annotations

import csv
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cldm.create import AutoencoderConfig, create_autoencoder
from datasets.sources.rendered import read_images
from ldm.files import write_atomic
from ldm.latents import LatentSpace
from ldm.settings.cli import run_module, trainer
from ldm.settings.config import CheckedSettings, setting
from ldm.training.manifest import make_manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FirstStageConfig(CheckedSettings):
    """Where the scenes are, how long to train, where the autoencoder goes."""

    data: Path = setting(help="folder of scene shards for training")
    held_out: Path = setting(help="folder of scene shards for measuring")
    out: Path = setting(help="folder that receives the autoencoder")
    autoencoder: AutoencoderConfig = setting(AutoencoderConfig(), help="sizes")
    crop: int = setting(64, low=16, help="side of the random training crops, pixels")
    batch: int = setting(8, low=1, help="crops per step")
    steps: int = setting(5000, low=1, help="optimizer steps")
    bf16: bool = setting(True, help="bfloat16 autocast; twice as fast on recent CPUs")
    lr: float = setting(1.5e-3, low=0.0, help="peak learning rate, cosine to 0")
    seed: int = setting(0, help="seed of initialisation and crops")
    log_every: int = setting(200, low=1, help="steps between rows of log.csv")


def crops(images_u8: np.ndarray, config: FirstStageConfig, step: int) -> Tensor:
    """The batch of (seed, step): (b, 3, crop, crop) in [-1, 1], flipped and recoloured."""
    rng = np.random.default_rng((config.seed, step))
    limit = images_u8.shape[1] - config.crop + 1
    batch = []
    for index in rng.integers(len(images_u8), size=config.batch):
        top, left = rng.integers(limit, size=2)
        image = images_u8[index, top : top + config.crop, left : left + config.crop]
        image = image[:, :: rng.choice((1, -1)), rng.permutation(3)]
        batch.append(image.astype(np.float32) * rng.uniform(0.7, 1.0) + rng.uniform(0, 40))
    stacked = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
    return (stacked / 127.5 - 1).clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def train(config: FirstStageConfig, images_u8: np.ndarray) -> LatentSpace:
    """Minimise the squared error on images_u8 (n, h, w, 3); returns the autoencoder with its statistics."""
    torch.manual_seed(config.seed)
    vae = create_autoencoder(config.autoencoder).to(memory_format=torch.channels_last)
    space = LatentSpace(vae)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=config.steps, pct_start=0.05
    )
    config.out.mkdir(parents=True, exist_ok=True)
    with (config.out / "log.csv").open("w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["step", "loss", "psnr_db", "seconds"])
        started = time.monotonic()
        for step in tqdm(range(config.steps), desc="first stage"):
            image = crops(images_u8, config, step)
            with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
                decoded = space.vae.decode(space.raw(image)).sample
            loss = nn.functional.mse_loss(decoded.float(), image)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if (step + 1) % config.log_every == 0:
                value = loss.item()
                log.writerow(
                    [step + 1, f"{value:.5f}", f"{psnr(value):.2f}", f"{time.monotonic() - started:.1f}"]
                )
                file.flush()
    return with_statistics(space, images_u8)


def psnr(mse_pm1: float) -> float:
    """Mean squared error of [-1, 1] values -> dB."""
    return float(10 * np.log10(4.0 / mse_pm1))


@torch.inference_mode()
def with_statistics(space: LatentSpace, images_u8: np.ndarray, count: int = 512) -> LatentSpace:
    """The same autoencoder with mean and standard deviation per latent channel over `count` images."""
    vae = space.vae.eval()
    latents = torch.cat(
        [LatentSpace(vae).raw(to_batch(part)) for part in np.array_split(images_u8[:count], 16)]
    )
    return LatentSpace(vae, latents.mean((0, 2, 3)).tolist(), latents.std((0, 2, 3)).tolist())


def to_batch(images_u8: np.ndarray) -> Tensor:
    """(n, h, w, 3) uint8 -> (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images_u8)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def round_trip_db(space: LatentSpace, images_u8: np.ndarray) -> np.ndarray:
    """PSNR of decode(encode(image)) for each image (n, h, w, 3), dB."""
    values: list[float] = []
    for part in np.array_split(images_u8, max(1, len(images_u8) // 16)):
        image = to_batch(part)
        error = (space.decode(space.encode(image)).clamp(-1, 1) - image).square().mean((1, 2, 3))
        values.extend(psnr(float(value)) for value in error)
    return np.array(values)


def pca_db(train_u8: np.ndarray, test_u8: np.ndarray, factor: int, channels: int) -> np.ndarray:
    """The yardstick: PSNR of each test image through the best linear map of factor x factor patches."""

    def patches(images: np.ndarray) -> np.ndarray:
        n, h, w, c = images.shape
        grid = images.reshape(n, h // factor, factor, w // factor, factor, c).transpose(0, 1, 3, 2, 4, 5)
        return grid.reshape(n, -1, factor * factor * c).astype(np.float32) / 127.5 - 1

    flat = patches(train_u8[:512]).reshape(-1, factor * factor * 3)
    mean = flat.mean(0)
    basis = np.linalg.eigh((flat - mean).T @ (flat - mean))[1][:, -channels:]
    centred = patches(test_u8) - mean
    error = np.square(centred - centred @ basis @ basis.T).mean((1, 2))
    return np.array([psnr(float(value)) for value in error])


def run(config: FirstStageConfig) -> None:
    """Train the autoencoder, save it, and compare it with a linear map."""
    started = time.monotonic()
    space = train(config, read_images(config.data, ("image", "without")))
    seconds = time.monotonic() - started
    space.save_pretrained(config.out)
    test = read_images(config.held_out, ("image",))[:256]
    linear = pca_db(read_images(config.data, ("image",)), test, space.factor, space.channels)
    held_out = {
        "images": len(test),
        "psnr_db": round(float(round_trip_db(space, test).mean()), 2),
        "psnr_db_of_pca": round(float(linear.mean()), 2),
    }
    manifest = make_manifest(
        "first_stage", space.vae, seed=config.seed, steps=config.steps, batch=config.batch, seconds=seconds,
        settings=config, held_out=held_out,
    )  # fmt: skip
    write_atomic(config.out / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    logger.info("held out: %s", held_out)


build_app = trainer(FirstStageConfig, run)

if __name__ == "__main__":
    run_module(build_app)
