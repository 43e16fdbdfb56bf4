"""Annotation files in the format of COCO, which LVIS, SA-1B, UVO, YouTube-VIS and annotation tools use too.

A record that cannot be used is left out, and one warning names file, ids and count; a file with many of them
is refused. Ids are compared as text: tools write the same id as 7 and as "7". pycocotools decodes polygons;
damaged ones crash it, and short run lengths leave it with uninitialised pixels, so all are checked before.
Legend: h w pixels.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
from pycocotools import mask as run_lengths

from datasets.geometry import Size
from ldm.files import named_failure, same_file

BAD_FRACTION = 0.1  # chosen: slips spoil a few records, a wrong merge or export spoils nearly all
SHOWN = 5  # unusable records that a message names
MAX_CHARACTERS = 7  # of a run length: 34 bits, more than any image has pixels
REACH = 10  # longer sides of the image that a coordinate may be away from it; chosen, far below what crashes
T = TypeVar("T")
R = TypeVar("R")


def json_entry(document: Any, key: str, path: Path, kind: type = object) -> Any:
    """One entry of a JSON object; ValueError names the file and the entry."""
    if not isinstance(document, dict) or not isinstance(document.get(key), kind) or key not in document:
        raise ValueError(f"{path} has no entry {key!r}, so it is not the expected annotation file")
    return document[key]


def lookup(table: Mapping[str, T], key: Any, what: str) -> T:
    """The entry of an id; ValueError names an id that nothing has."""
    if str(key) not in table:
        raise ValueError(f"there is no {what} {key}")
    return table[str(key)]


def usable(records: Collection[Any], parse: Callable[[Any], R], path: Path, what: str) -> list[R]:
    """What `parse` makes of the records of a file, without those that it refuses, which one warning names.

    ValueError when all are refused, or more than one and more than BAD_FRACTION.
    """
    parsed, refused = [], []
    for number, record in enumerate(records):
        try:
            parsed.append(parse(record))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            fields = record if isinstance(record, dict) else getattr(record, "__dict__", {})
            refused.append(f"{fields.get('id', f'number {number}')} ({reason})")
    if refused:
        listed = ", ".join(refused[:SHOWN]) + (", ..." if len(refused) > SHOWN else "")
        message = f"{path}: {len(refused)} of {len(records)} {what} cannot be used: {listed}"
        if len(refused) > max(1, BAD_FRACTION * len(records)) or not parsed:
            raise ValueError(f"{message}; at most {BAD_FRACTION:.0%} may be wrong")
        logging.getLogger(__name__).warning("%s; left out", message)
    return parsed


def records_by_id(document: Any, key: str, path: Path, name: str = "id") -> dict[str, dict[str, Any]]:
    """The records of a list by their id as text. Different records with one id are unusable."""
    records = json_entry(document, key, path, list)
    first: dict[str, Any] = {}
    named = [record for record in records if isinstance(record, dict) and name in record]
    double = {str(record[name]) for record in named if first.setdefault(str(record[name]), record) != record}

    def with_id(record: Any) -> tuple[str, dict[str, Any]]:
        if str(record[name]) in double:
            raise ValueError(f"other records have the same {name} {record[name]}")
        return str(record[name]), record

    return dict(usable(records, with_id, path, key))


def id_order(name: int | str) -> tuple[bool, int | str]:
    """The key that sorts ids: numbers, then texts."""
    return isinstance(name, str), name


def posix_name(name: Any) -> str:
    """A file name with `/` between its folders, also when it was written on Windows."""
    return PurePosixPath(str(name).replace("\\", "/")).as_posix()


def image_file(record: Mapping[str, Any], images: Path | None = None) -> str:
    """Name of an image below its folder: file_name; without one the last two parts of coco_url where they are
    a file below `images`, otherwise the last part.

    LVIS 0.5 has names of COCO 2014, COCO_val2014_N.jpg, for N.jpg of 2017: where the former is not there,
    coco_url counts too.
    """
    name, here = posix_name(record.get("file_name") or ""), images or Path()
    parts = PurePosixPath(unquote(urlsplit(str(record.get("coco_url") or "")).path)).parts[-2:]
    renamed = images is not None and bool(parts) and name.endswith(f"_{parts[-1]}")
    if record.get("file_name") and not (renamed and not same_file(here / name).is_file()):
        return name
    if not parts:
        raise KeyError("file_name")
    inside = images is not None and same_file(here.joinpath(*parts)).is_file()
    return "/".join(parts) if inside else parts[-1]


@dataclass(frozen=True)
class AnnotatedImage:
    """One record of `images` with what was made of its annotations, in the order of the file."""

    id: Any  # number or text, as in the file
    file: str
    size_hw: Size
    annotations: list[Any]


def annotated_images(
    document: Any, path: Path, images: Path | None, parse: Callable[[dict[str, Any]], Any]
) -> list[AnnotatedImage]:
    """The images of an instances file. parse: what is kept of an annotation."""
    annotations, records = (json_entry(document, key, path, list) for key in ("annotations", "images"))
    listed = {str(record.get("id")): record for record in records if isinstance(record, dict)}

    def image(record: dict[str, Any]) -> AnnotatedImage:
        size = int(record["height"]), int(record["width"])
        if min(size) < 1:
            raise ValueError(f"its size is {size[1]} x {size[0]}")
        return AnnotatedImage(record["id"], image_file(record, images), size, [])

    known = usable(records_by_id(document, "images", path).values(), image, path, "images")
    by_id = {str(record.id): record for record in known}

    def add(entry: dict[str, Any]) -> None:
        lookup(listed, key := str(entry["image_id"]), "image")
        if key in by_id:  # annotations of an unusable image go with it
            by_id[key].annotations.append(parse(entry))

    usable(annotations, add, path, "annotations")
    return known


def is_set(entry: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """A flag of a record, 0 or 1 as number or text; null is 0."""
    return float(entry.get(key, default) or 0) != 0


def is_large(entry: Mapping[str, Any], least: int) -> bool:
    """Whether an annotation is no crowd and larger than `least`; without an area the rules decide later."""
    area = entry.get("area")
    return (area is None or area > least) and not is_set(entry, "iscrowd")


def packed_segmentation(segmentation: Any) -> Any:
    """The same with polygons as arrays, which take a fraction of the memory of lists of numbers."""
    return tuple(map(np.asarray, segmentation)) if isinstance(segmentation, list) else segmentation


def with_packed_segmentation(record: dict[str, Any]) -> dict[str, Any]:
    """For `read_json`: LVIS for training then takes 2.9 GiB of memory, not 6.3."""
    with contextlib.suppress(KeyError, ValueError):  # what is damaged is named later
        record["segmentation"] = packed_segmentation(record["segmentation"])
    return record


def segment_mask(segmentation: Any, size_hw: Size, where: str) -> np.ndarray:
    """Bool (h, w) of a COCO segmentation: polygons, or run lengths, compressed or not.

    Polygons of fewer than three points are dropped; ValueError when none is left, and for run lengths that do
    not fill the image.
    segmentation: as in the JSON file, or of `packed_segmentation`; where: what an error names
    """
    h, w = size_hw
    wrong = f"{where}: the segmentation cannot be decoded"
    with named_failure(wrong, AttributeError, LookupError, TypeError, ValueError):
        if isinstance(segmentation, list | tuple):
            polygons = [polygon for polygon in map(np.asarray, segmentation) if polygon.size >= 6]
            if not polygons:
                raise ValueError("no polygon has three points")
            for polygon in polygons:
                if polygon.ndim != 1 or polygon.dtype.kind not in "iuf" or polygon.size % 2:
                    raise ValueError("a polygon is a list of numbers in pairs, x and y")
                if not (np.abs(polygon) <= (limit := REACH * max(h, w))).all():  # also where there is NaN
                    raise ValueError(f"a polygon has a coordinate that is not finite, or beyond {limit}")
            polygons = [polygon.tolist() for polygon in polygons]
            return run_lengths.decode(run_lengths.merge(run_lengths.frPyObjects(polygons, h, w))).astype(bool)
        size, counts = list(segmentation.get("size", (h, w))), segmentation["counts"]
        if isinstance(counts, str | bytes):
            counts = _counts(counts.encode() if isinstance(counts, str) else counts)
        runs = np.asarray(counts)
        if size == [h, w]:
            whole = runs.ndim == 1 and runs.dtype.kind in "iuf" and not (runs % 1).any() and (runs >= 0).all()
            if not whole or runs.sum(dtype=np.float64) != h * w:
                raise ValueError(f"its run lengths do not fill {h} x {w} = {h * w} pixels")
            columns = np.repeat(np.arange(len(runs)) % 2 == 1, runs.astype(np.int64)).reshape(w, h)
            return cv2.transpose(columns.view(np.uint8)).view(bool)  # rows again: three times as fast as .T
    shown = " x ".join(map(str, reversed(size)))
    raise ValueError(f"{where}: the segmentation is {shown} pixels, its image is {w} x {h}")


def _counts(code: bytes) -> np.ndarray:
    """Run lengths of COCO's compressed form: 5 bits a character from 48 on, differences from the third on."""
    bits = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    if (wrong := (bits < 0) | (bits > 63)).any():
        raise ValueError(f"{chr(code[wrong.argmax()])!r} is no character of run lengths")
    last = np.flatnonzero(bits < 32)  # characters of the numbers
    first = np.append(0, last + 1)[:-1]
    if not len(last) or (long := last - first + 1).max() > MAX_CHARACTERS:
        return last[:0]  # which fills no image
    place = np.arange(last[-1] + 1) - np.repeat(first, long)
    counts = np.add.reduceat((bits[: last[-1] + 1] & 31) << 5 * place, first)
    counts -= (bits[last] >> 4) << 5 * long  # the sign
    counts[1::2], counts[2::2] = counts[1::2].cumsum(), counts[2::2].cumsum()
    return counts
