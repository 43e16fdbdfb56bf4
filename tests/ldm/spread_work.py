"""Work that the workers of a cluster do in tests: it notes what it does, raises, or ends its process."""

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

RAISES, ENDS, ENDS_ONCE = 5, 7, 9


def worker(folder: Path, pause_s: float, bad: frozenset[int]) -> Callable[[Iterable[int]], Iterator[str]]:
    """Numbers in, texts out. Every finished number is a line of the file of this process."""

    def work(numbers: Iterable[int]) -> Iterator[str]:
        for number in numbers:
            (folder / f"{os.getpid()}.pid").touch()
            if number in bad and number == RAISES:
                raise TypeError(f"number {number}\nis poison")
            if number in bad and number == ENDS:
                os.kill(os.getpid(), signal.SIGKILL)
            if number in bad and number == ENDS_ONCE and not (folder / "killed").exists():
                (folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(pause_s)
            with (folder / f"{os.getpid()}.done").open("a") as file:
                file.write(f"{number}\n")
            yield f"{number} in {Path.cwd()}"

    return work


def maker(folder: Path, pause_s: float = 0.0, bad: Iterable[int] = ()) -> Callable[[], object]:
    return partial(worker, folder, pause_s, frozenset(bad))


def finished(folder: Path) -> list[int]:
    """The numbers that were finished, once for each time."""
    return sorted(int(line) for path in folder.glob("*.done") for line in path.read_text().splitlines())
