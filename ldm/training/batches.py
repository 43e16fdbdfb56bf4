"""Batches of a training run, and the validation that reads its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ldm.seeds import seed_of

Loss = Callable[[nn.Module, Any, list[int]], Tensor]
Collate = Callable[[list], Any]
Measure = Callable[[nn.Module], dict[str, float]]


def is_due(step: int, every: int) -> bool:
    """Whether something is done after `step`; every 0 = never."""
    return every > 0 and step % every == 0


@contextlib.contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Draws without a generator, such as dropout, follow from `seed`; the state outside stays as it is."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def averaged(average: EMAModel | None, parameters: list[nn.Parameter]) -> Iterator[None]:
    """The parameters hold their running average inside, where one is kept."""
    if average is not None:
        average.store(parameters)
        average.copy_to(parameters)
    yield
    if average is not None:
        average.restore(parameters)


def batch_loader(data: Dataset, batches: list[list[int]], collate: Collate, workers: int) -> DataLoader:
    """Reads the examples of each batch, in up to `workers` processes."""
    unused = torch.Generator().manual_seed(0)  # the loader draws from it, no example does
    workers = min(workers, len(batches))
    return DataLoader(data, batch_sampler=batches, collate_fn=collate, num_workers=workers, generator=unused)


@dataclass(frozen=True)
class Validation:
    """What is measured while a model trains."""

    accelerator: Accelerator
    loss: Loss
    collate: Collate
    held_out: Dataset | None
    measure: Measure | None
    batch: int
    workers: int
    seed: int

    @property
    def exists(self) -> bool:
        return self.held_out is not None or self.measure is not None

    @torch.no_grad()
    def numbers(self, model: nn.Module) -> dict[str, float]:
        """`loss` over the held-out examples, and what `measure` returns."""
        model.eval()
        found = {} if self.held_out is None else {"loss": self.mean_loss(model, self.held_out)}
        return found if self.measure is None else found | self.measure(model)

    def mean_loss(self, model: nn.Module, data: Dataset) -> float:
        """Over all examples, each process its share; the noise of an example is always the same."""
        accelerator, size = self.accelerator, self.batch
        indices = range(len(data))  # type: ignore[arg-type]
        mine = list(indices)[accelerator.process_index :: accelerator.num_processes]
        batches = [mine[start : start + size] for start in range(0, len(mine), size)]
        sums = torch.zeros(2, device=accelerator.device)
        loader = batch_loader(data, batches, self.collate, self.workers)
        for items, batch in zip(batches, loader, strict=True):
            seeds = [seed_of(self.seed, "held out", item) for item in items]
            with drawing(seeds[0], accelerator.device), accelerator.autocast():
                loss = self.loss(model, send_to_device(batch, accelerator.device), seeds)
            sums += torch.tensor([float(loss) * len(items), len(items)], device=sums.device)
        total, count = accelerator.reduce(sums, "sum").tolist()
        return total / max(count, 1)
