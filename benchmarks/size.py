"""Large inputs against an earlier revision, in pairs: a background of 8000 x 6000, long files of jobs.

    OMP_NUM_THREADS=1 python -m benchmarks.size [--pairs 3] [--out FILE]

Every measurement is a process of its own: CPU seconds, and the most memory that it held. The reading of files
and the loading of networks do not count. Jobs count up to the first composite, with and without imports; the
earlier revision reads a short file of jobs, as it takes as long for every line.
"""

import json
import logging
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.harness import RESULTS, Out, row_of_process, write_results
from benchmarks.revision import checked_out
from ldm.files import ROOT
from ldm.settings.cli import run_module, single_app

log = logging.getLogger(__name__)

BEFORE = "8f05625f09d1ae8e2b2ea4dfd9883812ddba6dfb"  # version 0.1.0
SIZE = (6000, 8000)  # (h, w)
JOBS = {"before": (100,), "now": (100, 5_000, 100_000)}
PROCESS = Path(__file__).with_name("size_process.py")


def write_inputs(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Files of every measurement -> side -> measurement -> arguments of its process."""
    import numpy as np

    from ldm.decode import LoadedImage
    from ldm.images import encode_image, read_image, resize

    room_u8 = resize(read_image(ROOT / "assets/examples/tent/room.png").rgb_u8, SIZE)
    room_u8 -= np.minimum(room_u8, np.random.default_rng(0).integers(0, 12, (*SIZE, 1), dtype=np.uint8))
    background = folder / "background.jpg"
    background.write_bytes(encode_image(LoadedImage(room_u8), ".jpg"))
    example = "assets/examples/tent/"
    job = {"background": f"{example}room.png", "object": f"{example}object.png", "box": [0.2, 0.2, 0.5, 0.6]}
    works: dict[str, dict[str, list[str]]] = {}
    for side, counts in JOBS.items():
        works[side] = {"8000 x 6000": ["image", str(background)]}
        for count in counts:
            path = folder / f"{count}.jsonl"
            path.write_text(
                "\n".join(json.dumps({**job, "name": f"j{i}", "depth": [0.4]}) for i in range(count))
            )
            works[side][f"{count} jobs"] = ["jobs", str(path), str(folder / "out")]
    return works


def measure_size(
    pairs: Annotated[int, typer.Option(help="how often each is measured, in turn", min=1)] = 3,
    out: Out = RESULTS / "size.json",
) -> dict[str, Any]:
    """Measure large inputs here and at an earlier revision."""
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {side: defaultdict(list) for side in JOBS}
    with checked_out(BEFORE) as before, TemporaryDirectory() as folder:
        works = row_of_process(write_inputs, Path(folder))  # what this process holds would count as theirs
        for side, root in [("before", before), ("now", ROOT)] * pairs:
            for name, arguments in works[side].items():
                command = [sys.executable, "-c", PROCESS.read_text(encoding="utf-8"), *arguments]
                done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
                if done.returncode:
                    raise ValueError(f"{name} of {side} failed: {done.stderr.strip().splitlines()[-1]}")
                rows[side][name].append(json.loads(done.stdout.splitlines()[-1]))
                log.info("%s, %s: %s", name, side, rows[side][name][-1])
    ratios = {
        name: round(
            median(b["cpu_s"] / a["cpu_s"] for a, b in zip(rows["before"][name], found, strict=True)), 3
        )
        for name, found in rows["now"].items()
        if name in rows["before"]
    }
    body = {"before_is": BEFORE, "cpu_now_over_before": ratios, **rows}
    write_results(out, body)
    return body


build_app = single_app(measure_size)

if __name__ == "__main__":
    run_module(build_app)
