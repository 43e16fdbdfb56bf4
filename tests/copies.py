"""Copies of loaded networks, each with tensors of its own, in a tenth of the time that loading takes."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor


class _Writer(pickle.Pickler):
    """Writes the structure and leaves each tensor out, once."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: dict[int, Tensor] = {}

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        self.tensors[id(value)] = value
        return id(value)


class _Reader(pickle.Unpickler):
    """Reads the structure with copies of the tensors; one that is in two places stays one."""

    def __init__(self, structure: bytes, tensors: dict[int, Tensor]) -> None:
        super().__init__(io.BytesIO(structure))
        self.tensors, self.made = tensors, dict[int, Tensor]()

    def persistent_load(self, name: int) -> Tensor:
        return copy.deepcopy(self.tensors[name], self.made)  # type: ignore[arg-type]


class Original:
    """What copies are made of; nobody may change it."""

    def __init__(self, whole: Any) -> None:
        file = io.BytesIO()
        writer = _Writer(file)
        writer.dump(whole)
        self.structure, self.tensors = file.getvalue(), writer.tensors

    def copied(self) -> Any:
        return _Reader(self.structure, self.tensors).load()


def read_once(load: Callable[..., Any], most: int = 8) -> Callable[..., Any]:
    """`load`, called once for the same arguments and files; every result is a copy.

    A folder is the same while its files have the same sizes and times. `most` originals are kept.
    """
    kept: dict[str, Original] = {}

    def copied(*given: Any, **options: Any) -> Any:
        folders = [part.resolve() for part in given if isinstance(part, Path)]
        stats = [(path, path.stat()) for folder in folders for path in sorted(folder.rglob("*"))]
        key = repr((given, options, [(path, now.st_size, now.st_mtime_ns) for path, now in stats]))
        if key not in kept:
            kept[key] = Original(load(*given, **options))
            for oldest in list(kept)[:-most]:
                del kept[oldest]
        return kept[key].copied()

    return copied
