"""What the benchmarks share: rows from processes of their own, the report with hardware."""

import io
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm.result import write_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

RESULTS = Path("benchmarks/results")
Out = Annotated[Path, typer.Option(help="JSON file to write", metavar="PATH")]


def photographs() -> Path:
    """The folder of the test data, of the environment."""
    if "BIFROST_TEST_DATA" not in os.environ:
        raise ValueError("the photographs are test data: set BIFROST_TEST_DATA")
    return Path(os.environ["BIFROST_TEST_DATA"]) / "data"


def fraction(values: Sequence[bool]) -> dict[str, float]:
    """How many of how many, with Wilson's 95 % interval."""
    from scipy.stats import binomtest

    found = binomtest(sum(values), len(values))
    low, high = found.proportion_ci(method="wilson")
    numbers = {"mean": found.statistic, "low": low, "high": high}
    return {"n": len(values), **{key: round(float(value), 3) for key, value in numbers.items()}}


def row_of_process(measure: Callable[..., dict[str, Any]], *values: Any) -> dict[str, Any]:
    """The row of `measure` in a process of its own, so that its peak memory is its own. Or `failed`."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            row = pool.submit(measure, *values).result()
        except BrokenProcessPool:  # the system ends a process that takes too much memory
            row = {"failed": "out of memory"}
        except RuntimeError as error:
            row = {"failed": "out of memory" if "out of memory" in str(error).lower() else str(error)[:200]}
    log.info("%s", row)
    return row


def short_json(value: Any, indent: str = "\n") -> str:
    """JSON text; a dict or list of plain values, and one that fits 110 characters, stands on one line."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    text, inner = json.dumps(value), indent + " "
    if len(indent + text) <= 111 or not any(isinstance(item, (dict, list)) and item for item in items):
        return text
    keys = [f"{json.dumps(key)}: " for key in value] if isinstance(value, dict) else [""] * len(items)
    lines = (key + short_json(item, inner) for key, item in zip(keys, items, strict=True))
    return text[0] + inner + f",{inner}".join(lines) + indent + text[-1]


def write_results(out: Path, body: Mapping[str, Any], overwrite: bool = False) -> None:
    """Write the numbers with the hardware that they were measured on, as `write_result` does; log them."""
    from ldm.device import describe_hardware

    text = short_json(json.loads(json.dumps({"hardware": describe_hardware(), **body})))  # of lists
    write_result({out: f"{text}\n".encode()}, overwrite)
    log.info("%s", text)


def figure_png(figure: "Figure") -> bytes:
    """The figure on white, without the version of the library in the file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def write_figure(out: Path, figure: "Figure") -> None:
    """A PNG beside the results."""
    write_result({out.with_suffix(".png"): figure_png(figure)}, overwrite=True)
