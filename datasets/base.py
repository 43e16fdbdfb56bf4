"""Sources of examples, and their mixture."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from datasets.inputs import Inputs
from ldm.settings.later import later_names

STOP_AFTER = 2000  # tries of a source without an accepted example, after which a run stops; chosen
BLOCK = 1000  # examples in which the fractions of a mixture are exact to 1 in 1000

# What a source's references show of the target (published dynamics 0, 1, 2), for the choice of timesteps.
STILL, MOVING, BOTH = 0, 1, 2


class Rejected(Exception):
    """This sample is unsuitable; the message says why. The dataset draws another one."""


UNREADABLE = "file"  # reason of everything that is wrong with files


def reason(error: Exception) -> str:
    """What a rejection is counted under: the start of a message of Rejected, or UNREADABLE."""
    return str(error).partition(":")[0] if isinstance(error, Rejected) else UNREADABLE


class ExampleSource(Protocol):
    """Examples. dynamics: STILL when the reference is the target's own object (texture is learned, late
    timesteps), MOVING when it shows another pose (shape is learned, early timesteps), or BOTH.
    """

    dynamics: int

    def __len__(self) -> int: ...

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        """Inputs of example `index` with its random decisions drawn from `rng`; may raise Rejected."""
        ...


class Mixture:
    """Source and item of example k: exact fractions in every 1000, each source in its own order."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        if len(sizes) != len(weights) or not sizes:
            raise ValueError(f"a mixture of {len(sizes)} sources needs as many weights, got {len(weights)}")
        if min(weights) <= 0:
            raise ValueError(f"weights of a mixture must be positive, got {list(weights)}")
        self.sizes, self.seed = tuple(sizes), seed
        # Whole numbers in proportion to the weights (largest remainder), at least 1 each.
        exact = np.asarray(weights, np.float64) / sum(weights) * BLOCK
        counts = np.maximum(np.floor(exact).astype(np.int64), 1)
        for index in np.argsort(counts - exact, kind="stable")[: max(0, BLOCK - counts.sum())]:
            counts[index] += 1
        counts[np.argmax(counts)] -= counts.sum() - BLOCK
        self.counts = tuple(counts.tolist())
        self.block = np.repeat(np.arange(len(counts)), counts)  # the sources of a block, not yet in its order

    def __call__(self, k: int) -> tuple[int, int]:
        """k -> (source, item). Each pass over a source is a permutation of its own."""
        source, turn = 0, k
        if len(self.sizes) > 1:
            block, place = divmod(k, BLOCK)
            sources = self.block[_order(BLOCK, self.seed, block, 1 << 20)]
            source = int(sources[place])
            turn = block * self.counts[source] + int(np.count_nonzero(sources[:place] == source))
        number, place = divmod(turn, self.sizes[source])
        return source, int(_order(self.sizes[source], self.seed, number, source)[place])


@lru_cache(maxsize=32)
def _order(size: int, *key: int) -> np.ndarray:
    """The numbers below size in an order that the key decides."""
    return np.random.default_rng(key).permutation(size)


__getattr__ = later_names("datasets", {"PairDataset": "examples"})  # its public place
