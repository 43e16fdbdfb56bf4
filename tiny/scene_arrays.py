"""Facts of many scenes as memory-mapped arrays that a trainer can index, made once from shards."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm.auto import tqdm

from ldm.files import read_json, write_json

T = TypeVar("T")


def memory_mapped(
    kind: type[T],
    cache: Path,
    recipe: dict[str, Any],
    files: Iterable[Path],
    count: int,
    arrays_of: Callable[[Path], dict[str, np.ndarray]],
) -> T:
    """The dataclass `kind` of arrays of the first `count` scenes of the shards `files`.

    They are made once in the folder `cache`; recipe: what they were made from. arrays_of: those of one shard.
    Raises ValueError when there are fewer scenes, or the cache was made from others.
    """
    done = cache / "recipe.json"
    if done.exists() and read_json(done) != recipe:
        raise ValueError(f"{cache} was made from other scenes; remove it")
    if not done.exists():
        cache.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, np.memmap] = {}
        start = 0
        for file in tqdm(files, desc="scene arrays", unit="shard"):
            if start == count:
                break
            part = {name: values[: count - start] for name, values in arrays_of(file).items()}
            arrays = arrays or {
                name: np.lib.format.open_memmap(
                    cache / f"{name}.npy", mode="w+", dtype=values.dtype, shape=(count, *values.shape[1:])
                )
                for name, values in part.items()
            }
            stop = start + len(next(iter(part.values())))
            for name, values in part.items():
                arrays[name][start:stop] = values
            start = stop
        if start < count:
            raise ValueError(f"{file.parent}: {start} scenes, {count} are asked for")
        for array in arrays.values():
            array.flush()
        write_json(done, recipe)
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    return kind(**{name: np.load(cache / f"{name}.npy", mmap_mode="r") for name in names})
