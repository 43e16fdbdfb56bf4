"""What was computed of a file, kept for the next time that the same contents come."""

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

    def once(self, make: Callable[[], T], *key: Any) -> T:
        """The value of a key, by `make` where it is not kept; it must not be changed.

        key: all that decides the value; a file counts by its contents
        """
        return self.keep(make, *key) if self.limit else make()

    def keep(self, make: Callable[[], T], *key: Any) -> T:
        """The same where values are kept."""
        key = tuple(file_sha256(part) if isinstance(part, Path) else part for part in key)
        if key not in self.values:
            value = make()
            self.values[key] = value, bytes_of(value)
        self.values.move_to_end(key)
        made: T = self.values[key][0]
        while sum(size for _, size in self.values.values()) > self.limit:
            self.values.popitem(last=False)
        return made


FORGETFUL = Recent()


def bytes_of(value: Any) -> int:
    """Bytes of the arrays and tensors in a value, its fields and items."""
    if isinstance(value, dict) or is_dataclass(value):
        value = list((value if isinstance(value, dict) else vars(value)).values())
    return sum(map(bytes_of, value)) if isinstance(value, list | tuple) else getattr(value, "nbytes", 0)
