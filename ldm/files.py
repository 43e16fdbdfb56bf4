"""Files: texts that people write, in UTF-8, read in one way; files written completely or not at all."""

import contextlib
import csv
import errno
import hashlib
import io
import itertools
import json
import logging
import os
import re
import signal
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm import __version__
from ldm.temporary import owner, remove_leftovers

ROOT = Path(__file__).resolve().parents[1]  # of the repository
SHIPPED = ("assets", "configs")  # folders of it that commands read
# Of model folders: endings of what is loaded, and files that say how a model was made and where it came from.
LOADED = (".safetensors", ".onnx", ".bin", ".pt", ".pth", ".json", ".txt", ".jinja")
NOT_LOADED = ("manifest.json", "hashes.json")
_HASHES: dict[tuple[int, ...], str] = {}
KEPT_HASHES = ".sha256.json"  # beside weight files: name -> size, time stamp, SHA-256
KEPT_SIZE = 1 << 26  # bytes, from which reading a file takes longer than looking into that file (chosen)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: for `ulimit -f`, or for FAT
TAKEN = (IsADirectoryError, NotADirectoryError, FileExistsError)  # by something else, at this name
FULL_TEXT = re.compile(  # of safetensors, torch and tokenizers
    rf"os error ({'|'.join(map(str, FULL))})\b|PytorchStreamWriter failed|unexpected pos \d"
)
DELIMITERS = ",;\t"  # of tables that Excel and LibreOffice save, by country and by choice


class UnwritableError(ValueError):
    """An output that cannot be written, whatever its name and what it was made of."""


def read_text(path: Path) -> str:
    """A text file without its byte order mark, line ends as they are; ValueError names file and line."""
    try:
        data = same_file(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {failure_reason(error)}") from None
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, f"{data[error.start]:#04x} at {error.start}"
        raise ValueError(f"{path}, line {line}: not UTF-8 (byte {byte}); save the file as UTF-8") from None


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1; errors as in `read_text`.

    Only a line feed ends a line: texts in JSON may hold other separators, such as U+2028.
    """
    lines = (line.removesuffix("\r") for line in read_text(path).split("\n"))
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def read_json(path: Path, kind: type = dict, hook: Callable[[dict], Any] | None = None) -> Any:
    """The contents of a JSON file, an object unless `kind` says otherwise; ValueError names the file.

    hook: what becomes of every object as soon as it is read
    """
    with named_failure(f"{path} cannot be read as JSON", json.JSONDecodeError):
        value = json.loads(read_text(path), object_hook=hook)
    if not isinstance(value, kind):
        expected = "object" if kind is dict else kind.__name__
        raise ValueError(f"{path} must hold a JSON {expected}, got {type(value).__name__}")
    return value


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV table with at least these columns, separated by comma, semicolon or tab.

    Blank rows do not count; a field that a row lacks is "". ValueError names the file and column or line.
    """
    text = read_text(path)
    mark = max(DELIMITERS, key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, ""), delimiter=mark, restval="", strict=True)
    rows = []
    try:
        reader.fieldnames = header = [name.strip() for name in reader.fieldnames or ()]
        if lacking := [name for name in columns if header.count(name) != 1]:
            shown = ", ".join(header) or "none"
            raise ValueError(f"{path}: the table needs one column {lacking[0]}; its columns are {shown}")
        for row in reader:
            if any(row.pop(None, ())):  # type: ignore[call-overload]
                wrong = f"the row has more fields than the header; quote fields that hold {mark!r}"
                raise ValueError(f"{path}, line {reader.line_num}: {wrong}")
            rows += [row] if any(row.values()) else []
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a CSV table: {error}") from None
    return rows


def located(path: Path | str) -> Path:
    """A path as it is; what comes with the code beside the code where it does not lie where one stands."""
    path = Path(path)
    shipped = len(path.parts) > 1 and path.parts[0] in SHIPPED
    return ROOT / path if shipped and not path.exists() and (ROOT / path).exists() else path


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Files below a folder, sorted, without hidden ones, hidden folders and the `._` copies of macOS."""
    files = (path for path in folder.glob(pattern) if path.is_file())
    return sorted(path for path in files if not any(p[0] == "." for p in path.relative_to(folder).parts))


def nfc(name: str) -> str:
    """A name as names are compared: macOS writes accents as characters of their own (NFD), others do not."""
    return unicodedata.normalize("NFC", name)


def same_file(path: Path) -> Path:
    """The path as it is on the disk, where its names may be NFC or NFD; itself if there is no such file."""
    if path.exists() or path == path.parent:
        return path
    folder = same_file(path.parent)
    forms = (folder / unicodedata.normalize(form, path.name) for form in ("NFC", "NFD"))
    return next((other for other in forms if other.exists()), path)


def first_line(error: BaseException) -> str:
    """The first line of a library's message, whole; the error's type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


STOPPED: list[int] = []  # signals that end this process


def check_stopped() -> None:
    """Raise what a signal raises, where one came: a library may have put an error of its own in its place."""
    if STOPPED:
        raise KeyboardInterrupt if STOPPED[0] == signal.SIGINT else SystemExit(128 + STOPPED[0])


@contextlib.contextmanager
def named_failure(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds, which a library raises, as a ValueError: what failed, and their first line."""
    try:
        yield
    except kinds as error:
        check_stopped()
        raise ValueError(f"{what}: {first_line(error)}") from error


def excerpt(value: object) -> str:
    """What a message shows of a user's value: its `repr`, or the beginning of a long one and `...`."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


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

    ValueError names the file that cannot be written: UnwritableError if its name is not the reason, OSError
    where the disk is full. What was prepared for the others is removed.
    """
    path = Path()
    try:
        with contextlib.ExitStack() as stack:  # which renames the last one first
            for path, data in reversed(list(files.items())):
                with stack.enter_context(written_whole(path)).open("xb") as handle:
                    handle.write(data)
    except OSError as error:
        if error.errno in FULL:
            raise
        by_name = isinstance(error, TAKEN) or error.errno == errno.ENAMETOOLONG
        text = f"cannot write {path}: {failure_reason(error)}"
        raise (ValueError(text) if by_name else UnwritableError(text)) from error


def set_aside(paths: Iterable[Path]) -> None:
    """Rename files or folders that are there: a.png to a.old1.png, or by the first number free for all."""
    there = [path for path in paths if path.exists()]
    for number in itertools.count(1):
        moves = {path: path.with_name(f"{path.stem}.old{number}{path.suffix}") for path in there}
        if not any(os.path.lexists(target) for target in moves.values()):
            break
    for path, target in moves.items():
        path.rename(target)
        logging.getLogger(__name__).info("kept:    %s, until now %s", target, path.name)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`, which takes its place at the end; on failure it is removed."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    temporary = path.parent / f".{path.name[:40]}.{owner()}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with full_disk_named(path):
            yield temporary
            os.replace(temporary, path)
    finally:  # also after Ctrl-C
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Where the disk is full, the OSError names `path` and nothing else, whatever a library made of it."""
    try:
        yield
    except Exception as error:
        found = None if isinstance(error, ValueError) else FULL_TEXT.search(str(error))
        if (isinstance(error, OSError) and error.errno in FULL) or found:
            large = str(errno.EFBIG) in (str(getattr(error, "errno", "")), found and found[1])
            reason = "file larger than the disk or ulimit allows" if large else "no space left on the disk"
            raise OSError(errno.ENOSPC, f"cannot be written: {reason}", str(path)) from error
        raise


def failure_reason(error: OSError) -> str:
    """What the operating system objects to, in one short phrase."""
    if isinstance(error, TAKEN[1:]):
        return "a part of its path is a file, not a folder"
    return (error.strerror or str(error)).lower()


def file_sha256(path: Path | str, *, anew: bool = False) -> str:
    """Hex SHA-256 of a file; remembered while its size and time stamp stay the same, unless read `anew`."""
    path = same_file(Path(path))
    try:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        key = (status.st_dev, status.st_ino, *stamp)
        # Of large weight files it is also remembered in a hidden file beside them.
        large = path.suffix in (*LOADED, ".ckpt") and status.st_size >= KEPT_SIZE
        kept = read_json(book) if large and (book := path.with_name(KEPT_HASHES)).is_file() else {}
        if kept.get(path.name, [])[:2] == stamp:
            _HASHES.setdefault(key, kept[path.name][2])
        if anew or key not in _HASHES:
            digest = hashlib.sha256()
            with path.open("rb") as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
            _HASHES[key] = digest.hexdigest()
            with contextlib.suppress(ValueError, OSError):
                if large:
                    write_json(book, {**kept, path.name: [*stamp, _HASHES[key]]})
    except OSError as error:
        raise ValueError(f"cannot read {path}: {failure_reason(error)}") from error
    return _HASHES[key]


def hash_model(folder: Path) -> dict[str, str]:
    """SHA-256 of all that is loaded from a model folder: weights, configuration, vocabulary, templates."""
    files = [file for file in folder.rglob("*") if file.suffix in LOADED and file.name not in NOT_LOADED]
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    return {name: file_sha256(folder / name) for name in names if name[0] != "." and "/." not in name}


def work_digest(settings: Any, files: Iterable[Path], folders: Iterable[Path]) -> str:
    """Hash of all that decides a result: settings as JSON, input files, model folders and the version."""
    hashes = [file_sha256(path) for path in files], [hash_model(folder) for folder in folders]
    return hashlib.sha256(json.dumps([settings, hashes, __version__], sort_keys=True).encode()).hexdigest()


def hash_folder(folder: Path | str, pattern: str = "*.safetensors") -> dict[str, str]:
    """SHA-256 of every weight file below a folder, less hidden ones, keyed by its path inside it with `/`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder, so there are no weights to hash")
    files = visible_files(folder, f"**/{pattern}")
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}
