"""What do several candidate places cost a locator? It reads image and prompt once for all of them.

    OMP_NUM_THREADS=1 python -m benchmarks.candidates [--locator FOLDER] [--out FILE]

CPU seconds for 1, 4, 16 and 64 candidates on an image of the examples, the fastest of five runs in turn.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness import RESULTS, Out, best_seconds, write_results
from ldm.files import located
from ldm.settings.cli import run_module, single_app

COUNTS, ROUNDS = (1, 4, 16, 64), 5
IMAGE, SENTENCE = Path("assets/examples/cone/room.png"), "Place the red cube behind the blue cone"


def candidates(
    locator: Annotated[Path, typer.Option(help="folder of a locator")] = Path("assets/tiny/locator"),
    out: Out = RESULTS / "candidates.json",
) -> None:
    """Measure candidates of a locator on the CPU."""
    from ldm.images import read_image
    from llava_bifrost.locator import load_locator

    model, rgb_u8 = load_locator(located(locator), "cpu"), read_image(located(IMAGE)).rgb_u8
    runs = {str(count): partial(model.locate, rgb_u8, SENTENCE, count, anchors={}) for count in COUNTS}
    seconds, rows = best_seconds(runs, ROUNDS), {}
    for count, spent in seconds.items():
        ratio, found = round(spent / seconds["1"], 2), len(runs[count]())
        rows[count] = {"cpu_seconds": round(spent, 4), "times_one": ratio, "found": found}
    write_results(out, {"locator": locator.as_posix(), "sentence": SENTENCE, "candidates": rows})


build_app = single_app(candidates)

if __name__ == "__main__":
    run_module(build_app)
