"""The examples of a training run: the same whatever the workers, batch size, devices or interruptions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from datasets.base import STOP_AFTER, ExampleSource, Mixture, Rejected, reason
from datasets.inputs import AugmentationParams, PairOptions
from datasets.pairs import Pair, build_pair
from datasets.sources.image_source import ImageSource

ITEMS = 100  # items of a source that are tried for one example, then another source gives it; chosen
SHOWN = 5  # rejections that an error names


@dataclass(frozen=True, eq=False)
class TrainingSample(Pair):
    dynamics: Tensor  # () int64, of the source
    source: int  # which source of the mixture it came from
    planned: int  # whose turn it was; another one where `source` takes its place
    rejected: tuple[tuple[int, str, str], ...] = ()  # before it: source, reason, message


def draw_pair(
    source: ExampleSource, options: PairOptions, key: tuple[int, ...], first: int
) -> tuple[int, Pair | None, list[tuple[int, Exception]]]:
    """Item `first`, or after its rejection other items in a random order, each once before one comes again.

    Each try has randomness from (*key, try).
    returns: the accepted item and its pair, None where ITEMS tries were rejected; (item, why) of the rejected
    """
    rejections, others = list[tuple[int, Exception]](), np.zeros(0, np.int64)
    for attempt in range(ITEMS):
        if attempt == 1:
            chosen = np.random.default_rng((*key, ITEMS)).choice(len(source), min(len(source), ITEMS), False)
            others = np.append(chosen[chosen != first], first)
        rng = np.random.default_rng((*key, attempt))
        index = first if attempt == 0 else int(others[(attempt - 1) % len(others)])
        try:
            inputs = source.example(index, rng)
            return index, build_pair(inputs, options, AugmentationParams.sample(rng, options)), rejections
        except (Rejected, ValueError) as error:
            rejections.append((index, error))
    return first, None, rejections


class PairDataset(Dataset[TrainingSample]):
    """Example k of a run, built with randomness from (seed, k, try).

    Where a source rejects ITEMS tries, another one gives the example, drawn by the fractions of the mixture.
    stop_after: tries of every source for one example before it is a ValueError
    """

    def __init__(
        self,
        source: ExampleSource | Sequence[ExampleSource],
        options: PairOptions,
        seed: int,
        weights: Sequence[float] = (1.0,),
        stop_after: int = STOP_AFTER,
    ) -> None:
        self.stop_after = stop_after
        self.sources: Sequence[ExampleSource] = source if isinstance(source, Sequence) else [source]
        if not all(map(len, self.sources)):
            raise ValueError("the source holds no examples")
        self.options, self.seed = options, seed
        for part in self.sources:
            if isinstance(part, ImageSource):
                part.options = options
        self.mixture = Mixture([len(part) for part in self.sources], weights, seed)

    def __getitem__(self, k: int) -> TrainingSample:
        planned, first = self.mixture(k)
        rejected: list[tuple[int, str, str]] = []
        for turn in range(ceil(self.stop_after / ITEMS)):
            for which in self.sources_in_turn(k, planned):
                key: tuple[int, ...] = (self.seed, k)
                item = first
                if turn or which != planned:
                    key = (*key, turn + 1, which)
                    item = int(np.random.default_rng(key).integers(len(self.sources[which])))
                index, pair, rejections = draw_pair(self.sources[which], self.options, key, item)
                rejected += [(which, reason(error), f"item {i}: {error}") for i, error in rejections]
                if pair is not None:
                    dynamics = torch.tensor(self.sources[which].dynamics)
                    return TrainingSample(**vars(pair), dynamics=dynamics, source=which, planned=planned,
                                          rejected=tuple(rejected))  # fmt: skip
        messages = sorted({message for *_, message in rejected})
        listed = "; ".join(messages[:SHOWN]) + ("; ..." if len(messages) > SHOWN else "")
        raise ValueError(f"example {k}: all {len(rejected)} tries were rejected: {listed}")

    def sources_in_turn(self, k: int, planned: int) -> Iterator[int]:
        """The planned source of example k, then the others, drawn by their fractions."""
        yield planned
        chances = np.array(self.mixture.counts, np.float64)
        rng = np.random.default_rng((self.seed, k, ITEMS + 1))
        chances[planned] = 0
        while chances.any():
            yield (which := int(rng.choice(len(chances), p=chances / chances.sum())))
            chances[which] = 0


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
