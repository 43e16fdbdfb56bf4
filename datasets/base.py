"""Sources of examples, bounded rejection, the deterministic order of training, collation.

Example number k of a run with seed s is the same whatever the workers, the batch size or an interruption.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from datasets.augment import Choices
from datasets.inputs import Inputs, PairOptions
from datasets.pairs import Pair, build_pair

MAX_TRIES = 16


class Rejected(Exception):
    """This sample is unsuitable; the message says why. The dataset draws another one."""


class Source(Protocol):
    """A collection of compositing examples."""

    def __len__(self) -> int: ...

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        """Inputs of example `index` with its random decisions drawn from `rng`; may raise Rejected."""
        ...


class PairDataset(Dataset[Pair]):
    """Example k of a run: item `order(k)` of the source, built with randomness from (seed, k, try)."""

    def __init__(self, source: Source, options: PairOptions, seed: int) -> None:
        if not len(source):
            raise ValueError("the source holds no examples")
        self.source, self.options, self.seed = source, options, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def order(self, k: int) -> int:
        """Each pass over the source is a permutation of its own."""
        epoch, position = divmod(k, len(self.source))
        if epoch != self._epoch:
            self._epoch, self._order = (
                epoch,
                np.random.default_rng((self.seed, epoch)).permutation(len(self.source)),
            )
        return int(self._order[position])

    def __getitem__(self, k: int) -> Pair:
        reasons = []
        for attempt in range(MAX_TRIES):
            rng = np.random.default_rng((self.seed, k, attempt))
            index = self.order(k) if attempt == 0 else int(rng.integers(len(self.source)))
            try:
                inputs = self.source.example(index, rng)
                return build_pair(inputs, self.options, Choices.sample(rng, self.options))
            except (Rejected, ValueError) as error:
                reasons.append(f"item {index}: {error}")
        raise ValueError(
            f"example {k}: {MAX_TRIES} samples in a row were rejected: {'; '.join(sorted(set(reasons)))}"
        )


class Consecutive(Sampler[int]):
    """Numbers of the examples of a run, from where it stands to its end."""

    def __init__(self, start: int, stop: int) -> None:
        self.numbers = range(start, max(start, stop))

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def collate(pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Stack the tensors of pairs: each (b, ...)."""
    names = [one.name for one in fields(Pair) if isinstance(getattr(pairs[0], one.name), Tensor)]
    return {name: torch.stack([getattr(pair, name) for pair in pairs]) for name in names}
