"""Properties of depth training: the loss, the augmentation, and that a pause changes nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.experts.depth import DepthEstimator
from ldm.settings.config import load_config
from tiny.depth.train import AugmentConfig, TrainDepthConfig
from tiny.depth.training import align, depth_loss, measure_depth, min_max, train_depth, training_batch

SMALL = [
    "network.size=64", "network.width=8", "network.heads=[1,1,1,1]", "network.depths=[1,1,1,1]",
    "network.window=4", "network.fusion=8", "scenes.train=6", "scenes.held_out=4", "batch=4", "lr=2e-3",
    "warmup=2", "bf16=false", "device=cpu",
]  # fmt: skip
CPU = torch.device("cpu")


def ramps(count: int = 8, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Images whose red channel is their depth: floors that rise at different slopes."""
    y, x = np.mgrid[0:side, 0:side] / side
    slopes = np.random.default_rng(0).uniform(0.3, 1, (count, 1, 1))
    depth = (y * slopes + x * (1 - slopes)) * 0.9
    pixels = np.stack([depth, np.full_like(depth, 0.2), np.full_like(depth, 0.8)], axis=1)
    return (pixels * 255).astype(np.uint8), (depth * 65535).astype(np.uint16)


def test_alignment_undoes_scale_and_shift() -> None:
    target = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert (align(3 * target + 2, target) - target).abs().max() < 2e-2
    exact, scaled = (depth_loss(value, target, 0.5) for value in (target + 0.1, 3 * target + 2))
    assert exact < 0.01 < scaled


def test_min_max_and_measures_of_a_perfect_prediction() -> None:
    images_u8, depth_u16 = ramps()

    class Perfect(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> "Perfect":
            self.predicted_depth = pixel_values[:, 0] * 2 + 3
            return self

    found = measure_depth(Perfect(), images_u8, depth_u16, CPU)
    assert found["mae"] < 0.01
    assert found["order"] > 0.99
    assert min_max(torch.full((1, 4, 4), 7.0)).abs().max() == 0


def test_depth_follows_the_geometry_of_the_image() -> None:
    plain = AugmentConfig(colour=0, permute=0, blur=0, noise=0, wide=0.5)
    sizes = set()
    for seed in range(12):
        pixels_01, depth = training_batch(ramps(side=96), 4, np.random.default_rng(seed), plain, CPU)
        sizes.add(tuple(depth.shape[1:]))
        assert (min_max(pixels_01[:, 0]) - depth).abs().mean() < 0.02
    assert len(sizes) > 1


def test_colours_vary_but_stay_in_range() -> None:
    pixels_01, _ = training_batch(ramps(), 8, np.random.default_rng(0), AugmentConfig(), CPU)
    assert pixels_01.min() >= 0
    assert pixels_01.max() <= 1
    assert pixels_01.mean((0, 2, 3)).std() > 0
    again, _ = training_batch(ramps(), 8, np.random.default_rng(0), AugmentConfig(), CPU)
    assert torch.equal(pixels_01, again)


def test_a_pause_changes_nothing(tmp_path: Path) -> None:
    def train(name: str, steps: int, *more: str) -> tuple[list[float], list[torch.Tensor]]:
        options = [f"out={tmp_path / name}", f"scenes.folder={tmp_path / 'scenes'}", f"steps={steps}"]
        train_depth(load_config(TrainDepthConfig, None, [*SMALL, *options, *more]))
        rows = (tmp_path / name / "log.csv").read_text().splitlines()[1:]
        state = torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        weights = [*state["weights"].values(), *state["average"].values()]
        return [float(row.split(",")[2]) for row in rows], weights

    more = ("log_every=1", "final_lr=1", "warmup=1")  # the rate does not depend on the number of steps
    losses, weights = train("whole", 8, *more)
    train("parts", 4, *more)
    again, continued = train("parts", 8, *more)
    assert len(losses) == 8
    assert again == losses
    assert all(torch.equal(a, b) for a, b in zip(weights, continued, strict=True))
    with pytest.raises(ValueError, match="other settings"):
        train("parts", 8, "seed=1")


def test_the_command_writes_a_network_that_the_expert_loads(tmp_path: Path) -> None:
    options = [*SMALL, f"out={tmp_path / 'run'}", f"scenes.folder={tmp_path / 'scenes'}", "steps=4"]
    train_depth(load_config(TrainDepthConfig, Path("configs/tiny/depth.yaml"), options))
    network = tmp_path / "run" / "network"
    manifest = json.loads((network / "manifest.json").read_text())
    assert manifest["steps"] == 4
    assert 0 < manifest["held_out"]["mae"] < 1
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "scenes").rglob("*.safetensors")}
    assert len(shards) == 2
    depth_01 = DepthEstimator.load(network).estimate(np.zeros((50, 80, 3), np.uint8))
    assert depth_01.shape == (50, 80)
    weights = (network / "model.safetensors").read_bytes()
    train_depth(load_config(TrainDepthConfig, Path("configs/tiny/depth.yaml"), options))
    assert (network / "model.safetensors").read_bytes() == weights  # the average, also of a finished run
    train_depth(load_config(TrainDepthConfig, Path("configs/tiny/depth.yaml"), [*options, "steps=6"]))
    assert json.loads((network / "manifest.json").read_text())["steps"] == 6
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "scenes").rglob("*.safetensors")} == shards


@pytest.mark.parametrize("wrong", ["network.size=100", "batch=0", "augment.crop=2", "learning_rate=1"])
def test_wrong_settings_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.split("=")[0].split(".")[-1]):
        load_config(TrainDepthConfig, None, [wrong])
