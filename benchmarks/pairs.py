"""Every object in every background by `dreambooth` on the small compositor, here and at earlier revisions.

    OMP_NUM_THREADS=1 python -m benchmarks.pairs     (an hour on one core)

CPU seconds of the command with its start, in turn; images of 512 pixels.
"""

import logging
import resource
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from benchmarks.harness import RESULTS, Out, write_results
from benchmarks.size import BEFORE, checked_out
from ldm.files import ROOT
from ldm.images import read_image, write_mask, write_png
from ldm.settings.cli import run_module, single_app

log = logging.getLogger(__name__)

ALONE = "9eca4fd944b930061a1495e5a80f7deb2f355aa0"  # every job on its own, every file read anew
EXAMPLES, SIDE = ("cone", "dome", "pyramid", "tent"), 512
TURNS = {10: 3, 30: 1}  # number of objects, and of backgrounds -> how often they are measured
MODELS = "--model assets/tiny/compositor --depth-model assets/tiny/depth"


def write_pairs(folder: Path, count: int) -> None:
    """So many objects and backgrounds: those of the examples, with other colours and turned."""
    rng = np.random.default_rng(0)
    for number in range(count):
        place = ROOT / "assets" / "examples" / EXAMPLES[number % len(EXAMPLES)]
        colours, step = rng.uniform(0.5, 1, 3), 1 if number % 8 < 4 else -1
        room, thing = (read_image(place / name) for name in ("room.png", "object.png"))
        for image, name in ((room, f"backgrounds/{number}_GT.png"), (thing, f"objects/{number}/0.png")):
            rgb_u8 = (image.rgb_u8 * colours).astype(np.uint8)
            alpha_u8 = np.full(image.size, 255, np.uint8) if image.alpha_u8 is None else image.alpha_u8
            rgba_u8 = cv2.resize(np.dstack([rgb_u8, alpha_u8])[:, ::step].copy(), (SIDE, SIDE))
            alpha = None if image.alpha_u8 is None else rgba_u8[..., 3]
            write_png(folder / name, rgba_u8[..., :3], alpha_u8=alpha)
        mask, (left, top) = np.zeros((SIDE, SIDE), bool), rng.integers(SIDE // 8, SIDE // 2, 2)
        mask[top : top + SIDE * 3 // 8, left : left + SIDE // 3] = True
        write_mask(folder / f"backgrounds/{number}_mask.png", mask)


def measure_pairs(out: Out = RESULTS / "pairs.json") -> dict[str, Any]:
    """Measure many composites here and at earlier revisions."""
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    body = dict[str, Any]()
    with ExitStack() as stack:
        roots = {name[:8]: stack.enter_context(checked_out(name)) for name in (BEFORE, ALONE)}
        roots["here"] = ROOT
        folder = Path(stack.enter_context(TemporaryDirectory()))
        for side, turn in [(side, turn) for side, turns in TURNS.items() for turn in range(turns)]:
            write_pairs(data := folder / f"data{side}", side)
            given = f"--objects {data / 'objects'} --backgrounds {data / 'backgrounds'} {MODELS} --out"
            command = [sys.executable, "run_inference.py", "dreambooth", *given.split()]
            for name, root in roots.items():
                before_s = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
                argv = [*command, str(folder / f"{side}-{turn}-{name}")]
                subprocess.run(argv, cwd=root, check=True, capture_output=True)
                used_s = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before_s
                rows[f"{side} x {side}"][name].append(round(used_s, 2))
                log.info("%d x %d, %s: %.1f CPU s", side, side, name, used_s)
            spent = {grid: {n: round(median(row[n]), 2) for n in row} for grid, row in rows.items()}
            ratios = {g: {n: round(each[n] / each["here"], 2) for n in each} for g, each in spent.items()}
            body = {"cpu_s": spent, "times_here": ratios, "measured": rows}
            write_results(out, body, overwrite=True)
    return body


build_app = single_app(measure_pairs)

if __name__ == "__main__":
    run_module(build_app)
