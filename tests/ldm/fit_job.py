"""A training of a few numbers with `ldm.training.fit`, as a program that can be killed.

python -m tests.ldm.fit_job OUT PAUSE_PER_EXAMPLE DROPOUT [key=value ...]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ldm.checkpoints import drawing
from ldm.denoise import noise_for
from ldm.settings.config import load_config
from ldm.training.fit import Task, fit
from ldm.training.run import Layout
from ldm.training.settings import FitConfig

SMALL = ["lr=0.01", "batch=4", "workers=0", "log_every=1", "save_every=3", "schedule=cosine", "epochs=3"]


class Numbers(Dataset):
    """x, and twice x plus something that changes with the epoch."""

    def __init__(self, count: int = 22, pause: float = 0.0) -> None:
        self.x = torch.randn(count, 3, generator=torch.Generator().manual_seed(count))
        self.epoch, self.pause = 0, pause

    def set_epoch(self, number: int) -> None:
        self.epoch = number

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        time.sleep(self.pause)
        return {"x": self.x[index], "y": self.x[index] * 2 + 0.1 * self.epoch}


class Net(nn.Module):
    """Frozen first layer, dropout, trained second layer."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.dropout = dropout
        with drawing(0):
            self.frozen, self.trained = nn.Linear(3, 16), nn.Linear(16, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.trained(nn.functional.dropout(self.frozen(x).tanh(), self.dropout, self.training))


def loss(model: nn.Module, batch: dict[str, Tensor], seeds: list[int]) -> Tensor:
    noise, _ = noise_for(seeds, (3,))
    return (model(batch["x"] + 0.1 * noise) - batch["y"]).square().mean()


def train(out: Path, overrides: list[str], pause: float = 0.0, dropout: float = 0.2) -> tuple[Path, Net]:
    model, data = Net(dropout), Numbers(pause=pause)
    layout = Layout("adapter/numbers.safetensors", lambda name: f"net.{name}")
    config = load_config(FitConfig, None, [*SMALL, *overrides])
    newest, _ = fit(config, out, model, Task(loss, data, held_out=Numbers(7), layout=layout))
    return newest, model


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[4:], float(sys.argv[2]), float(sys.argv[3]))
