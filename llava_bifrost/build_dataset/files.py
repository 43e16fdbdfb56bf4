"""The files of a data set under construction: parts, what was finished, the final JSON.

    out/recipe.json                   what decides the contents; another recipe is refused
    out/parts/shard-0-of-1.jsonl      one line an image, appended; a torn last line is cut off on restart
    out/images/*.jpg, *.png
    out/dataset.json                  all records in the order of the source, made when every line is there
    out/statistics.json

A killed run is continued by the same command and ends with the same bytes: every item depends on its own
seed alone, images are written whole before their line, and the order of the parts does not matter. Processes
at the same time take different chunks of one part.
"""

import io
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import typer
from PIL import Image
from tqdm.auto import tqdm

from ldm.cluster import spread
from ldm.files import json_bytes, read_json, write_all_atomic, write_atomic
from ldm.images import encode_png
from ldm.journal import SharedLines, in_order, read_lines
from ldm.locks import note_begun, taken
from ldm.settings.choices import shard_of
from llava_bifrost.build_dataset.records import IMAGE, Built, statistics
from llava_bifrost.settings import MergeShardsSettings, OutputSettings

log = logging.getLogger(__name__)

RECIPE, DATASET, STATISTICS = "recipe.json", "dataset.json", "statistics.json"
JPEG_QUALITY = 95
TAKEN = 4  # chunks that a process takes at a time, so that the next is prepared while one is finished
PRINTED = 12  # entries of one statistic


class QuestionSource(Protocol):
    """Items in chunks. A chunk is always built as a whole, so that its results depend on nothing else."""

    names: list[str]  # of all items
    chunk: int  # items per chunk
    recipe: dict[str, Any]  # what decides the contents, beside the settings of the output

    def prepare(self, indices: Sequence[int]) -> Any:
        """What needs no network; runs beside `finish` of the chunk before."""
        ...

    def finish(self, prepared: Any) -> list[Built]: ...


def build_questions(make: Callable[[Any], QuestionSource], settings: OutputSettings) -> dict[str, Any] | None:
    """Build this run's shard of what `make` makes of the settings: the commands `coco` and `scenes`.

    returns: the statistics of the finished data set; None for one shard of several
    """
    source, start = make(settings), time.perf_counter()
    shard, shards = shard_of(settings.shard)
    names, size = source.names, source.chunk
    output = {"format": settings.format, "decimals": settings.decimals, "seed": settings.seed}
    note_begun(settings.out / RECIPE, {**source.recipe, **output, "items": len(names)})
    lines = SharedLines(settings.out / "parts" / f"shard-{shard}-of-{shards}.jsonl")
    mine = [range(at, min(at + size, len(names))) for at in range(0, len(names), size)][shard::shards]
    parts, count = [mine[at : at + TAKEN] for at in range(0, len(mine), TAKEN)], 0
    lines.update()
    total, there = sum(map(len, mine)), sum(names[index] in lines.items for chunk in mine for index in chunk)
    with tqdm(total=total, initial=there, desc="building", unit="item", disable=None) as bar:
        open_source = partial(make, settings) if settings.ray else lambda: source
        for line in spread(partial(builder, open_source, settings, lines), parts, settings.ray):
            lines.update(line)
            bar.update()
            count += 1
        bar.update(total - bar.n)  # what other processes built
    seconds = time.perf_counter() - start
    log.info("%d items in %.1f s, %.2f per second", count, seconds, count / max(seconds, 1e-9))
    if shards == 1:
        return merge_shards(MergeShardsSettings(settings.out))
    merge_command = f"python -m llava_bifrost.build_dataset merge --out {settings.out}"
    log.info("shard %s is done; `%s` when all are", settings.shard, merge_command)
    return None


def builder(
    make: Callable[[], QuestionSource], settings: OutputSettings, lines: SharedLines
) -> Callable[[Iterable[Sequence[range]]], Iterator[dict[str, Any]]]:
    """What builds the chunks that are not in `lines`: it writes their images, and gives their lines."""
    source = make()

    def unfinished(part: Sequence[range]) -> list[range]:
        lines.update()
        return [chunk for chunk in part if any(source.names[index] not in lines.items for index in chunk)]

    def lock_of(part: Sequence[range]) -> Path:
        return lines.path.with_suffix(f".{part[0].start}")

    def build(parts: Iterable[Sequence[range]]) -> Iterator[dict[str, Any]]:
        for part in taken(parts, lambda part: not unfinished(part), lock_of):
            chunks = in_order(source.prepare, unfinished(part), workers=1)  # while networks of `finish` run
            for built in (built for prepared in chunks for built in source.finish(prepared)):
                if built.name in lines.items:
                    continue
                for name, rgb_u8 in {sample.image: sample.rgb_u8 for sample in built.samples}.items():
                    buffer = io.BytesIO()
                    if not name.endswith(".png"):
                        Image.fromarray(rgb_u8).save(buffer, "JPEG", quality=JPEG_QUALITY)
                    write_atomic(settings.out / "images" / name, buffer.getvalue() or encode_png(rgb_u8))
                numbers = settings.format, settings.decimals
                records = [sample.record(*numbers) for sample in built.samples]
                yield {"item": built.name, "records": records, "dropped": list(built.dropped)}

    return build


def merge_shards(settings: MergeShardsSettings) -> dict[str, Any]:
    """Put the shards of several machines together; refuses while some are missing."""
    out = settings.out
    if not (out / RECIPE).is_file():
        raise ValueError(f"{out} holds no data set: there is no {RECIPE}")
    parts = sorted((out / "parts").glob("shard-*-of-*.jsonl"))
    lines = {line["item"]: line for path in parts for line in read_lines(path)}
    expected = read_json(out / RECIPE)["items"]
    if len(lines) < expected:
        there = ", ".join(path.stem for path in parts) or "none"
        raise ValueError(f"{out}: {len(lines)} of {expected} items are built (parts: {there}); run the rest")
    ordered = [lines[item] for item in sorted(lines)]
    records = [record for line in ordered for record in line["records"]]
    for record in records:  # a model that is asked without its image learns nothing
        question, name = record["conversations"][0]["value"], record["id"]
        if not question.startswith(f"{IMAGE}\n") or question.count(IMAGE) != 1:
            raise ValueError(f"record {name}: the question must begin with one {IMAGE}, got {question!r}")
    report = statistics(records, (reason for line in ordered for reason in line["dropped"]), expected)
    body = ",\n".join(json.dumps(record) for record in records)
    write_all_atomic({out / DATASET: f"[\n{body}\n]\n".encode(), out / STATISTICS: json_bytes(report)})
    for leftover in (out / "images").glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    for name, value in report.items():
        line = str(value)
        if isinstance(value, dict):
            shown = [f"{re.sub(' +', ' ', str(key))} {count}" for key, count in list(value.items())[:PRINTED]]
            shown += [f"... ({len(value)} in all)"] if len(value) > PRINTED else []
            line = ", ".join(shown) or "-"
        typer.echo(f"{name:<24}{line}")
    log.info("data set:   %s\nstatistics: %s", out / DATASET, out / STATISTICS)
    if not report["samples"]:
        log.warning("no item gave a sample; see `dropped` above for the reasons")
    return report
