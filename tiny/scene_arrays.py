"""Facts of many scenes as memory-mapped arrays that a trainer can index, made once from shards."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from einops import reduce
from tqdm.auto import tqdm

from ldm.files import full_disk_named, read_json, write_json

T = TypeVar("T")


class ArrayCache:
    """Arrays of the first `count` scenes of some shards, in a folder with the recipe of what they hold."""

    def __init__(self, folder: Path, recipe: dict[str, Any], count: int) -> None:
        self.folder, self.recipe, self.count, self.filled = folder, recipe, count, 0
        self.arrays: dict[str, np.memmap] = {}

    def missing(self, files: Sequence[Path]) -> Iterator[Path]:
        """The shards whose arrays must be appended, none if they all were before.

        Raises ValueError when there are too few scenes, or the cache was made from others.
        """
        done = self.folder / "recipe.json"
        if done.exists():
            if read_json(done) != self.recipe:
                raise ValueError(f"{self.folder} was made from other scenes; remove it")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in tqdm(files, desc="scene arrays", unit="shard"):
            if self.filled == self.count:
                break
            yield file
        if self.filled < self.count:
            raise ValueError(f"{files[0].parent}: {self.filled} scenes, {self.count} are asked for")
        for array in self.arrays.values():
            array.flush()
        write_json(done, self.recipe)

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays of one more shard."""
        start, stop = self.filled, min(self.count, self.filled + len(next(iter(arrays.values()))))
        for name, values in arrays.items():
            if name not in self.arrays:
                path = self.folder / f"{name}.npy"
                self.arrays[name] = np.lib.format.open_memmap(
                    path, "w+", values.dtype, (self.count, *values.shape[1:])
                )
                if hasattr(os, "posix_fallocate"):  # a mapping that finds no space later ends the process
                    with full_disk_named(path), path.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            self.arrays[name][start:stop] = values[: stop - start]
        self.filled = stop

    def load(self, kind: type[T]) -> T:
        """The dataclass `kind` of these arrays."""
        names = kind.__dataclass_fields__  # type: ignore[attr-defined]
        return kind(**{name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in names})


def pooled(maps: np.ndarray, patch: int) -> np.ndarray:
    """(n, v, h, w) -> (n, v, p) means of the patches."""
    return reduce(maps.astype(np.float32), "n v (h y) (w x) -> n v (h w)", "mean", y=patch, x=patch)


def split_scenes(count: int, held_out: int, render: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the scenes that train, and of the last `held_out`; ValueError when none is left to train.

    render: the command that makes more scenes
    """
    if held_out >= count:
        wrong = f"held_out={held_out} of {count} scenes leaves none to train"
        raise ValueError(f"{wrong}; choose a smaller held_out, or more scenes: `python -m {render}`")
    train, last = np.split(np.arange(count), [count - held_out])
    return train, last
