"""What regions and samples cost: `paint` with 1 to 40 regions, in one pass and one region after the other.

    OMP_NUM_THREADS=1 python -m benchmarks.regions [--repeats 2]     (minutes on one core)

CPU seconds of the small trained inpainter, 20 steps, best of `repeats`, in turn. Regions are cells of a grid.
"""

from functools import partial
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import RESULTS, Out, best_seconds, write_results
from ldm.settings.cli import run_module, single_app

REGIONS, SAMPLES, PASSES = (1, 2, 4, 8, 16, 40), (1, 4, 16), 8
PROMPTS = ("cube", "ball", "cone", "torus")


def measure_regions(
    repeats: Annotated[int, typer.Option(help="timed runs of each", min=1)] = 2,
    out: Out = RESULTS / "regions.json",
) -> dict[str, Any]:
    """Measure what regions, passes, speeds and samples cost."""
    from inpainting.models.text_to_image.config import PaintOptions
    from inpainting.models.text_to_image.load import load_inpainter
    from inpainting.models.text_to_image.pipeline import paint
    from ldm.settings.choices import UNET_SPEEDS

    pipe = load_inpainter("assets/tiny/inpainter", device="cpu")
    side, options = pipe.resolution, partial(PaintOptions, steps=20, guidance=5.0, encoding="joint")
    image_u8 = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)

    def cells(count: int) -> list[tuple[np.ndarray, str]]:
        across = int(np.ceil(count**0.5))
        number = np.arange(side) * across // side
        grid = number[:, None] * across + number
        return [(grid == cell, PROMPTS[cell % len(PROMPTS)]) for cell in range(count)]

    run = partial(paint, image_u8, pipe=pipe, options=options(), progress=False)
    works: dict[str, Any] = {f"{count} regions": partial(run, cells(count)) for count in REGIONS}
    works[f"{PASSES} passes"] = lambda: [run([one]) for one in cells(PASSES)]
    for speed in UNET_SPEEDS:
        works[f"{PASSES} regions, {speed}"] = partial(run, cells(PASSES), options=options(speed=speed))
    seconds = best_seconds(works, repeats)
    seconds |= best_seconds({f"{n} samples": partial(run, cells(2), samples=n) for n in SAMPLES}, 1)
    whole = seconds[f"{PASSES} regions"]
    body = {
        "model": "assets/tiny/inpainter", "steps": 20, "pixels": side,
        "cpu_s": {name: round(value, 3) for name, value in seconds.items()},
        "regions_to_one": round(whole / seconds["1 regions"], 3),
        "passes_to_regions": round(seconds[f"{PASSES} passes"] / whole, 2)}  # fmt: skip
    write_results(out, body)
    return body


build_app = single_app(measure_regions)

if __name__ == "__main__":
    run_module(build_app)
