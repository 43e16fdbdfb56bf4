"""Temporary files and folders carry the name of their process, so that those of dead ones can go."""

import functools
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path


@functools.cache
def machine() -> str:
    """Where a process number means this process: containers of one host name count their processes apart."""
    space = Path("/proc/self/ns/pid")
    return f"{platform.node()}-{space.stat().st_ino if space.exists() else 0}"


def owner() -> str:
    """This process, in the names of its temporary files."""
    return f"{machine()}-{os.getpid()}"


@functools.cache
def remove_leftovers(folder: Path, start: str = "") -> None:
    """Once in a process: remove temporary files and folders, `start`.*, that dead processes left there."""
    import psutil

    for leftover in folder.glob(f"{start}.*.tmp"):
        died = re.search(rf"\.{re.escape(machine())}-(\d+)\.\w{{8}}\.tmp$", leftover.name)
        if died and not psutil.pid_exists(int(died[1])):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def own_folder(start: str) -> tempfile.TemporaryDirectory:
    """An empty temporary folder named `start`...; it goes with its object, or with the next such call."""
    remove_leftovers(Path(tempfile.gettempdir()), start)
    return tempfile.TemporaryDirectory(prefix=f"{start}.{owner()}.", suffix=".tmp")
