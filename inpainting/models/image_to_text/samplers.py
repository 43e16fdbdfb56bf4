"""Which images form which batch, and how opaque their masks are at that step of the training.

The order is that of `ldm.training.checkpoints.Order` and follows from (seed, epoch) alone, the opacities of
an image from (seed, epoch, image, step). So a run can go on in the middle of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from inpainting.models.image_to_text.dataset import LlavaDataset
from inpainting.models.image_to_text.schedulers import AlphaScheduler
from inpainting.prompts import COLORS
from ldm.seeds import seed_of
from ldm.training.checkpoints import ResumableSampler

Indexed = tuple[int, list[float]]


class AlphaScheduleBatchSampler(Sampler[list[Indexed]]):
    """Batches of (index, alphas); the scheduler's step goes on with each step of the optimizer.

    A step takes num_processes * gradient_accumulation_steps batches, fewer at the end of an epoch.
    """

    def __init__(
        self,
        dataset: Sized,
        alpha_scheduler: AlphaScheduler,
        num_processes: int,
        gradient_accumulation_steps: int,
        max_concepts: int | None = 5,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        *,
        seed: int = 0,
    ) -> None:
        """max_concepts: alphas per image, none: as many as colours; generator: gives its initial seed"""
        for name, value in (("batch_size", batch_size), ("num_processes", num_processes),
                            ("gradient_accumulation_steps", gradient_accumulation_steps)):  # fmt: skip
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.dataset, self.scheduler = dataset, alpha_scheduler
        self.per_step = num_processes * gradient_accumulation_steps
        self.size = max_concepts or len(COLORS)
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self.seed = seed if generator is None else generator.initial_seed()
        self.epoch = 0

    def __len__(self) -> int:
        count = len(self.dataset) / self.batch_size
        return math.floor(count) if self.drop_last else math.ceil(count)

    @property
    def steps(self) -> int:
        """Of the optimizer in an epoch."""
        return math.ceil(len(self) / self.per_step)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass; without a call, passes count up from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Indexed]]:
        epoch = self.epoch
        self.epoch += 1
        self.scheduler.set_step(epoch * self.steps)
        for number, batch in enumerate(self.batches(epoch), 1):
            yield [(index, self.alphas(epoch, index)) for index in batch]
            if number % self.per_step == 0:
                self.scheduler.increment_step()

    def batches(self, epoch: int) -> list[list[int]]:
        """The images of each batch."""
        count = len(self.dataset)
        if self.shuffle:
            found = ResumableSampler(count, self.batch_size, self.seed).epoch(epoch)
        else:
            starts = range(0, count, self.batch_size)
            found = [list(range(start, min(start + self.batch_size, count))) for start in starts]
        return found[: len(self)]

    def alphas(self, epoch: int, index: int) -> list[float]:
        """The opacities of an image's masks at the scheduler's step."""
        rng = np.random.default_rng(seed_of(self.seed, "alpha", epoch, index))
        return self.scheduler.get_alphas(self.size, rng)


class WithAlphas(Dataset[dict[str, Any]]):
    """A data set whose items have the opacities that a sampler gives them in the epoch.

    `ldm.training.fit` takes the same batches from the same order.
    """

    def __init__(self, dataset: LlavaDataset, sampler: AlphaScheduleBatchSampler) -> None:
        self.dataset, self.sampler = dataset, sampler
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Other random decisions and opacities from now on."""
        self.dataset.set_epoch(epoch)
        self.sampler.set_epoch(epoch)
        self.alphas = {index: alphas for batch in self.sampler for index, alphas in batch}

    def __len__(self) -> int:
        return len(self.sampler.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index, self.alphas[index]]
