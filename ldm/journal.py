"""JSON Lines: files of jobs, files that grow line by line, and the journal of a bulk step.

`append_line` and `read_lines` are a file that survives a kill: only whole lines count. A `Journal` says what
a step has done so far. Its first line holds the inputs of the step; a journal of other inputs is none of this
work. Then comes a line per item, which is done, or left out with a reason (damaged annotation, missing
image). The last line says that every item was looked at.
"""

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

from ldm.files import UnwritableError, excerpt, file_sha256, full_disk_named, write_atomic
from ldm.locks import held, lock_beside, one_writer

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 4  # items per thread that are begun before the first of them is written down
NAMED = 20  # items left out that are named at once; the journal has all of them
SHOWN_AT_END = 3  # of these, named again


def parse_line(line: str | bytes) -> dict[str, Any]:
    """The JSON object on a line, also of what users write."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {excerpt(value)}")
    return value


def append_line(path: Path, *values: Mapping[str, Any]) -> None:
    """Append objects in one write; the folder is made. Then only a crash of the machine can lose them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_named(path), path.open("ab") as file:
        file.write(b"".join(map(_line, values)))


def read_lines(path: Path, *, repair: bool = False, start: int = 0) -> list[dict[str, Any]]:
    """The objects that were appended; none where there is no file. A torn last line does not count.

    repair: it is also cut off the file, for the one process that goes on. start: byte from which lines are
    read and counted. ValueError names a damaged line.
    """
    data = b""
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(start)
        data = file.read()
    *whole, tail = data.split(b"\n")
    values = []
    for number, line in enumerate([*whole, tail] if tail else whole, 1):
        try:
            values.append(parse_line(line))
        except ValueError as error:
            if number <= len(whole) or not tail.startswith((b"{", b"\0")):  # a machine that crashed writes 0
                raise ValueError(f"{path}:{number}: {error}") from None
    if repair and tail and len(values) > len(whole):
        with path.open("ab") as file:
            file.write(b"\n")
    elif repair and tail:
        log.warning("%s: an unfinished last line was cut off", path)
        os.truncate(path, path.stat().st_size - len(tail))
    return values


class SharedLines:
    """A file of lines with an `item` each, to which several processes append. items: those that are there."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self.items: set[str] = set()

    def update(self, *lines: Mapping[str, Any]) -> None:
        """Append lines, less those of known items; then `items` are also those of other processes."""
        with held(lock_beside(self.path), wait=True):
            self.items |= {line["item"] for line in read_lines(self.path, repair=True, start=self.size)}
            for line in lines:
                if line["item"] not in self.items:
                    append_line(self.path, line)
                    self.items.add(line["item"])
            self.size = self.path.stat().st_size if self.path.exists() else 0


class JournalReader:
    """What a journal says, read without touching it. done: item -> its record; left_out: item -> reason."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem.removeprefix("stamp_")  # of the step, for people
        self.inputs: dict[str, Any] | None = None
        self.done: dict[str, dict[str, Any]] = {}
        self.left_out: dict[str, str] = {}
        self.complete = False
        self.sound_bytes = 0  # what follows them was cut off when its writer was killed
        if not path.is_file():
            return
        # After a crash of the machine even whole lines can be damaged.
        with path.open("rb") as file, suppress(ValueError):
            for line in takewhile(lambda line: line.endswith(b"\n"), file):
                entry = parse_line(line)
                if (item := entry.pop("item", None)) is None:
                    self.inputs = entry.get("inputs", self.inputs)
                    self.complete = "complete" in entry
                elif "left_out" in entry:
                    self.left_out[item] = entry["left_out"]
                else:
                    self.complete = False
                    self.done[item] = entry
                    self.left_out.pop(item, None)
                self.sound_bytes += len(line)


class Journal(JournalReader):
    def __init__(
        self, path: Path, inputs: Mapping[str, Any], *, redo: bool = False, keep: bool = False
    ) -> None:
        """Continue the journal at `path` if its inputs are these, else begin anew.

        redo: a complete journal is begun anew too; keep: other inputs are refused instead (ValueError), for
        work that takes hours.
        """
        super().__init__(path)
        self.named = 0
        wanted = json.loads(json.dumps(inputs))
        if keep and self.inputs not in (None, wanted):
            old = self.inputs or {}
            keys = [key for key in {**old, **wanted} if old.get(key) != wanted.get(key)]
            changes = "; ".join(f"{key} {old.get(key)!r}, now {wanted.get(key)!r}" for key in keys)
            raise ValueError(f"{path} was begun with {changes}; use the same settings, or another folder")
        if self.inputs != wanted or (redo and self.complete):
            self.inputs, self.done, self.left_out, self.complete = wanted, {}, {}, False
            write_atomic(path, _line({"inputs": wanted}))
        elif self.sound_bytes < path.stat().st_size:
            os.truncate(path, self.sound_bytes)

    def add(self, item: str, value: Mapping[str, Any] | None = None) -> None:
        """Record that an item is done; what it made must be on the disk already."""
        self.add_all({item: value or {}})

    def add_all(self, items: Mapping[str, Mapping[str, Any]]) -> None:
        """Record several items in one write: after a kill all of them are there, or a torn tail is cut."""
        self._append(*({"item": item, **value} for item, value in items.items()))
        for item, value in items.items():
            self.done[item] = dict(value)
            self.left_out.pop(item, None)

    def leave_out(self, item: str, reason: str) -> None:
        """Record that an item cannot be used, and say so, unless that has been said of many already."""
        if self.named < NAMED:
            log.warning("left out: %s: %s", item, reason)
        elif self.named == NAMED:
            log.warning("more are left out; all stand in %s", self.path)
        self.named += 1
        if self.left_out.get(item) == reason:  # nothing new: what depends on this journal stays valid
            return
        self._append({"item": item, "left_out": reason})
        self.left_out[item] = reason

    def finish(self) -> None:
        if not self.complete:
            self._append({"complete": len(self.done) + len(self.left_out)})
            self.complete = True
        total = f"{len(self.done)} done"
        if self.left_out:
            named = ", ".join(list(self.left_out)[:SHOWN_AT_END])
            total += f", {len(self.left_out)} left out ({named}); reasons in {self.path}"
        log.info("%s: %s", self.name, total)
        if self.left_out and not self.done:
            first, reason = next(iter(self.left_out.items()))
            raise ValueError(f"nothing could be used; the first reason is: {first}: {reason}")

    def _append(self, *entries: Mapping[str, Any]) -> None:
        self.complete = False
        append_line(self.path, *entries)


def run_step(
    path: Path,
    inputs: Mapping[str, Any],
    items: Sequence[str],
    work: Callable[[str], Mapping[str, Any] | None],
    redo: bool,
    workers: int = 1,
    is_whole: Callable[[str, Mapping[str, Any]], bool] = lambda item, record: True,
) -> Journal:
    """Do the work of every item that the journal at `path` does not have, in threads, and record it in order.

    A ValueError leaves its item out; any other error and an unwritable output end the step, which goes on at
    the next call. redo: a complete journal is begun anew. workers: 0 = one per core. is_whole: whether what a
    record vouches for is still there. One process at a time does steps in a folder (ValueError).
    """
    with one_writer(path.parent):
        journal = Journal(path, inputs, redo=redo)
        pending = [i for i in items if i not in journal.done or not is_whole(i, journal.done[i])]
        results = attempt_in_order(work, pending, workers or os.cpu_count() or 1)
        bar = tqdm(results, total=len(items), initial=len(items) - len(pending), desc=journal.name)
        for item, result in zip(pending, bar, strict=True):
            if isinstance(result, ValueError):
                journal.leave_out(item, str(result))
            else:
                journal.add(item, result)
        journal.finish()
    return journal


def in_order(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`map` with threads that never runs far ahead, and stops at once when its reader stops."""
    pool = ThreadPoolExecutor(workers)
    begun: deque[Future[R]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) >= AHEAD * workers:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def attempt_in_order(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R | ValueError]:
    """The same, but an item whose work raises a ValueError gives this error, unless its output is refused."""

    def attempt(item: T) -> R | ValueError:
        try:
            return work(item)
        except UnwritableError:
            raise
        except ValueError as error:
            return error

    return in_order(attempt, items, workers)


def stamp_path(folder: Path, step: str) -> Path:
    return folder / f"stamp_{step}.jsonl"


def stamp_hash(folder: Path, step: str) -> str:
    """What a later step depends on: the hash of this step's journal; "" when there is none."""
    path = stamp_path(folder, step)
    return file_sha256(path) if path.is_file() else ""


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"
