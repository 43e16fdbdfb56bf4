"""One file over HTTP: continued where it stopped, checked, and never under its final name before that."""

from __future__ import annotations

import http.client
import logging
import urllib.error
import urllib.request
from pathlib import Path

from tqdm.auto import tqdm

from ldm.files import file_sha256

log = logging.getLogger(__name__)

DOWNLOAD_ATTEMPTS = 4
BLOCK_BYTES = 1 << 20
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
