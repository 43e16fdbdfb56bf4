"""Files from elsewhere: over HTTP, continued where it stopped and checked; archives, unpacked with care."""

import http.client
import logging
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from ldm.files import file_sha256

log = logging.getLogger(__name__)

DOWNLOAD_ATTEMPTS = 4
BLOCK_BYTES = 1 << 20
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
TIMEOUT_S = 30


def download(url: str, path: Path, sha256: str = "") -> str:
    """Fetch `url` to `path`; returns the SHA-256. What arrives is kept in `path`.part and continued.

    ValueError names the address and what is wrong. A file with another hash than `sha256` stays as
    `path`.wrong for inspection and is never used.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url}: only http and https addresses are fetched")
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    reason = ""
    for _ in range(DOWNLOAD_ATTEMPTS):
        try:
            if fetch(url, part):
                break
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            raise ValueError(f"{url}: HTTP {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        log.info("%s: %s; continuing", url, reason)
    else:
        raise ValueError(f"{url}: {reason}; run the same command again to continue")
    found = file_sha256(part)
    if sha256 and found != sha256.lower():
        aside = path.with_name(path.name + ".wrong")
        part.replace(aside)
        raise ValueError(f"{url}: SHA-256 is {found}, expected {sha256}; the file is kept as {aside}")
    part.replace(path)
    return found


def fetch(url: str, part: Path) -> bool:
    """Append what is missing to `part`; returns whether the whole file is there."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            return True  # nothing is missing
        if error.code == 416:
            part.unlink()  # longer than the file: of another version
            return False
        raise
    with answer:
        if have and answer.status != 206:  # the server starts from the beginning
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, leave=False) as bar,
        ):
            while block := answer.read(BLOCK_BYTES):
                file.write(block)
                bar.update(len(block))
    return total is None or part.stat().st_size == total


def is_archive(path: Path) -> bool:
    return path.name.endswith(ARCHIVES)


def unpack(path: Path, folder: Path) -> None:
    """Plain files and folders of an archive into `folder`; links and paths that lead outside are refused."""
    try:
        if path.suffix == ".zip":
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
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: not a readable archive ({error})") from None


def _require_inside(path: Path, name: str, plain: bool) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name or not plain:
        raise ValueError(f"{path}: refused: its member {name!r} is a link or leads out of the folder")
