"""Images of a table of addresses, fetched in threads: checked, retried, written as a whole, resumable."""

from __future__ import annotations

import csv
import http.client
import io
import logging
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from inpainting.data.paintings import checked_name
from inpainting.data.steps.split import read_rows
from ldm.decode import DECODER_ERRORS
from ldm.files import write_atomic
from ldm.images import read_image
from ldm.journal import in_order
from ldm.settings.config import CheckedSettings, setting

log = logging.getLogger(__name__)

AGENT = "bifrost-painting-data/1.0"
RETRYABLE_STATUS = (408, 425, 429, 500, 502, 503, 504)  # answers that may be others a moment later
LONGEST_WAIT_S = 60.0
MOST_BYTES = 64 << 20
SHOWN = 3


class PermanentError(ValueError):
    """Asking again would not help."""


@dataclass(frozen=True)
class ImageSettings(CheckedSettings):
    """Which images, and how patiently."""

    output_dir: Path = setting(
        Path("data/mm_inp_dataset/images"), aliases=("--output_dir", "-o"), help="folder for the images"
    )
    csv: Path = setting(Path("data/wikiart_images.csv"), help="table of file_name, url and modifier")
    threads: int = setting(16, low=1, high=256, help="images at once")
    attempts: int = setting(4, low=1, help="tries per image")
    timeout: float = setting(30.0, low=0.01, help="seconds without a byte after which a try has failed")
    wait: float = setting(1.0, low=0, help="seconds before the second try, doubled before each further one")
    verify: bool = setting(False, help="decode the images that are there, and fetch damaged ones again")
    failures: Path | None = setting(None, help="table of failures [default: OUTPUT_DIR_failed.csv]")

    @property
    def failure_table(self) -> Path:
        folder = self.output_dir
        return self.failures or folder.with_name(f"{folder.name}_failed.csv")


@dataclass(frozen=True)
class Download:
    """One row of the table."""

    file_name: str
    url: str


def fetch_images(settings: ImageSettings) -> None:
    """Fetch every image that is not there; run again to try the failures again."""
    rows = wanted_images(settings.csv)
    folder = settings.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    sound = in_order(lambda row: is_there(folder / row.file_name, settings.verify), rows, settings.threads)
    pending = [row for row, there in zip(rows, sound, strict=True) if not there]
    failed: list[tuple[Download, str]] = []

    def attempt(row: Download) -> str:
        try:
            write_atomic(folder / checked_name(row.file_name), fetch_image(row, settings))
        except ValueError as error:
            return str(error)
        return ""

    done = in_order(attempt, pending, settings.threads)
    bar = tqdm(done, total=len(rows), initial=len(rows) - len(pending), unit="images")
    for row, reason in zip(pending, bar, strict=True):
        if reason:
            failed.append((row, reason))
            bar.set_postfix(failed=len(failed))
    report(settings, len(rows), failed)


def is_there(path: Path, verify: bool) -> bool:
    """Whether an image need not be fetched."""
    if not path.is_file():
        return False
    try:
        return not verify or read_image(path).size != (0, 0)
    except ValueError as error:
        log.warning("%s; fetching it again", error)
        return False


def wanted_images(path: Path) -> list[Download]:
    """The rows of a table: URL!MODIFIER.EXTENSION as published, URL where there is no modifier."""
    return [
        Download(row["file_name"], image_address(row["url"], row.get("modifier", "")))
        for row in read_rows(path, ("file_name", "url"))
    ]


def image_address(url: str, modifier: str) -> str:
    """Address of one size of an image: a.jpg, Large -> a.jpg!Large.jpg"""
    return f"{url}!{modifier}.{url.rpartition('.')[2]}" if modifier else url


def fetch_image(row: Download, settings: ImageSettings) -> bytes:
    """The image in the format that its name says, as RGB; ValueError after the last try."""
    reason = ""
    for number in range(settings.attempts):
        if number:
            time.sleep(pause(settings.wait, number))
        try:
            return encode_like(row.file_name, fetch_bytes(row.url, settings.timeout))
        except PermanentError:
            raise
        except ValueError as error:
            reason = str(error)
    raise ValueError(f"{reason} ({settings.attempts} tries)")


def pause(first: float, number: int, draw: Callable[[], float] = random.random) -> float:
    """Seconds before try `number` + 1; the random part keeps threads from coming back all at once."""
    return min(LONGEST_WAIT_S, first * 2 ** (number - 1)) * (0.5 + draw() / 2)


def fetch_bytes(url: str, timeout: float) -> bytes:
    """A whole answer with status 200. Gone: it will not come; ValueError: it may come next time."""
    if not url.startswith(("http://", "https://")):
        raise PermanentError(f"only http and https addresses are fetched, got {url!r}")
    # Names of images hold letters outside ASCII, which an address must spell in percent signs.
    quoted = urllib.parse.quote(url, safe="/:?&=%!#@,;+~()*'$[]")
    try:
        request = urllib.request.Request(quoted, headers={"User-Agent": AGENT})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            data = answer.read(MOST_BYTES + 1)
            length = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        kind = ValueError if error.code in RETRYABLE_STATUS else PermanentError
        raise kind(f"HTTP {error.code} {error.reason}") from None
    except http.client.InvalidURL as error:
        raise PermanentError(str(error)) from None
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(str(getattr(error, "reason", error)) or type(error).__name__) from None
    if length is not None and len(data) < int(length):
        raise ValueError(f"the answer ended after {len(data)} of {length} bytes")
    if len(data) > MOST_BYTES:
        raise PermanentError(f"larger than {MOST_BYTES >> 20} MiB")
    return data


def encode_like(file_name: str, data: bytes) -> bytes:
    """Decode a whole image and write it as RGB in the format of its name, with Pillow's defaults."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            rgb = image.convert("RGB")
        buffer = io.BytesIO()
        rgb.save(buffer, Image.registered_extensions()[Path(file_name).suffix.lower()])
    except DECODER_ERRORS as error:
        raise ValueError(f"no readable image among {len(data)} bytes: {error}") from None
    return buffer.getvalue()


def report(settings: ImageSettings, total: int, failed: list[tuple[Download, str]]) -> None:
    """Write the table of failures, or remove the one of an earlier run."""
    table = settings.failure_table
    there = total - len(failed)
    log.info("%d of %d images are in %s", there, total, settings.output_dir)
    if not failed:
        table.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", "url", "reason"])
    writer.writerows([row.file_name, row.url, reason] for row, reason in failed)
    write_atomic(table, text.getvalue().encode())
    named = "; ".join(f"{row.file_name}: {reason}" for row, reason in failed[:SHOWN])
    message = f"{len(failed)} images failed ({named}), all in {table}; run again to try them again"
    if not there:
        raise ValueError(message)
    log.warning("%s", message)
