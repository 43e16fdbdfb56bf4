"""What the painting data start from: the authors' annotation files, and the images of their table.

Both continue where they stopped. Two of the annotation files lie in an archive. A file kept by Git LFS
arrives as a pointer; what it points to is fetched then, and checked against its hash.
"""

import csv
import functools
import io
import logging
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import httpx
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from inpainting.data.paintings import checked_name, source_file, write_object
from ldm.decode import DECODER_ERRORS
from ldm.files import file_sha256, nfc, read_json, read_table, read_text, write_atomic, written_whole
from ldm.images import read_image
from ldm.journal import attempt_in_order
from ldm.locks import alone
from ldm.registry.pull import download, is_archive, unpack
from ldm.settings.cli import App, command, new_app, run_module
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
HEADERS = {"User-Agent": "bifrost-painting-data/1.0"}
RETRYABLE_STATUS = (408, 425, 429, 500, 502, 503, 504)  # temporary failures
LONGEST_WAIT_S = 60.0  # chosen
MOST_BYTES = 64 << 20  # chosen
SHOWN = 3
FAILED = ("file_name", "url", "reason")  # columns of the table of failures
PROFILED = ("JPEG", "PNG", "WEBP", "TIFF")  # formats whose files say what their colours mean


class TemporaryError(ValueError):
    """A failure that another try may change."""


@dataclass(frozen=True)
class FetchSettings(CheckedSettings):
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
        page = f"https://github.com/{settings.repository}"
        way = "give it: python -m inpainting.data.downloader fetch-annotations --from FILE"
        raise ValueError(f"{error}. Fetch the file by hand ({page}) and {way}") from None
    return path


def pointer_hash(path: Path) -> str | None:
    """The SHA-256 that a Git LFS pointer file names; None for any other file."""
    if path.stat().st_size > POINTER_BYTES:
        return None
    match = POINTER.match(path.read_bytes())
    return match[1].decode() if match else None


def gather(copies: Sequence[Path], partial: Path) -> None:
    partial.mkdir(parents=True, exist_ok=True)
    for copy in copies:
        if copy.is_dir():
            inside = [path for path in sorted(copy.rglob("*")) if path.name in WANTED or is_archive(path)]
            gather(inside, partial)
        elif not copy.is_file():
            raise ValueError(f"{copy}: no such file")
        elif pointer_hash(copy) is not None:
            raise ValueError(f"{copy} is a Git LFS pointer; `git lfs pull` in its clone gets the file")
        elif is_archive(copy):
            unpack(copy, partial)
        elif copy.parent != partial:
            with written_whole(partial / copy.name) as temporary:
                shutil.copyfile(copy, temporary)


@dataclass(frozen=True)
class DownloadSettings(CheckedSettings):
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
    limits = httpx.Limits(max_connections=settings.threads)
    client = httpx.Client(timeout=settings.timeout, follow_redirects=True, headers=HEADERS, limits=limits)

    def fetch(row: dict[str, str]) -> None:
        name, reason = checked_name(row["file_name"]), ""
        path = folder / name
        if (count := addresses[nfc(name)]) > 1:
            raise ValueError(f"the table gives this name {count} different addresses")
        try:
            if path.is_file() and (not settings.verify or read_image(path)):
                return None
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
                return write_atomic(path, fetch_image(name, row["url"], client))
            except TemporaryError as error:
                reason = str(error)
        raise ValueError(f"{reason} ({settings.attempts} tries)")

    failed: list[tuple[str, str, str]] = []  # file name, address, reason
    with client:
        bar = tqdm(attempt_in_order(fetch, rows, settings.threads), total=len(rows), unit="images")
        for row, error in zip(rows, bar, strict=True):
            if error is not None:
                failed.append((row["file_name"], row["url"], str(error)))
                bar.set_postfix(failed=len(failed))
    log.info("%d of %d images are in %s", len(rows) - len(failed), len(rows), folder)
    if not failed:
        failures.unlink(missing_ok=True)  # of an earlier run
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([FAILED, *failed])
    write_atomic(failures, text.getvalue().encode())
    named = "; ".join(f"{name}: {reason}" for name, _, reason in failed[:SHOWN])
    message = f"{len(failed)} images failed ({named}), all in {failures}; run again to try them again"
    if len(failed) == len(rows):
        raise ValueError(message)
    log.warning("%s", message)


def fetch_image(name: str, url: str, client: httpx.Client) -> bytes:
    """A whole image as RGB in the format that its file name ends in, with Pillow's defaults.

    It is upright, 8 bits deep, on white where it was transparent, and its colour profile is kept or applied.
    TemporaryError: it may come next time; ValueError: it will not come.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"only http and https addresses are fetched, got {url!r}")
    data = bytearray()
    try:
        with client.stream("GET", url) as answer:
            answer.raise_for_status()
            for block in answer.iter_bytes():
                data += block
                if len(data) > MOST_BYTES:
                    raise ValueError(f"larger than {MOST_BYTES >> 20} MiB")
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        kind = TemporaryError if status in RETRYABLE_STATUS else ValueError
        raise kind(f"HTTP {status} {error.response.reason_phrase}") from None
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from None
    except httpx.HTTPError as error:
        raise TemporaryError(str(error) or type(error).__name__) from None
    try:
        image, buffer = read_image(name, bytes(data)), io.BytesIO()
        form = Image.registered_extensions()[PurePath(name).suffix.lower()]
        rgb_u8, profile = (image.own_u8, image.icc_profile) if form in PROFILED else (image.rgb_u8, None)
        if image.alpha_u8 is not None:
            opacity = image.alpha_u8[:, :, None].astype(np.float32) / 255
            rgb_u8 = np.rint(255 + opacity * (rgb_u8 - np.float32(255))).astype(np.uint8)
        Image.fromarray(rgb_u8).save(buffer, form, icc_profile=profile)
    except DECODER_ERRORS as error:
        raise TemporaryError(f"no readable image among {len(data)} bytes: {error}") from None
    return buffer.getvalue()


def build_app() -> App:
    app = new_app("Fetch annotations and images.")
    app.command("fetch-annotations")(command(FetchSettings, fetch_annotations))
    app.command("download-and-save-images-wikiart-v2")(command(DownloadSettings, fetch_images))
    return app


if __name__ == "__main__":
    run_module(build_app)
