"""Processes, disks and files, as `benchmarks.campaign` sees them."""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from PIL import Image
from tqdm import auto, std

TIMES = ("second", "minute", "time", "date", "elapsed", "load_average")  # in keys of what tells the time


def output_to(path: Path) -> None:
    """Standard output and error of this process go to the end of a file; nothing is shared with others."""
    lock = threading.RLock()  # those of tqdm stay locked where a process that holds one is killed
    for kind in (std.tqdm, auto.tqdm):
        kind.set_lock(lock)
    for descriptor in (1, 2):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)


def count_renames(last: int) -> list[int]:
    """Count the renames of this process from here on, and kill it just before number `last`; 0: never."""
    seen = [0]

    def counted(real: Any, *names: Any, **more: Any) -> None:
        seen[0] += 1
        if seen[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*names, **more)

    os.replace, os.rename = partial(counted, os.replace), partial(counted, os.rename)
    return seen


def wait(child: int, seconds: float, cpu_s: float = math.inf) -> int | None:
    """A child's exit code, negative for a signal; None if it runs after these seconds, or CPU seconds."""
    ends, process = time.monotonic() + seconds, psutil.Process(child)
    while not (found := os.waitpid(child, os.WNOHANG))[0]:
        with contextlib.suppress(psutil.Error):  # it ends just now
            if time.monotonic() > ends or sum(process.cpu_times()[:2]) > cpu_s:
                return None
        time.sleep(0.003)
    return os.waitstatus_to_exitcode(found[1])


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which a process of its own serves the files of a folder."""
    argv = [sys.executable, *f"-u -m http.server 0 --bind 127.0.0.1 --directory {folder}".split()]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(argv, text=True, **pipes) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().partition("(")[2].partition("/)")[0]
        finally:
            server.kill()


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[bool]:
    """A file system with room for `size` bytes more at the place; yields whether one may be mounted."""
    held, there = place.with_suffix(".held"), sum(path.stat().st_size + 4096 for path in place.rglob("*"))
    shutil.copytree(place, held)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size + there}", "tmpfs", str(place)]
    mounted = not subprocess.run(mount, check=False, capture_output=True).returncode
    shutil.copytree(held, place, dirs_exist_ok=True)
    try:
        yield mounted
    finally:
        shutil.rmtree(held)
        shutil.copytree(place, held)
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)
        shutil.rmtree(place)
        held.rename(place)


def without_times(value: Any) -> Any:
    """JSON, or the state of a training, without what tells the time; tensors as a hash."""
    if isinstance(value, dict):
        kept = {str(key): item for key, item in value.items() if not any(word in str(key) for word in TIMES)}
        return {key: without_times(item) for key, item in sorted(kept.items())}
    if isinstance(value, (list, tuple)):
        return [without_times(item) for item in value]
    if not hasattr(value, "detach"):
        return repr(value)
    import torch

    data = value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()


def contents(place: Path, as_if: Path | None = None) -> dict[str, str]:
    """Path -> hash of the contents without times; `folder`. as_if: what texts name instead of the place."""
    found = {}
    for path in sorted(place.rglob("*")):
        name, data = path.relative_to(place).as_posix(), path.read_bytes() if path.is_file() else b""
        texts = data.replace(str(place).encode(), str(as_if or place).encode())
        plain: Any = texts
        with contextlib.suppress(ValueError, KeyError, RuntimeError):  # a damaged file is compared as it is
            if path.suffix == ".json":
                plain = without_times(json.loads(texts))
            elif path.suffix == ".jsonl":  # threads write the lines in any order
                plain = sorted(repr(without_times(json.loads(line))) for line in texts.splitlines())
            elif path.suffix == ".csv":
                plain = without_times(list(csv.DictReader(io.StringIO(texts.decode()))))
            elif path.suffix in (".pt", ".ckpt"):
                import torch

                plain = without_times(torch.load(path, map_location="cpu", weights_only=True))
            elif path.suffix == ".png" and data:
                with Image.open(io.BytesIO(data)) as image:
                    plain = [image.tobytes(), image.info]
        shown = repr(plain).replace(str(place), str(as_if or place))  # for paths in states of trainings
        found[name] = hashlib.sha256(shown.encode()).hexdigest() if path.is_file() else "folder"
    return found


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
