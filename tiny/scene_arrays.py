"""Facts of many scenes as memory-mapped arrays that a trainer can index, made once from shards."""

from __future__ import annotations

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
    if not done.exists():
        _fill(cache, files, count, arrays_of)
        write_json(done, recipe)
    elif read_json(done) != recipe:
        raise ValueError(f"{cache} was made from other scenes; remove it")
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    return kind(**{name: np.load(cache / f"{name}.npy", mmap_mode="r") for name in names})


def _fill(
    cache: Path, files: Iterable[Path], count: int, arrays_of: Callable[[Path], dict[str, np.ndarray]]
) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.memmap] = {}
    start = 0
    for file in tqdm(files, desc="scene arrays", unit="shard"):
        if start == count:
            break
        rows = {name: values[: count - start] for name, values in arrays_of(file).items()}
        for name, values in rows.items():
            if name not in arrays:
                path, shape = cache / f"{name}.npy", (count, *values.shape[1:])
                arrays[name] = np.lib.format.open_memmap(path, mode="w+", dtype=values.dtype, shape=shape)
            arrays[name][start : start + len(values)] = values
        start += len(next(iter(rows.values())))
    if start < count:
        raise ValueError(f"{file.parent}: {start} scenes, {count} are asked for")
    for array in arrays.values():
        array.flush()
