"""What of a model changes while it is trained."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ldm.training.fit import fit
from ldm.training.run import Task
from ldm.training.settings import FitConfig


@pytest.mark.parametrize(("kind", "size"), [(nn.BatchNorm1d, (4, 3)), (nn.BatchNorm2d, (4, 3, 2, 2))])
def test_frozen_batch_norm_keeps_its_statistics_and_a_trained_one_follows(kind, size, tmp_path: Path) -> None:
    model = nn.ModuleDict({"frozen": kind(3).requires_grad_(False), "trained": kind(3)})
    model["dropout"] = nn.Dropout()
    model.eval()
    modes = []

    def loss(network: nn.Module, batch: list[torch.Tensor], seeds: list[int]) -> torch.Tensor:
        modes.append([model[name].training for name in ("frozen", "trained", "dropout")])
        return sum(model[name](batch[0]).square().mean() for name in ("frozen", "trained"))

    config = FitConfig(steps=2, batch=4, workers=0, device="cpu", save_epochs=False)
    fit(config, tmp_path, model, Task(loss, TensorDataset(torch.randn(size) + 5)))
    assert modes == [[False, True, True]] * 2
    for name in ("frozen", "trained"):
        assert bool(model[name].running_mean.any()) == (name == "trained")
