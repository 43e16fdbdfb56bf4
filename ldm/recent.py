"""What was computed of a file, kept for the next time that the same contents come."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from ldm.files import file_sha256

T = TypeVar("T")


class Recent:
    """Values by key. Beyond `limit` bytes the one that was used longest ago goes; 0 keeps none."""

    def __init__(self, limit: int = 0) -> None:
        self.limit, self.values = limit, OrderedDict[Any, tuple[Any, int]]()
        self.held, self.lock = 0, threading.Lock()  # bytes of all values

    def once(self, make: Callable[[], T], *key: Any) -> T:
        """The value of a key, by `make` where it is not kept; it must not be changed.

        key: all that decides the value; a file counts by its contents
        """
        return self.keep(make, *key) if self.limit else make()

    def keep(self, make: Callable[[], T], *key: Any) -> T:
        """The same where values are kept."""
        key = tuple(file_sha256(part) if isinstance(part, Path) else part for part in key)
        if (found := self.values.get(key)) is None:
            value = make()
            found = value, bytes_of(value)
        with self.lock:
            self.held += found[1] - self.values.get(key, (None, 0))[1]
            self.values[key] = found
            self.values.move_to_end(key)
            while self.held > self.limit:
                self.held -= self.values.popitem(last=False)[1][1]
        return found[0]


FORGETFUL = Recent()


def bytes_of(value: Any) -> int:
    """Bytes of the arrays and tensors in a value, its fields and items."""
    if isinstance(value, dict) or is_dataclass(value):
        value = list((value if isinstance(value, dict) else vars(value)).values())
    return sum(map(bytes_of, value)) if isinstance(value, list | tuple) else getattr(value, "nbytes", 0)
