"""What a command leaves behind: a PNG that carries its recipe, a JSON report beside it, the measured drift.

The recipe holds no time, so that replaying it gives the same bytes. Legend: h w pixels.
"""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL.PngImagePlugin import PngImageFile

from ldm import __version__
from ldm.decode import LoadedImage, opened, row_blocks
from ldm.files import ROOT, named_failure, read_json, set_aside, write_all_atomic
from ldm.images import OUTPUT_FORMATS, encode_image
from ldm.journal import parse_line
from ldm.settings.config import setting
from ldm.settings.resources import check_writable

log = logging.getLogger(__name__)

RECIPE_CHUNK = "bifrost"  # PNG text chunk with the recipe as JSON
READABLE_CHUNK = "parameters"  # the chunk that other tools show to people
COMMITTED = ("benchmarks/results", "docs/figures")  # of the repository: git keeps what was there before
ALIKE = 2  # of 255: chosen between one step of the small compositor (1.4) and four (6.5)
version_of = cache(version)  # read from the disk for milliseconds
LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow", "opencv-python-headless")


class StageTimer:
    """Wall-clock seconds per named stage; a stage that is entered again adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def report(self) -> dict[str, float]:
        total = sum(self.seconds.values())
        return {name: round(value, 3) for name, value in {**self.seconds, "total": total}.items()}


def library_versions(*more: str) -> dict[str, str]:
    """Versions of this code and of the installed libraries that decide the pixels."""
    found = {"bifrost": __version__}
    for name in (*LIBRARIES, *more):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version_of(name)
    return found


def measure_drift(before_u8: np.ndarray, after_u8: np.ndarray, edit_mask: np.ndarray) -> dict[str, Any]:
    """Compare two images (h, w, 3) uint8 inside and outside the edit mask (h, w) bool.

    returns: changed_outside, changed_inside  pixels with any different channel
             max_abs_outside                  largest difference outside, of 255
             edit_fraction                    fraction of the image inside the mask
    """
    if before_u8.shape != after_u8.shape or before_u8.shape[:2] != edit_mask.shape:
        shapes = f"{before_u8.shape}, {after_u8.shape} and mask {edit_mask.shape}"
        raise ValueError(f"drift compares images of one size, got {shapes}")
    changed = changed_outside = most = 0
    for rows in row_blocks(len(edit_mask)):
        difference = np.maximum.reduce(cv2.split(cv2.absdiff(before_u8[rows], after_u8[rows])))
        outside = np.where(edit_mask[rows], np.uint8(0), difference)
        changed += cv2.countNonZero(difference)
        changed_outside += cv2.countNonZero(outside)
        most = max(most, int(outside.max(initial=0)))
    return {
        "changed_outside": changed_outside, "max_abs_outside": most,
        "changed_inside": changed - changed_outside, "edit_fraction": float(edit_mask.mean())}  # fmt: skip


def warn_if_alike(images_u8: Sequence[np.ndarray], mask: np.ndarray, steps: int) -> None:
    """Say where samples of different seeds (h, w, 3) hardly differ inside a mask (h, w) bool."""
    first = images_u8[0][mask].astype(np.int16) if len(images_u8) > 1 else None
    changes = [np.abs(other[mask] - first).mean() for other in images_u8[1:]]
    if changes and max(changes) < ALIKE:
        text = "the samples hardly differ, by %.1f of 255 on average: the model painted in %d step(s); %s"
        log.warning(text, max(changes), steps, f"--steps {max(4, 2 * steps)} lets them differ")


def result_paths(path: Path | str) -> tuple[Path, Path]:
    path = Path(path)
    if path.suffix.lower() not in OUTPUT_FORMATS:
        raise ValueError(f"a result is written as {', '.join(OUTPUT_FORMATS)}, got {path.name!r}")
    return path, path.with_suffix(".json")


def beside(out: Path, ending: str) -> Path:
    """outputs/a.png, "_sheet.png" -> outputs/a_sheet.png"""
    return out.with_name(out.stem + ending)


def sample_paths(out: Path, count: int) -> list[Path]:
    """The image of one sample, or NAME_0.png, NAME_1.png, ... of several."""
    return [out] if count == 1 else [beside(out, f"_{index}{out.suffix}") for index in range(count)]


def output_paths(out: Path, count: int, inputs: Iterable[Path] = ()) -> list[Path]:
    """One image per sample; refuses, before any work, a place that cannot be written or holds an input."""
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; it must name a file ({', '.join(OUTPUT_FORMATS)})")
    paths, sources = sample_paths(out, count), {source.resolve() for source in inputs}
    for target in (beside(out, "_sheet.png"), *(target for path in paths for target in result_paths(path))):
        if target.is_dir():
            raise ValueError(f"--out {out}: {target} is a folder")
        if target.resolve() in sources:
            raise ValueError(f"--out {out}: {target} is one of the inputs and would be overwritten")
    check_writable(out)
    return paths


def overwrite_setting() -> Any:
    """The field `overwrite` of the settings of a command that writes images, tables or reports."""
    text = "replace another result that is there, or keep it as NAME.old1.png, NAME.old2.png, ..."
    return setting(False, aliases=("/--keep",), help=text)


def write_result(files: Mapping[Path, bytes], overwrite: bool = False) -> None:
    """`write_all_atomic`, which keeps an earlier result under another name (`set_aside`), or replaces it.

    The first file tells results apart: where it is the same, the others are replaced (they hold timings).
    The repository's own tables and figures are replaced (`COMMITTED`).
    """
    path, data = next(iter(files.items()))
    ours = any(path.resolve().is_relative_to(ROOT / folder) for folder in COMMITTED)
    if not (overwrite or ours or (path.is_file() and path.read_bytes() == data)):
        set_aside(path for path in files if path.is_file())
    write_all_atomic(files)


def log_result(
    paths: Sequence[Path], report: Mapping[str, Any], summary: str, sheet: Path | None
) -> dict[str, Any]:
    """Say in log lines where everything is; returns the report with the PNGs as `files`."""
    for path in paths:
        log.info("image:   %s\nreport:  %s", *result_paths(path))
    if sheet is not None:
        log.info("sheet:   %s", sheet)
    log.info("%s, %.1f s on %s", summary, report["seconds"]["total"], report["device"])
    return {**report, "files": [path.as_posix() for path in paths]}


def save_result(
    path: Path | str,
    image: LoadedImage | np.ndarray,
    recipe: Mapping[str, Any],
    report: Mapping[str, Any],
    overwrite: bool = False,
) -> tuple[Path, Path]:
    """Write the image with its recipe, then the report beside it, which names the image's SHA-256.

    image:     or RGB (h, w, 3) uint8; the suffix of the path is its format, one of `OUTPUT_FORMATS`
    recipe:    all that decides the pixels; JSON values, paths and numpy scalars
    report:    what was measured; the JSON file is the report with `recipe` and `image_sha256`
    overwrite: another result that is there is replaced instead of renamed
    """
    png, beside = result_paths(path)
    text = {RECIPE_CHUNK: _to_json(recipe, png), READABLE_CHUNK: ", ".join(_readable(recipe))}
    if (kind := OUTPUT_FORMATS[png.suffix.lower()][0]) != "PNG":
        report = {**report, "format": kind}
    if kind == "JPEG":
        log.info("%s: JPEG is lossy; the drift was measured before encoding", png)
        report = {**report, "drift_measured": "before the lossy encoding"}
    image = image if isinstance(image, LoadedImage) else LoadedImage(image)
    data = encode_image(image, png.suffix, text)
    facts = {**report, "recipe": recipe, "image_sha256": hashlib.sha256(data).hexdigest()}
    write_result({png: data, beside: (_to_json(facts, beside, indent=2) + "\n").encode()}, overwrite)
    return png, beside


@dataclass(frozen=True, eq=False)
class Samples:
    """An image painted several times; sample i has seed `seeds[i]`."""

    images: list[LoadedImage]  # n, in size and colours of the image; opaque where something was painted
    edit_mask: np.ndarray  # (H, W) bool, what was allowed to change
    seeds: list[int]
    recipe: dict[str, Any]  # all that decides the pixels
    report: dict[str, Any]  # what was measured

    @property
    def images_u8(self) -> list[np.ndarray]:
        """n x (H, W, 3)"""
        return [image.own_u8 for image in self.images]

    @property
    def changed_outside(self) -> int:
        """Pixels of all samples that changed outside the edit region."""
        return sum(drift["changed_outside"] for drift in self.report["drift"])

    def save(self, index: int, path: Path, job: str | None = None, overwrite: bool = False) -> None:
        """One sample, as `save_result` writes it. job: identifies a batch job, for the report."""
        own = {"seed": self.seeds[index]}
        report = {**self.report, **own, "drift": self.report["drift"][index]}
        report |= {} if job is None else {"job": job}
        save_result(path, self.images[index], {**self.recipe, **own, "sample": index}, report, overwrite)


def read_recipe(png: Path | str) -> dict[str, Any]:
    """The recipe that `save_result` put into a PNG, or into the JSON beside another kind of image."""
    with opened(Path(png)) as image:
        kind, text = image.format, image.text if isinstance(image, PngImageFile) else None
    if text is None:
        path = Path(png).with_suffix(".json")
        report = read_json(path) if path.is_file() else {}
        if report.get("format") != kind or not isinstance(report.get("recipe"), dict):
            raise ValueError(f"{png} is no PNG that could carry a recipe, and {path} does not hold it")
        return report["recipe"]
    if RECIPE_CHUNK not in text:
        why = "it was not written here, or a program removed its text chunks"
        raise ValueError(f"{png} carries no recipe: {why}")
    with named_failure(f"{png} carries a damaged recipe", ValueError):
        return parse_line(text[RECIPE_CHUNK])


def _to_json(content: Mapping[str, Any], path: Path, indent: int | None = None) -> str:
    """ASCII JSON with sorted keys; NaN and foreign types are refused, because other readers refuse them."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return value.as_posix()
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        raise TypeError(f"{type(value).__name__} has no JSON form")

    with named_failure(f"{path} cannot record these values as JSON", TypeError, ValueError):
        return json.dumps(content, indent=indent, sort_keys=True, allow_nan=False, default=plain)


def _readable(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`name: value` pairs, as image browsers show them; nested names are joined by dots."""
    for name, value in sorted(recipe.items()):
        if isinstance(value, Mapping):
            yield from _readable(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}: {value}"
