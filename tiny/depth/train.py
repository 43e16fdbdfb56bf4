"""Train the tiny depth network on rendered scenes.

    python -m tiny.depth.train configs/tiny/depth.yaml out=runs/tiny/depth minutes=25

Interrupted, it continues from its last checkpoint when started again with the same command.
"""

import copy
import csv
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm.checkpoints import folder_written_whole
from ldm.device import pick_device
from ldm.files import write_atomic
from ldm.settings.cli import run_module, trainer
from ldm.settings.config import CheckedSettings, dump_yaml, setting, to_plain
from ldm.training.manifest import make_manifest
from tiny.depth.network import NetworkConfig, build_network, depth_loss, measure, predict, save_network
from tiny.depth.scenes import AugmentConfig, Images, ScenesConfig, load_images, training_batch
from tiny.loop import Progress, learning_rate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainDepthConfig(CheckedSettings):
    """Everything that decides the trained network."""

    out: Path = setting(
        Path("runs/tiny/depth"), help="folder of the run; the network is in its `network` folder"
    )
    seed: int = setting(0, help="decides the first weights and the order of samples", low=0)
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    network: NetworkConfig = setting(NetworkConfig(), help="sizes of the network")
    scenes: ScenesConfig = setting(ScenesConfig(), help="rendered images")
    augment: AugmentConfig = setting(AugmentConfig(), help="variation of the images")
    steps: int = setting(8000, help="optimizer steps", low=1)
    minutes: float = setting(
        0.0, help="stop after this many minutes of training; 0: only `steps` count", low=0
    )
    batch: int = setting(16, help="images per step", low=1)
    lr: float = setting(1e-3, help="peak learning rate", low=0)
    final_lr: float = setting(0.01, help="last learning rate as a share of the peak", low=0, high=1)
    warmup: int = setting(200, help="steps until the peak learning rate", low=0)
    weight_decay: float = setting(0.05, help="of AdamW", low=0)
    edges: float = setting(0.5, help="weight of the gradient loss", low=0)
    ema: float = setting(0.999, help="decay of the averaged weights, which are the ones saved", low=0, high=1)
    bf16: bool = setting(True, help="bfloat16 autocast")
    save_every_s: float = setting(60.0, help="seconds between checkpoints", low=1)


class Trainer:
    """Network, averaged network and optimizer of a run, with exact continuation from a checkpoint."""

    def __init__(self, config: TrainDepthConfig) -> None:
        self.config = config
        self.device = pick_device(config.device)
        self.model: nn.Module = build_network(config.network, config.seed).to(self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay
        )
        self.progress = Progress()
        self.checkpoint = config.out / "checkpoint.pt"

    def load(self) -> None:
        """Continue from the checkpoint, if there is one of the same settings."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["settings"] != _deciding(self.config):
            raise ValueError(
                f"{self.checkpoint} was made with other settings; choose another out= or remove it"
            )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(state["step"], state["seconds"])
        log.info("continuing at step %d", self.progress.step)

    def save(self) -> None:
        """Write the checkpoint atomically."""
        state = {
            "settings": _deciding(self.config),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.progress.step,
            "seconds": self.progress.seconds,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def step(self, images: Images) -> float:
        """One optimizer step on the batch that belongs to this step number; returns the loss."""
        config = self.config
        rng = np.random.default_rng((config.seed, self.progress.step))
        pixels_01, target = training_batch(images, config.batch, rng, config.augment, self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        loss = self._loss(pixels_01, target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.progress.step += 1
        self._follow()
        return float(loss.detach())

    def _loss(self, pixels_01: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            predicted = predict(self.model, pixels_01)
        return depth_loss(predicted.float(), target, self.config.edges)

    def rate(self) -> float:
        """Learning rate of the next step."""
        return self.config.lr * learning_rate(self.config, self.progress)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averaged weights; at first the average is short, so that it forgets the start."""
        step = self.progress.step
        decay = min(self.config.ema, (1 + step) / (10 + step))
        for mean, value in zip(
            self.average.state_dict().values(), self.model.state_dict().values(), strict=True
        ):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)


def _deciding(config: TrainDepthConfig) -> dict[str, Any]:
    """The settings that a continued run must share; lengths and places may change."""
    free = ("out", "device", "steps", "minutes", "save_every_s")
    return {name: value for name, value in to_plain(config).items() if name not in free}


def run(trainer: Trainer, images: Images) -> None:
    """Train until the last step or minute; checkpoint and log on the way, also when interrupted."""
    config, progress = trainer.config, trainer.progress
    trainer.model.train()
    before, last_save = progress.seconds, time.monotonic()
    start = last_save
    recent: list[float] = []
    bar = tqdm(total=config.steps, initial=progress.step, desc="depth", unit="step")
    try:
        while progress.share(config) < 1:
            recent.append(trainer.step(images))
            progress.seconds = before + time.monotonic() - start
            bar.update()
            if len(recent) == 50:
                _log_row(config.out / "log.csv", progress, float(np.mean(recent)), trainer.rate())
                bar.set_postfix(loss=f"{np.mean(recent):.4f}")
                recent.clear()
            if time.monotonic() - last_save > config.save_every_s:
                trainer.save()
                last_save = time.monotonic()
    finally:
        bar.close()
        trainer.save()


def _log_row(path: Path, progress: Progress, loss: float, lr: float) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as handle:
        writer = csv.writer(handle)
        if fresh:
            writer.writerow(["step", "seconds", "loss", "lr"])
        writer.writerow([progress.step, f"{progress.seconds:.1f}", f"{loss:.5f}", f"{lr:.3e}"])


def train(config: TrainDepthConfig) -> None:
    """Train the small depth network on rendered scenes: render, train, measure, save."""
    work = Trainer(config)
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomic(config.out / "settings.yaml", dump_yaml(config).encode())
    work.load()
    size, device = config.network.size, work.device
    held_out = load_images(config.scenes, size, held_out=True, device=device)
    if work.progress.share(config) < 1:
        run(work, load_images(config.scenes, size, held_out=False, device=device))
    metrics = measure(work.average, held_out.pixels_u8, held_out.depth_u16, device)
    log.info("held out: %s", ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    manifest = make_manifest(
        "depth", work.model, seed=config.seed, steps=work.progress.step, batch=config.batch,
        seconds=work.progress.seconds, settings=config, device=work.device, held_out=metrics,
    )  # fmt: skip
    with folder_written_whole(config.out / "network") as folder:
        save_network(work.average, folder, size, manifest)
    log.info("written: %s", config.out / "network")


build_app = trainer(TrainDepthConfig, train)

if __name__ == "__main__":
    run_module(build_app)
