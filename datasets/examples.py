"""The examples of a training run: bounded rejection, the deterministic order of training, collation.

Example number k of a run with seed s is the same whatever the workers, the batch size, the number of devices
or an interruption.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from datasets.base import ExampleSource, Mixture, Rejected, reason
from datasets.inputs import AugmentationParams, PairOptions
from datasets.pairs import Pair, build_pair

MAX_TRIES = 16  # samples of one example before the run stops; chosen


@dataclass(frozen=True, eq=False)
class TrainingSample(Pair):
    dynamics: Tensor  # () int64, of the source
    source: Tensor  # () int64, which source of the mixture it came from
    rejected: tuple[str, ...] = ()  # why samples were rejected before this one was taken


def draw_pair(
    source: ExampleSource, options: PairOptions, key: tuple[int, ...], first: int
) -> tuple[int, Pair | None, list[tuple[int, Exception]]]:
    """Item `first`, or after its rejection random items, each with randomness from (*key, try).

    returns: the item that was accepted and its pair, None where every try was rejected; (item, why) of these
    """
    rejections: list[tuple[int, Exception]] = []
    for attempt in range(MAX_TRIES):
        rng = np.random.default_rng((*key, attempt))
        index = first if attempt == 0 else int(rng.integers(len(source)))
        try:
            inputs = source.example(index, rng)
            return index, build_pair(inputs, options, AugmentationParams.sample(rng, options)), rejections
        except (Rejected, ValueError) as error:
            rejections.append((index, error))
    return first, None, rejections


class PairDataset(Dataset[TrainingSample]):
    """Example k of a run, built with randomness from (seed, k, try)."""

    def __init__(
        self,
        source: ExampleSource | Sequence[ExampleSource],
        options: PairOptions,
        seed: int,
        weights: Sequence[float] = (1.0,),
    ) -> None:
        self.sources: Sequence[ExampleSource] = source if isinstance(source, Sequence) else [source]
        if not all(map(len, self.sources)):
            raise ValueError("the source holds no examples")
        self.options, self.seed = options, seed
        self.mixture = Mixture([len(part) for part in self.sources], weights, seed)

    def __getitem__(self, k: int) -> TrainingSample:
        which, first = self.mixture(k)
        _, pair, rejections = draw_pair(self.sources[which], self.options, (self.seed, k), first)
        if pair is None:
            reasons = "; ".join(sorted({f"item {index}: {error}" for index, error in rejections}))
            raise ValueError(f"example {k}: {MAX_TRIES} samples in a row were rejected: {reasons}")
        return TrainingSample(
            **vars(pair), dynamics=torch.tensor(self.sources[which].dynamics),
            source=torch.tensor(which), rejected=tuple(reason(error) for _, error in rejections),
        )  # fmt: skip


@dataclass(eq=False)
class RunBatches(Sampler[list[int]]):
    """Numbers of the examples of each batch of one device, from where the run stands to its end.

    Batch n of all devices together holds the examples [n * batch * devices, (n + 1) * batch * devices), so a
    run on several devices sees what one device with a larger batch would see, in the same order.
    """

    batches: int  # of the whole run
    batch: int
    stands_at: Callable[[], int] = lambda: 0  # number of the next batch
    rank: int = 0
    world: int = 1

    def __iter__(self) -> Iterator[list[int]]:
        for n in range(self.stands_at(), self.batches):
            first = (n * self.world + self.rank) * self.batch
            yield list(range(first, first + self.batch))

    def __len__(self) -> int:
        """Batches of the whole run: what is done counts too, as in the trainer's own progress."""
        return self.batches


def collate_pairs(pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Stack the tensors of pairs: each (b, ...)."""
    names = [name for name, value in vars(pairs[0]).items() if isinstance(value, Tensor)]
    return {name: torch.stack([getattr(pair, name) for pair in pairs]) for name in names}
