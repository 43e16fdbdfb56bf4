"""Training of the small first stage, and the linear map (PCA) that it is compared with."""

import logging

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from cldm.create import create_autoencoder
from datasets.sources.rendered import read_images
from ldm.checkpoints import drawing
from ldm.files import write_json
from ldm.latents import LatentSpace
from ldm.settings.config import to_plain
from tiny.compositor.autoencoder import AutoencoderTraining
from tiny.loop import Stage, autocast, stages_manifest
from tiny.settings import StageSettings


def psnr(mse_pm1: float) -> float:
    """Mean squared error of [-1, 1] values -> dB."""
    return float(10 * np.log10(4.0 / mse_pm1))


def pm1_batch(images_u8: np.ndarray) -> Tensor:
    """(n, h, w, 3) uint8 -> (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images_u8)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def round_trip_db(space: LatentSpace, images_u8: np.ndarray) -> np.ndarray:
    """PSNR of decode(encode(image)) for each image (n, h, w, 3), dB."""
    values: list[float] = []
    for part in np.array_split(images_u8, max(1, len(images_u8) // 16)):
        image = pm1_batch(part)
        error = (space.decode(space.encode(image)).clamp(-1, 1) - image).square().mean((1, 2, 3))
        values += map(psnr, error.tolist())
    return np.array(values)


def pca_db(train_u8: np.ndarray, test_u8: np.ndarray, factor: int, channels: int) -> np.ndarray:
    """The baseline: PSNR of each test image through the best linear map of factor x factor patches."""
    rule = {"y": factor, "x": factor}
    images = train_u8[:512], test_u8
    patches = (rearrange(u8, "n (h y) (w x) c -> n (h w) (y x c)", **rule) for u8 in images)
    train, test = (patch.astype(np.float32) / 127.5 - 1 for patch in patches)
    flat = rearrange(train, "n p d -> (n p) d")
    mean = flat.mean(0)
    basis = np.linalg.eigh((flat - mean).T @ (flat - mean))[1][:, -channels:]
    centred = test - mean
    error = np.square(centred - centred @ basis @ basis.T).mean((1, 2))
    return np.array([psnr(value) for value in error.tolist()])


def train_first_stage(config: AutoencoderTraining) -> None:
    """Train the autoencoder on the squared error, save it, and compare it with a linear map."""
    test = read_images(config.held_out, ("image",))[:256]  # missing ones are noticed before training
    images_u8 = read_images(config.data, ("image", "without"))  # (n, h, w, 3)
    if config.crop > (side := min(images_u8.shape[1:3])):
        raise ValueError(f"crop={config.crop}: the scenes of {config.data} have sides of {side} pixels")
    with drawing(config.seed):
        vae = create_autoencoder(config.autoencoder).to(memory_format=torch.channels_last)
    space = LatentSpace(vae)
    settings = StageSettings(
        steps=config.steps, batch=config.batch, lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0,
        log_every=config.log_every)  # fmt: skip

    def schedule(optimizer: torch.optim.Optimizer) -> OneCycleLR:
        warm_up = 0.1 if config.steps == 20 else 0.05  # torch divides by its steps less one
        return OneCycleLR(optimizer, config.lr, total_steps=config.steps, pct_start=warm_up)

    @autocast("cpu", enabled=config.bf16)
    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        """On random crops (b, 3, crop, crop) in [-1, 1], flipped and recoloured."""
        rng = np.random.default_rng((config.seed, step))
        batch = []
        for index in rng.integers(len(images_u8), size=config.batch):
            top, left = rng.integers(images_u8.shape[1] - config.crop + 1, size=2)
            crop = images_u8[index, top : top + config.crop, left : left + config.crop]
            crop = crop[:, :: rng.choice((1, -1)), rng.permutation(3)]
            batch.append(crop.astype(np.float32) * rng.uniform(0.7, 1.0) + rng.uniform(0, 40))
        stacked = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
        image = (stacked / 127.5 - 1).clamp(-1, 1).contiguous(memory_format=torch.channels_last)
        error = nn.functional.mse_loss(space.vae.decode(space.raw(image)).sample.float(), image)
        return error, {"psnr_db": psnr(error.item())}

    free = ("out", "held_out", "log_every")
    same = {name: value for name, value in to_plain(config).items() if name not in free}
    stage = Stage("first stage", vae, settings, config.out, schedule=schedule, same=same).train(loss)
    with torch.inference_mode():  # mean and deviation of each latent channel, of 512 images
        parts = np.array_split(images_u8[:512], max(1, min(512, len(images_u8)) // 32))
        latents = torch.cat([LatentSpace(vae.eval()).raw(pm1_batch(part)) for part in parts])
    space = LatentSpace(vae, latents.mean((0, 2, 3)).tolist(), latents.std((0, 2, 3)).tolist())
    space.save_pretrained(config.out)
    linear = pca_db(read_images(config.data, ("image",)), test, space.factor, space.channels)
    ours, theirs = (round(float(db.mean()), 2) for db in (round_trip_db(space, test), linear))
    held_out = {"images": len(test), "psnr_db": ours, "psnr_db_of_pca": theirs}
    manifest = stages_manifest("first_stage", space.vae, [stage], config, config.seed, held_out=held_out)
    write_json(config.out / "manifest.json", manifest)
    stage.checkpoint.unlink()  # the folder is a model now; the same command again trains anew
    logging.getLogger(__name__).info("held out: %s", held_out)
