"""The cost of one composite in the published way, at an earlier revision, and here: networks of true size.

    python -m benchmarks.published [--whole]      (25 minutes on one core)

CPU seconds of one thread at 512 px, random weights. The published way (`published_model`) and
the earlier revision have steps of one kind: a few are measured and stand for all; --whole runs the published
50. The others are run whole; "another seed" comes after an image of the same place, of which tokens and
control residuals were kept.
"""

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness import RESULTS, Out, write_results
from benchmarks.size import BEFORE, checked_out, row_in
from ldm.files import ROOT, read_json
from ldm.settings.cli import run_module, single_app

log = logging.getLogger(__name__)

SIZE = "SD-2.1, DINOv2-g, 512 px"
STEPS = 4  # that are measured where all are alike; the first is timed with what comes before it
WORKS = {  # name -> work, steps that run where not all must, steps of the image, speed
    "published, 50 steps": ("published", True, 50, ""),
    "balanced, 20 steps": ("paint", False, 20, "balanced"),
    "earlier revision, 20 steps": ("paint", True, 20, "earlier"),
    "exact, 50 steps": ("paint", False, 50, "exact"),
    "fast, 20 steps": ("paint", False, 20, "fast"),
    "fast, 12 steps": ("paint", False, 12, "fast"),
    "balanced, 20 steps, another seed": ("again", False, 20, "balanced"),
    "decoding": ("decode", False, 0, "kl"),
    "decoding, tiny autoencoder": ("decode", False, 0, "tiny"),
}


def measure_published(
    whole: Annotated[bool, typer.Option(help="run all steps of the published way")] = False,
    only: Annotated[
        str, typer.Option(help="rows whose name contains this; the others of the file stay")
    ] = "",
    out: Out = RESULTS / "published.json",
) -> dict[str, Any]:
    """Measure what a composite costs in the published way and here."""
    code = Path(__file__).with_name("published_process.py").read_text(encoding="utf-8")
    rows: dict[str, dict[str, Any]] = read_json(out)["rows"] if only and out.is_file() else {}
    with checked_out(BEFORE) as before:
        for name, (work, alike, total, speed) in WORKS.items():
            if only not in name:
                continue
            few = STEPS if alike and not (whole and work == "published") else total
            root = before if speed == "earlier" else ROOT
            rows[name] = row_in(root, code, work, str(few), str(total), *([speed] if speed else []))
            log.info("%s: %.1f CPU s, peak %.2f GiB", name, rows[name]["cpu_s"], rows[name]["peak_gib"])
            body = {"earlier_revision": BEFORE, "size": SIZE, "rows": rows}
            first_s = rows["published, 50 steps"]["cpu_s"]  # the first row
            if work in ("published", "paint"):
                rows[name]["times_less_than_published"] = round(first_s / rows[name]["cpu_s"], 2)
            write_results(out, body, overwrite=True)  # a row takes minutes: it is kept at once
    return body


build_app = single_app(measure_published)

if __name__ == "__main__":
    run_module(build_app)
