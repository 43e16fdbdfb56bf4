"""Temporary files and folders, among them images that Python code holds; those of dead processes go."""

import functools
import hashlib
import io
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

IN_MEMORY = "memory:"  # starts the path of such an image in a recipe
FOLDER = "bifrost-images-"  # starts the name of the folder of such files, below the temporary one
IN_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")  # modes of Pillow that a PNG holds as they are


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


_folder = functools.cache(own_folder)  # one for all images of the process


def as_file(image: Any, name: str) -> Path:
    """The path of an image: its own, or for an image in memory a file named by the hash of its contents.

    image: path; PIL image; uint8 (h, w), (h, w, 3) RGB or (h, w, 4); mask (h, w) bool; depth (h, w) in [0, 1]
    """
    if isinstance(image, str | Path):
        return Path(image)
    import numpy as np
    from PIL import Image, ImageOps

    try:
        _, _, *channels = image.shape
        is_map = not channels and np.issubdtype(image.dtype, np.floating)
        image = Image.fromarray(image.astype(np.float32) if is_map else image)
    except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:
        if not isinstance(image, Image.Image):
            got = f"{type(image).__name__} {getattr(image, 'dtype', '')} {getattr(image, 'shape', '')}"
            allowed = "a path, a PIL image, or an array: uint8 (h, w) or (h, w, 3 or 4), bool or float (h, w)"
            raise ValueError(f"{name} must be {allowed}; got {got.strip()}") from error
    image, buffer = ImageOps.exif_transpose(image), io.BytesIO()
    kind = "PNG" if image.mode in IN_PNG else "TIFF"
    image.save(buffer, kind, icc_profile=image.info.get("icc_profile"))
    path = Path(_folder(FOLDER).name) / f"{hashlib.sha256(buffer.getvalue()).hexdigest()}.{kind.lower()}"
    path.write_bytes(buffer.getvalue())
    return path
