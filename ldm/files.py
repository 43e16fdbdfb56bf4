"""Files as a whole: JSON read strictly, files written completely or not at all and known by their SHA-256."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_HASHES: dict[tuple[str, int, int], str] = {}


def read_json(path: Path, kind: type = dict) -> Any:
    """The contents of a JSON file, an object unless `kind` says otherwise; ValueError names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, kind):
        expected = "object" if kind is dict else kind.__name__
        raise ValueError(f"{path} must hold a JSON {expected}, got {type(value).__name__}")
    return value


def first_line(error: BaseException) -> str:
    """The first line of a library's message; the error's type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def json_bytes(value: Any) -> bytes:
    """The JSON text of reports, manifests and model folders: indented by one, with a final newline."""
    return (json.dumps(value, indent=1) + "\n").encode()


def write_json(path: Path | str, value: Any) -> None:
    write_atomic(path, json_bytes(value))


def write_atomic(path: Path | str, data: bytes) -> None:
    """Write `data` under a temporary name beside `path`, then rename: a reader never sees half a file."""
    write_all_atomic({Path(path): data})


def write_all_atomic(files: Mapping[Path, bytes]) -> None:
    """Write several files that belong together; none appears before the contents of all are on the disk.

    Missing parent folders are made. ValueError names the file that cannot be written, and what was
    prepared for the others is removed.
    """
    path = Path()
    try:
        with contextlib.ExitStack() as stack:  # which renames the last one first
            for path, data in reversed(list(files.items())):
                with stack.enter_context(written_whole(path)).open("xb") as handle:
                    handle.write(data)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {_reason(error)}") from error


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`, which takes its place at the end; on failure it is removed."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:40]}.{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:  # also after Ctrl-C
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    """What the operating system objects to, in one short phrase."""
    if isinstance(error, NotADirectoryError | FileExistsError):
        return "a part of its path is a file, not a folder"
    return (error.strerror or str(error)).lower()


def file_sha256(path: Path | str) -> str:
    """Hex SHA-256 of a file; remembered in memory for as long as its size and time stamp stay the same."""
    path = Path(path)
    try:
        status = path.stat()
        key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        if key not in _HASHES:
            digest = hashlib.sha256()
            with path.open("rb") as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
            _HASHES[key] = digest.hexdigest()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {_reason(error)}") from error
    return _HASHES[key]


def hash_folder(folder: Path | str, pattern: str = "*.safetensors") -> dict[str, str]:
    """SHA-256 of every weight file below a folder, keyed by its path inside the folder with `/`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder, so there are no weights to hash")
    files = sorted(file for file in folder.rglob(pattern) if file.is_file())
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}
