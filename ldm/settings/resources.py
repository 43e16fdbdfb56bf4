"""Errors in one line: places that cannot be written, memory by the settings that cost it, wrong usage.

And used memory: a command keeps what is freed for its next arrays, and leaves the rest at its end.
"""

import atexit
import contextlib
import ctypes
import dataclasses
import errno
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn

from ldm.files import failure_reason, first_line, located, same_file
from ldm.settings.schema import flat_settings

NO_MEMORY = re.compile(  # torch, CUDA, OpenCV, safetensors
    r"out of memory|insufficient memory|(?:can't|cannot|unable to) allocate|bad_alloc", re.I
)
COSTS = {"num_samples", "batch", "batch_size", "size", "resolution", "chunk", "candidates", "workers"}
SAVERS = {"gradient_checkpointing": "", "offload": "CUDA|HIP|MPS|XPU"}  # switch -> errors it helps with
OUTPUTS = {"out", "out_dir", "output_dir", "llava_output_dir", "project_dir", "report", "table", "failures"}
INPUTS = {
    *("background", "object", "object_mask", "target_mask", "background_depth", "object_depth"),
    *("image", "masks", "job", "jobs"),
}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
KEPT_FREE = 1 << 29  # bytes; several arrays of an image of 48 million pixels (chosen)


def keep_freed_memory() -> None:
    """Arrays of more than 32 MB use the memory of earlier ones, where the C library is glibc.

    By itself it maps new memory for each: a tenth of the CPU time of a composite of 8000 x 6000 (measured).
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or Windows
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, KEPT_FREE)


def release_freed_memory() -> None:
    """What was freed and kept goes back to the system: large arrays do not fit into its gaps (with glibc)."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def end_program(code: int) -> NoReturn:
    """Exit, called by the module that is the program, without freeing all objects one by one (0.15 to 0.3 s).

    Handlers have their turn. Where a notebook or another program runs the module it goes on, as usual.
    """
    callers, frame = list[str](), sys._getframe(2)
    while frame := frame.f_back:  # type: ignore[assignment]
        callers.append(frame.f_code.co_name)
    alone = all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate())
    if alone and callers in ([], ["_run_code", "_run_module_as_main"]):  # of `python FILE` and `python -m`
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError):  # sys.exit says which stream cannot be written
            for stream in filter(None, (sys.stdout, sys.stderr)):  # None: the shell has closed it
                stream.flush()
            os._exit(code)
    sys.exit(code)


def lacks_memory(error: BaseException) -> bool:
    """Whether memory is used up; libraries have several errors for it."""
    if isinstance(error, OSError | ValueError):
        return isinstance(error, OSError) and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or bool(NO_MEMORY.search(str(error)))


def memory_message(error: BaseException, settings: Any = None) -> str:
    """What was asked for, with the sizes of its images, and what reduces it."""
    asked, advice = [], ["smaller values"]
    for key, name, value in _values(settings):
        if value is False and name in SAVERS and re.search(SAVERS[name], str(error)):
            advice.append(key)
        elif name in COSTS and value not in (0, 1, None):
            asked.append(f"{key} {','.join(map(str, value)) if isinstance(value, tuple) else value}")
        elif isinstance(value, Path) and name not in OUTPUTS:
            from PIL import Image

            with contextlib.suppress(Exception), Image.open(value) as image:  # what is no image has no size
                asked.append(f"{key} {value} ({image.width} x {image.height} pixels)")
    what = f" for {', '.join(asked)} ({' or '.join(advice)} need less)" if asked else ""
    return f"not enough memory{what}: {first_line(error)}"


def user_message(error: Exception) -> str | None:
    """One line about what a user can fix; None for other errors."""
    message = None
    if lacks_memory(error):
        message = memory_message(error)
    elif isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, ValueError):
        message = str(error)
    elif type(error).__name__ == "NoArgsIsHelpError":
        message = "nothing was given, and this is long work: name at least one option (--help lists them)"
    elif hasattr(error, "format_message"):  # typer's own usage errors, a class that it keeps private
        about = getattr(getattr(error, "param", None), "help", None)
        message = error.format_message() + (f" ({about})" if about else "")
    return None if message is None else " ".join(message.split())


def _values(settings: Any) -> Iterator[tuple[str, str, Any]]:
    """(key, its last part, value) of all settings; nothing of other objects."""
    for key in flat_settings(type(settings)) if dataclasses.is_dataclass(settings) else ():
        with contextlib.suppress(AttributeError):  # of a section that is None
            yield key, key.rpartition(".")[2], attrgetter(key)(settings)


@contextlib.contextmanager
def resources_named(settings: Any) -> Iterator[None]:
    """Work with these settings: ValueError before it for missing inputs and unwritable places; for memory."""
    for key, name, value in _values(settings):
        if name in OUTPUTS and isinstance(value, Path):
            check_writable(value, f"--{key.replace('_', '-')}")
    for _, name, value in _values(settings):
        for path in (value if isinstance(value, tuple) else (value,)) if name in INPUTS else ():
            if isinstance(path, Path) and not same_file(located(path)).exists():
                raise ValueError(f"{path} does not exist")  # as its reader says it
    try:
        yield
    except Exception as error:
        if lacks_memory(error):
            raise ValueError(memory_message(error, settings)) from error
        raise


def check_places(body: Any) -> None:
    """Let a typer command whose options are no settings (`resources_named`) refuse unwritable places."""
    work = body.callback

    def checked(**given: Any) -> Any:
        for name, value in given.items():
            if name in OUTPUTS and isinstance(value, Path):
                check_writable(value, f"--{name.replace('_', '-')}")
        return work(**given)

    body.callback = checked


def check_writable(out: Path, name: str = "--out") -> None:
    """ValueError unless a file can be made at or in `out`, which need not be there yet; nothing is left."""
    places = [out.absolute(), *out.absolute().parents]
    folder = next(place for place in places if place.is_dir() or (place.exists() and place != places[0]))
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = f"{folder} is not a writable folder ({failure_reason(error)})"
        raise ValueError(f"{name} {out} cannot be written: {reason}") from None
