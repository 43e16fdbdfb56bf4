"""What of a model changes while it is trained."""

import pytest
import torch
from torch import nn

from ldm.training.run import switch_to_training


@pytest.mark.parametrize(("kind", "size"), [(nn.BatchNorm1d, (4, 3)), (nn.BatchNorm2d, (4, 3, 2, 2))])
def test_frozen_batch_norm_keeps_its_statistics_and_a_trained_one_follows(kind, size) -> None:
    model = nn.ModuleDict({"frozen": kind(3).requires_grad_(False), "trained": kind(3)})
    model["dropout"] = nn.Dropout()
    model.eval()
    switch_to_training(model)
    assert [model[name].training for name in ("frozen", "trained", "dropout")] == [False, True, True]
    for name in ("frozen", "trained"):
        model[name](torch.randn(size) + 5)
        assert bool(model[name].running_mean.any()) == (name == "trained")
