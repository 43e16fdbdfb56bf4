"""The files of a data set under construction: parts, what was finished, the final JSON.

    out/recipe.json                   what decides the contents; another recipe is refused
    out/parts/shard-0-of-1.jsonl      one line an image, appended; a torn last line is cut off on restart
    out/images/*.jpg, *.png
    out/dataset.json                  all records in the order of the source, made when every line is there
    out/statistics.json

A killed run is continued by the same command and ends with the same bytes: every item depends on its own
seed alone, images are written whole before their line, and the order of the parts does not matter.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ldm.files import read_json, write_all_atomic, write_atomic
from ldm.images import encode_png
from ldm.settings.config import setting
from ldm.shards import shard_of
from llava_bifrost.build_dataset.records import Built, check_record, make_record, statistics
from llava_bifrost.language.instruction import FORMATS

log = logging.getLogger(__name__)

RECIPE, DATASET, STATISTICS = "recipe.json", "dataset.json", "statistics.json"
JPEG_QUALITY = 95


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Where the data set goes and how its answers look; shared by all sources."""

    out: Path = setting(help="folder of the data set")
    format: str = setting("center", choices=FORMATS, help="depths of an answer: one, or max, median and min")
    decimals: int = setting(3, low=2, high=6, help="of the numbers in an answer")
    seed: int = setting(0, low=0, help="of all random choices")
    shard: str = setting("0/1", help="i/n: build every n-th chunk, from the i-th; then run merge")


class Source(Protocol):
    """Items in chunks. A chunk is always built as a whole, so that its results depend on nothing else."""

    def names(self) -> list[str]: ...

    def chunk(self) -> int:
        """Items per chunk."""
        ...

    def recipe(self) -> dict[str, Any]: ...

    def prepare(self, indices: Sequence[int]) -> Any:
        """What needs no network; runs beside `finish` of the chunk before."""
        ...

    def finish(self, prepared: Any) -> list[Built]: ...


def build(source: Source, settings: OutputSettings) -> tuple[int, dict[str, Any] | None]:
    """Build this run's share.

    returns: items built now, and the statistics of the finished data set; None for one shard of several
    """
    shard, shards = shard_of(settings.shard)
    names = source.names()
    write_recipe(settings.out, {**source.recipe(), **_plain(settings), "items": len(names)})
    path = settings.out / "parts" / f"shard-{shard}-of-{shards}.jsonl"
    done = {line["item"] for line in read_part(path, repair=True)}
    size = source.chunk()
    mine = [range(at, min(at + size, len(names))) for at in range(0, len(names), size)][shard::shards]
    todo = [chunk for chunk in mine if any(names[index] not in done for index in chunk)]
    total, left = sum(map(len, mine)), sum(map(len, todo))
    built = 0
    with tqdm(total=total, initial=total - left, desc="building", unit="item", disable=None) as bar:
        for results in _ahead(source, todo):
            for one in results:
                if one.name not in done:
                    append(settings, path, one)
                    built += 1
                bar.update()
    return built, merge(settings.out) if shards == 1 else None


def _plain(settings: OutputSettings) -> dict[str, Any]:
    return {"format": settings.format, "decimals": settings.decimals, "seed": settings.seed}


def _ahead(source: Source, chunks: Sequence[range]) -> Iterator[list[Built]]:
    """Results chunk by chunk; the next one is prepared in a thread while the networks run."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(source.prepare, chunks[0]) if chunks else None
        for at in range(len(chunks)):
            prepared = waiting.result() if waiting is not None else None
            waiting = pool.submit(source.prepare, chunks[at + 1]) if at + 1 < len(chunks) else None
            yield source.finish(prepared)


def write_recipe(out: Path, recipe: dict[str, Any]) -> None:
    """Note what the data set is made of; a folder that holds another one is refused."""
    path = out / RECIPE
    if path.is_file():
        known = read_json(path)
        different = sorted(key for key in {*known, *recipe} if known.get(key) != recipe.get(key))
        if different:
            raise ValueError(
                f"{out} holds a data set that was begun with other settings ({', '.join(different)}); "
                f"choose another --out or remove it"
            )
        return
    write_atomic(path, _json(recipe))


def append(settings: OutputSettings, path: Path, built: Built) -> None:
    """Write the images of one item, then its line."""
    for name, rgb_u8 in {sample.image: sample.rgb_u8 for sample in built.samples}.items():
        write_atomic(settings.out / "images" / name, encode(name, rgb_u8))
    records = [make_record(sample, settings.format, settings.decimals) for sample in built.samples]
    line = {"item": built.name, "records": records, "dropped": list(built.dropped)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(line) + "\n")


def encode(name: str, rgb_u8: np.ndarray) -> bytes:
    """A PNG or JPEG file, by the ending of its name."""
    if name.endswith(".png"):
        return encode_png(rgb_u8)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb_u8)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def read_part(path: Path, *, repair: bool = False) -> list[dict[str, Any]]:
    """The whole lines of a part. repair: cut off what a killed run left behind the last one."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if repair and len(whole) < len(data):
        log.warning("%s: cut off an unfinished line", path)
        write_atomic(path, whole)
    try:
        return [json.loads(line) for line in whole.decode("utf-8").splitlines()]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}; remove it and build this shard again") from error


def merge(out: Path) -> dict[str, Any]:
    """Make the final files of all parts; returns the statistics.

    ValueError names the shards that are not finished. Leftovers of killed runs are removed.
    """
    if not (out / RECIPE).is_file():
        raise ValueError(f"{out} holds no data set: there is no {RECIPE}")
    parts = sorted((out / "parts").glob("shard-*-of-*.jsonl"))
    lines = {line["item"]: line for path in parts for line in read_part(path)}
    expected = read_json(out / RECIPE)["items"]
    if len(lines) < expected:
        there = ", ".join(path.stem for path in parts) or "none"
        raise ValueError(f"{out}: {len(lines)} of {expected} items are built (parts: {there}); run the rest")
    ordered = [lines[item] for item in sorted(lines)]
    records = [record for line in ordered for record in line["records"]]
    for record in records:
        check_record(record)
    report = statistics(records, (reason for line in ordered for reason in line["dropped"]), expected)
    body = ",\n".join(json.dumps(record) for record in records)
    write_all_atomic({out / DATASET: f"[\n{body}\n]\n".encode(), out / STATISTICS: _json(report)})
    for leftover in (out / "images").glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    return report


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
