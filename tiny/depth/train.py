"""Train the tiny depth network on rendered scenes.

    python -m tiny.depth.train configs/tiny/depth.yaml out=runs/tiny/depth minutes=25

Interrupted, it continues from its last checkpoint when started again with the same command.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.checkpoints import folder_written_whole
from ldm.device import pick_device
from ldm.files import write_atomic
from ldm.settings.cli import run_module, trainer
from ldm.settings.config import dump_yaml, setting, to_plain
from tiny.depth.network import DepthNetwork, build_network, depth_loss, measure_depth, predict, save_network
from tiny.depth.scenes import AugmentConfig, DepthScenes, load_images, training_batch
from tiny.loop import Stage, StageSettings, stages_manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainDepthConfig(StageSettings):
    """Everything that decides the trained network."""

    out: Path = setting(
        Path("runs/tiny/depth"), help="folder of the run; the network is in its `network` folder"
    )
    seed: int = setting(0, help="decides the initial weights and the order of samples", low=0)
    device: str = setting("auto", help="auto, cuda, mps or cpu")
    network: DepthNetwork = setting(DepthNetwork(), help="sizes of the network")
    scenes: DepthScenes = setting(DepthScenes(), help="rendered images")
    augment: AugmentConfig = setting(AugmentConfig(), help="variation of the images")
    steps: int = setting(8000, help="optimizer steps", low=1)
    batch: int = setting(16, help="images per step", low=1)
    final_lr: float = setting(0.01, help="last learning rate as a fraction of the peak", low=0, high=1)
    warmup: int = setting(200, help="steps until the peak learning rate", low=0)
    weight_decay: float = setting(0.05, help="of AdamW", low=0)
    edges: float = setting(0.5, help="weight of the gradient loss", low=0)
    ema: float = setting(0.999, help="decay of the averaged weights, which are the ones saved", low=0, high=1)


def train_depth(config: TrainDepthConfig) -> None:
    """Train the small depth network on rendered scenes: render, train, measure_depth, save."""
    size, device = config.network.size, pick_device(config.device)
    model = build_network(config.network, config.seed).to(device)
    # A continued run may change its length and its places only.
    free = ("out", "device", "steps", "minutes", "save_every_s", "log_every")
    same = {name: value for name, value in to_plain(config).items() if name not in free}
    stage = Stage("depth", model, config, config.out, same=same, state_file="checkpoint.pt")
    write_atomic(config.out / "settings.yaml", dump_yaml(config).encode())
    held_out = load_images(config.scenes, size, held_out=True, device=device)
    if not stage.done:
        images = load_images(config.scenes, size, held_out=False, device=device)

        def loss(step: int) -> tuple[Tensor, dict[str, float]]:
            rng = np.random.default_rng((config.seed, step))
            pixels_01, target = training_batch(images, config.batch, rng, config.augment, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
                predicted = predict(model, pixels_01)
            return depth_loss(predicted.float(), target, config.edges), {}

        stage.train(loss)
    metrics = measure_depth(model, held_out.pixels_u8, held_out.depth_u16, device)
    log.info("held out: %s", ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    manifest = stages_manifest("depth", model, [stage], config, config.seed, device=device, held_out=metrics)
    with folder_written_whole(config.out / "network") as folder:
        save_network(model, folder, size, manifest)
    log.info("written: %s", config.out / "network")


build_app = trainer(TrainDepthConfig, train_depth)

if __name__ == "__main__":
    run_module(build_app)
