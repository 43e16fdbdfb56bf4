"""What the painting data start from: the authors' annotation files, and the images of their table.

    python -m inpainting.data.downloader fetch-annotations
    python -m inpainting.data.downloader download-and-save-images-wikiart-v2 -o data/mm_inp_dataset/images

Both continue where they stopped. Images are fetched in threads: checked, retried, written as a whole.
"""

import csv
import io
import logging
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePath

import httpx
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from inpainting.data.paintings import checked_name, source_file
from inpainting.data.steps.fetch import FetchSettings, fetch_annotations
from ldm.decode import DECODER_ERRORS
from ldm.files import nfc, read_table, write_atomic
from ldm.images import read_image
from ldm.journal import attempt_in_order
from ldm.settings.cli import App, command, new_app, run_module
from ldm.settings.config import CheckedSettings, setting

log = logging.getLogger(__name__)

AGENT = "bifrost-painting-data/1.0"
RETRYABLE_STATUS = (408, 425, 429, 500, 502, 503, 504)  # temporary failures
LONGEST_WAIT_S = 60.0  # chosen
MOST_BYTES = 64 << 20  # chosen
SHOWN = 3
FAILED = ("file_name", "url", "reason")  # columns of the table of failures
PROFILED = ("JPEG", "PNG", "WEBP", "TIFF")  # formats whose files say what their colours mean


class PermanentError(ValueError):
    """A failure that a retry does not change."""


@dataclass(frozen=True)
class DownloadSettings(CheckedSettings):
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


def fetch_images(settings: DownloadSettings) -> None:
    """Fetch every image that is not there; run again to try the failures again."""
    folder, rows = settings.output_dir, read_table(source_file(settings.csv), ("file_name", "url"))
    failures = settings.failures or folder.with_name(f"{folder.name}_failed.csv")
    if failures.is_file():
        read_table(failures, FAILED)  # refused, unless it is of an earlier run
    for row in rows:  # address of one size of an image, as published: a.jpg, Large -> a.jpg!Large.jpg
        if modifier := row.get("modifier"):
            row["url"] += f"!{modifier}.{row['url'].rpartition('.')[2]}"
    rows = list({(nfc(row["file_name"]), row["url"]): row for row in rows}.values())  # equal ones count once
    addresses = Counter(nfc(row["file_name"]) for row in rows)
    folder.mkdir(parents=True, exist_ok=True)
    client = httpx.Client(
        timeout=settings.timeout,
        follow_redirects=True,
        headers={"User-Agent": AGENT},
        limits=httpx.Limits(max_connections=settings.threads),
    )

    def fetch(row: dict[str, str]) -> None:
        """Raises ValueError: why an image is not there."""
        name, reason = checked_name(row["file_name"]), ""
        path = folder / name
        if (count := addresses[nfc(name)]) > 1:
            raise ValueError(f"the table gives this name {count} different addresses")
        try:
            if path.is_file() and (not settings.verify or read_image(path)):
                return
        except OSError as error:
            raise ValueError(f"cannot be stored: {error.strerror}") from None
        except ValueError as error:
            log.warning("%s; fetching it again", error)
        for number in range(settings.attempts):
            if number:
                # The random part keeps threads from coming back all at once.
                longest = min(LONGEST_WAIT_S, settings.wait * 2 ** (number - 1))
                time.sleep(longest * random.uniform(0.5, 1))
            try:
                image = fetch_image(name, row["url"], client)
            except PermanentError:
                raise
            except ValueError as error:
                reason = str(error)
            else:
                write_atomic(path, image)
                return
        raise ValueError(f"{reason} ({settings.attempts} tries)")

    failed: list[tuple[str, str, str]] = []  # file name, address, reason
    with client:
        bar = tqdm(attempt_in_order(fetch, rows, settings.threads), total=len(rows), unit="images")
        for row, error in zip(rows, bar, strict=True):
            if error is not None:
                failed.append((row["file_name"], row["url"], str(error)))
                bar.set_postfix(failed=len(failed))
    there = len(rows) - len(failed)
    log.info("%d of %d images are in %s", there, len(rows), folder)
    if not failed:
        failures.unlink(missing_ok=True)  # of an earlier run
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([FAILED, *failed])
    write_atomic(failures, text.getvalue().encode())
    named = "; ".join(f"{name}: {reason}" for name, _, reason in failed[:SHOWN])
    message = f"{len(failed)} images failed ({named}), all in {failures}; run again to try them again"
    if not there:
        raise ValueError(message)
    log.warning("%s", message)


def fetch_image(name: str, url: str, client: httpx.Client) -> bytes:
    """A whole image as RGB in the format that its file name ends in, with Pillow's defaults.

    It is upright, 8 bits deep, on white where it was transparent, and its colour profile is kept or applied.
    PermanentError: it will not come; ValueError: it may come next time.
    """
    if not url.startswith(("http://", "https://")):
        raise PermanentError(f"only http and https addresses are fetched, got {url!r}")
    data = bytearray()
    try:
        with client.stream("GET", url) as answer:
            answer.raise_for_status()
            for block in answer.iter_bytes():
                data += block
                if len(data) > MOST_BYTES:
                    raise PermanentError(f"larger than {MOST_BYTES >> 20} MiB")
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        kind = ValueError if status in RETRYABLE_STATUS else PermanentError
        raise kind(f"HTTP {status} {error.response.reason_phrase}") from None
    except httpx.InvalidURL as error:
        raise PermanentError(str(error)) from None
    except httpx.HTTPError as error:
        raise ValueError(str(error) or type(error).__name__) from None
    try:
        image, buffer = read_image(name, bytes(data)), io.BytesIO()
        form = Image.registered_extensions()[PurePath(name).suffix.lower()]
        rgb_u8, profile = (image.own_u8, image.icc_profile) if form in PROFILED else (image.rgb_u8, None)
        if image.alpha_u8 is not None:
            opacity = image.alpha_u8[:, :, None].astype(np.float32) / 255
            rgb_u8 = np.rint(255 + opacity * (rgb_u8 - np.float32(255))).astype(np.uint8)
        Image.fromarray(rgb_u8).save(buffer, form, icc_profile=profile)
    except DECODER_ERRORS as error:
        raise ValueError(f"no readable image among {len(data)} bytes: {error}") from None
    return buffer.getvalue()


def build_app() -> App:
    app = new_app("Fetch annotations and images.")
    app.command("fetch-annotations")(command(FetchSettings, fetch_annotations))
    app.command("download-and-save-images-wikiart-v2")(command(DownloadSettings, fetch_images))
    return app


if __name__ == "__main__":
    run_module(build_app)
