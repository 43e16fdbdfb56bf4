"""What the evaluations of the small networks share: means with intervals over scenes, table cells, sheets."""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.files import json_bytes
from ldm.metrics.numbers import percentile_interval
from ldm.result import write_result

RESAMPLES = 1000
Record = dict[str, Any]  # what was measured of one mask: `scene`, and values by name


def scene_interval(
    records: Sequence[Record], names: Sequence[str], statistic: Callable[[np.ndarray], float]
) -> dict[str, float]:
    """A statistic of (count, sums of the named values) with its 95 % interval over whole scenes."""
    scenes = {scene: row for row, scene in enumerate(dict.fromkeys(record["scene"] for record in records))}
    sums = np.zeros((len(scenes), 1 + len(names)))
    for record in records:
        sums[scenes[record["scene"]]] += (1, *(record[name] for name in names))
    interval = percentile_interval(lambda rows: statistic(sums[rows].sum(0)), len(sums), resamples=RESAMPLES)
    values = zip(("mean", "low", "high"), (statistic(sums.sum(0)), *interval), strict=True)
    return {name: round(float(value), 4) for name, value in values}


def scene_mean(records: Sequence[Record], measure: str) -> dict[str, float]:
    return scene_interval(records, (measure,), lambda sums: sums[1] / sums[0])


def cell(number: Mapping[str, float]) -> str:
    """A mean, with its interval where there is one."""
    interval = f" [{number['low']:.3f} {number['high']:.3f}]" if "low" in number else ""
    return f"{number['mean']:.3f}{interval}"


def table_lines(
    title: str, rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str], widths: tuple[int, int]
) -> list[str]:
    """Lines of a table: title and columns, then the cells of each row. widths: the first and the others."""
    first, width = widths
    lines = [f"{title:<{first}}" + "".join(f"{column:>{width}}" for column in columns)]
    for name, numbers in rows.items():
        lines.append(f"{name:<{first}}" + "".join(f"{cell(numbers[column]):>{width}}" for column in columns))
    return lines


def alternating(counts: Sequence[int], *, descending: bool = False) -> list[int]:
    """Order of cases in which every count of masks comes in turn."""
    sign = -1 if descending else 1
    return sorted(range(len(counts)), key=lambda i: (counts[:i].count(counts[i]), sign * counts[i]))


def write_evaluation(out: Path, result: Any, lines: Sequence[str], sheet_u8: np.ndarray) -> None:
    """Numbers as `out` (JSON), the lines of a table and a sheet (h, w, 3) beside it as .txt and .png."""
    sheet, text = io.BytesIO(), "\n".join(lines)
    Image.fromarray(sheet_u8).save(sheet, "PNG", optimize=True)
    texts = {".json": json_bytes(result), ".txt": (text + "\n").encode(), ".png": sheet.getvalue()}
    write_result({out.with_suffix(suffix): data for suffix, data in texts.items()})
    logging.getLogger(__name__).info("%s", text)
