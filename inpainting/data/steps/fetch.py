"""The files that the authors provide: annotations.json, llava.json, wikiart_images.csv.

They lie in the authors' public repository, two of them in an archive. A file kept by Git LFS arrives as a
pointer of three lines; what it points to is fetched then, and checked against the hash in the pointer.
"""

import functools
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inpainting.data.paintings import write_object
from ldm.files import file_sha256, read_json, read_table, read_text, write_atomic, written_whole
from ldm.locks import alone
from ldm.registry.pull import download, is_archive, unpack
from ldm.settings.config import CheckedSettings, setting

log = logging.getLogger(__name__)

REPOSITORY = "cilabuniba/i-dream-my-painting"
REVISION = "3967a0e14d07899e301f388afba2a3a0159b9d5a"
RAW = "https://raw.githubusercontent.com/{repository}/{revision}/{path}"
LFS = "https://media.githubusercontent.com/media/{repository}/{revision}/{path}"
SOURCES = ("data/annotations.zip", "data/wikiart_images.csv")
WANTED = ("annotations.json", "llava.json", "wikiart_images.csv")
COLUMNS = ("file_name", "url", "modifier", "split")
HASHES = "annotations_hashes.json"
POINTER = re.compile(rb"version https://git-lfs[^\n]*\noid sha256:([0-9a-f]{64})\nsize (\d+)\n?")
POINTER_BYTES = 1024


@dataclass(frozen=True)
class FetchSettings(CheckedSettings):
    """Where the files come from, and where they go."""

    out_dir: Path = setting(Path("data"), help="folder that gets the three files")
    copies: tuple[Path, ...] = setting(
        (), aliases=("--from",), help="--from FILE: files, archives or folders fetched elsewhere, no download"
    )
    repository: str = setting(REPOSITORY, help="owner/name")
    revision: str = setting(REVISION, help="commit; full hash")
    raw_url: str = setting(RAW, help="address of a file of the repository")
    lfs_url: str = setting(LFS, help="address of what a Git LFS pointer stands for")
    force: bool = setting(False, help="fetch again what is there")


@functools.partial(alone, path_of=lambda settings: settings.out_dir / HASHES, inside=False)
def fetch_annotations(settings: FetchSettings) -> None:
    """Get annotations.json, llava.json and wikiart_images.csv, and record their hashes."""
    out, copies = settings.out_dir, settings.copies
    missing = [name for name in WANTED if settings.force or copies or not (out / name).is_file()]
    partial = out / ".annotations.partial"
    if not missing:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed at its end
        log.info("%s: all there", out)
        return
    origin, note = f"{settings.repository}@{settings.revision}", partial / "origin.txt"
    if copies or not note.is_file() or read_text(note) != origin:  # what lies there is of something else
        shutil.rmtree(partial, ignore_errors=True)
    if not copies:
        try:
            write_atomic(note, origin.encode())
            copies = tuple(download_source(settings, source, partial) for source in SOURCES)
        except OSError:  # a full disk
            shutil.rmtree(partial, ignore_errors=True)
            raise
    try:  # from here on everything is on this disk, so a failure leaves nothing behind
        gather(copies, partial)
        files: dict[str, Path] = {}
        for path in sorted(partial.rglob("*")):
            if path.name in missing and "__MACOSX" not in path.parts:
                files.setdefault(path.name, path)
        lacking = [name for name in missing if name not in files]
        if not files or (lacking and not settings.copies):
            raise ValueError(f"no {' and no '.join(lacking)} in what was given or fetched")
        for name, path in files.items():  # a damaged file, or one of another form, never gets its name
            if name.endswith(".csv"):
                read_table(path, COLUMNS)
            else:
                read_json(path)
        record_path = out / HASHES
        record = read_json(record_path) if record_path.is_file() else {}
        source = ", ".join(map(str, settings.copies)) or origin
        for name, path in files.items():
            sha256 = file_sha256(path)
            before = record.get(name, {}).get("sha256", sha256)
            if before != sha256:
                log.warning("%s differs from the one recorded earlier (SHA-256 %s)", name, before)
            record[name] = {"sha256": sha256, "from": source}
            log.info("%s: SHA-256 %s", out / name, sha256)
        write_object(record_path, record)  # first: a call that finds all files there records nothing
        for name, path in files.items():
            path.replace(out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def download_source(settings: FetchSettings, source: str, partial: Path) -> Path:
    """One file of the repository, into the folder `partial` unless an interrupted call has put it there."""
    path = partial / Path(source).name
    if path.is_file():
        return path
    where = {"repository": settings.repository, "revision": settings.revision, "path": source}
    try:
        download(settings.raw_url.format(**where), path)
        if pointed := pointer_hash(path):
            path.unlink()
            log.info("%s is kept by Git LFS", source)
            download(settings.lfs_url.format(**where), path, pointed)
            if pointer_hash(path) is not None:
                raise ValueError(f"{source}: the address of large files answers with a pointer again")
    except ValueError as error:
        raise ValueError(
            f"{error}. Fetch the file by hand (https://github.com/{settings.repository}) and give "
            "it: python -m inpainting.data.downloader fetch-annotations --from FILE"
        ) from None
    return path


def pointer_hash(path: Path) -> str | None:
    """The SHA-256 that a Git LFS pointer file names; None for any other file."""
    if path.stat().st_size > POINTER_BYTES:
        return None
    match = POINTER.match(path.read_bytes())
    return match.group(1).decode() if match else None


def gather(copies: Sequence[Path], partial: Path) -> None:
    """Copy or unpack files that were fetched."""
    partial.mkdir(parents=True, exist_ok=True)
    for copy in copies:
        if copy.is_dir():
            inside = [path for path in sorted(copy.rglob("*")) if path.name in WANTED or is_archive(path)]
            gather(inside, partial)
        elif not copy.is_file():
            raise ValueError(f"{copy}: no such file")
        elif pointer_hash(copy) is not None:
            raise ValueError(
                f"{copy} is a Git LFS pointer, not the file; `git lfs pull` in its clone gets it"
            )
        elif is_archive(copy):
            unpack(copy, partial)
        elif copy.parent != partial:
            with written_whole(partial / copy.name) as temporary:
                shutil.copyfile(copy, temporary)
