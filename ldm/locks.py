"""One writer for a folder or an item, by locks of the operating system: those of dead processes are free."""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ldm.files import UnwritableError, failure_reason, read_json, write_json

T = TypeVar("T")
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # set by launchers; the first process holds the run folder


@contextlib.contextmanager
def held(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock file `path`, which is there meanwhile; yields whether it could be had.

    wait: for another process that holds it. ValueError names a folder that cannot be written.
    """
    from filelock import FileLock, Timeout  # slower to import than options are to be read

    new = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise UnwritableError(f"cannot write in {path.parent}: {failure_reason(error)}") from error
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):  # Windows keeps open files; a waiting process sees that it is gone
            path.unlink()
        lock.release()
        with contextlib.suppress(OSError):
            if new:
                path.parent.rmdir()  # where nothing was written into it


def lock_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def note_begun(path: Path, facts: Mapping[str, Any]) -> None:
    """Note in a file of a folder what decides its results; ValueError where it was begun otherwise."""
    with held(lock_beside(path), wait=True):
        if not path.is_file():
            write_json(path, facts)
    before, now = read_json(path), json.loads(json.dumps(facts))
    if differ := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
        wrong = f"{path.parent} was begun with another {', '.join(differ)} ({path.name});"
        raise ValueError(f"{wrong} choose another folder")


@contextlib.contextmanager
def one_writer(folder: Path, *, inside: bool = True) -> Iterator[None]:
    """Refuse with a ValueError to write what another process is writing. inside: where the lock lies."""
    with held(folder / ".lock" if inside else lock_beside(folder)) as free:
        if not free:
            raise ValueError(f"{folder}: another process is writing it; wait for its end, or name another")
        yield


def alone(
    work: Callable[[Any], T],
    path_of: Callable[[Any], Path] = lambda settings: settings.out,
    inside: bool = True,
) -> Callable[[Any], T]:
    """`work(settings)` as the one writer of what `path_of` the settings is; also a decorator by `partial`."""

    @functools.wraps(work)
    def locked(settings: Any) -> T:
        if any(os.environ.get(name, "0") != "0" for name in RANKS):
            return work(settings)
        with one_writer(path_of(settings), inside=inside):
            return work(settings)

    return locked


def taken(items: Iterable[T], is_done: Callable[[T], bool], path_of: Callable[[T], Path]) -> Iterator[T]:
    """The items that are not done, each held by a lock beside its path; those that others hold come last."""
    return (item for (item,) in taken_together(items, is_done, path_of, lambda item: 1))


def taken_together(
    items: Iterable[T], is_done: Callable[[T], bool], path_of: Callable[[T], Path], count: Callable[[T], int]
) -> Generator[list[T]]:
    """As `taken`, up to `count` of the first of them at a time. One that is waited for comes alone: two
    processes that wait for each other would do so for ever.
    """
    busy: list[T] = []
    for wait, left in ((False, iter(items)), (True, iter(busy))):
        while True:
            with contextlib.ExitStack() as locks:
                mine, most = list[T](), 1
                while len(mine) < most and (item := next(left, None)) is not None:
                    lock = lock_beside(path_of(item))
                    if is_done(item) and not lock.exists():  # one of a dead process goes
                        continue
                    with contextlib.ExitStack() as own:
                        if not own.enter_context(held(lock, wait)):
                            busy.append(item)
                        elif not is_done(item):  # another process may have done it in between
                            mine.append(item)
                            most = 1 if wait else count(mine[0])
                            locks.enter_context(own.pop_all())
                if not mine:
                    break
                yield mine
