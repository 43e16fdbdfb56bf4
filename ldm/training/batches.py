"""The task of a training run and its batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from ldm.training.checkpoints import Layout

LossFunction = Callable[[nn.Module, Any, list[int]], Tensor]


@dataclass(frozen=True)
class Task:
    """What a model learns from which examples, and what is measured meanwhile.

    loss(model, batch, seeds): mean loss of a collated batch, ();  model: the one to call, which may be
        wrapped for several processes;  seeds: one per example, for its noise (`ldm.denoise.noise_for`)
    data: has a length and items; where it has `set_epoch(n)`, that is called before each epoch
    held_out: its mean loss is the validation loss, always with the same seeds
    measure(model): more numbers for validation.csv, called without gradients on every process
    rates(name): learning rate of a parameter; metrics.csv shows the first one
    """

    loss: LossFunction
    data: Dataset
    collate: Callable[[list], Any] = default_collate
    held_out: Dataset | None = None
    measure: Callable[[nn.Module], dict[str, float]] | None = None
    layout: Layout = Layout()
    rates: Callable[[str], float] | None = None

    def loader(self, data: Dataset, batches: list[list[int]], workers: int) -> DataLoader:
        """Reads the examples of each batch, in up to `workers` processes."""
        return DataLoader(
            data,
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=min(workers, len(batches)),
            generator=torch.Generator().manual_seed(0),  # the loader draws from it, no example does
        )


def is_due(step: int, every: int) -> bool:
    """Whether something is done after `step`; every 0 = never."""
    return every > 0 and step % every == 0


@contextlib.contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Draws without a generator, such as dropout, follow from `seed`; the state outside stays as it is."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
