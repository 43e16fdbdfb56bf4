"""What a command costs before its work begins, and a small composite in all: CPU seconds, medians.

    OMP_NUM_THREADS=1 python -m benchmarks.startup [--repeats 5]     (two minutes on one core)

Every run is a process of its own, after one that is not counted. `import torch` alone tells how busy the
machine was.
"""

import json
import logging
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.harness import RESULTS, Out, write_results
from ldm.files import ROOT
from ldm.settings.cli import run_module, single_app

log = logging.getLogger(__name__)

SCENE, BOX = "assets/examples/cone", "0.305,0.159,0.488,0.578"
IMAGES = ["--background", f"{SCENE}/room.png", "--object", f"{SCENE}/object.png"]
DEPTH = ["--background-depth", f"{SCENE}/room_depth.png"]
# Commands, and for each options that name an image which is not there.
COMMANDS = {
    "run_inference.py image": ["--background", "no.png", "--object", f"{SCENE}/object.png", "--box", BOX],
    "run_inference.py job": ["no.yaml"],
    "-m inpainting.paint": ["--image", "no.png", "--masks", "no.png", "--prompts", "a cube"],
    "-m inpainting.dream": ["--image", "no.png", "--masks", "no.png"],
    "-m llava_bifrost.predict image": ["--image", "no.png", "--instruction", "Place the cup on the table"],
}
IN_PROCESS = """
import json, sys, time
from pathlib import Path
from compose import ComposeSettings, compose, load_models
background, thing, depth, *box = sys.argv[1:]
rows = {}
for name, given in (("depth given", {"background_depth": Path(depth)}), ("depth estimated", {})):
    files = {"background": Path(background), "object": Path(thing), **given}
    settings = ComposeSettings(**files, box=tuple(map(float, box)))
    models = load_models(settings)
    compose(settings, models, progress=False)
    rows[name] = []
    for _ in range(5):
        started = time.process_time()
        compose(settings, models, progress=False)
        rows[name].append(time.process_time() - started)
print(json.dumps(rows))
"""


def cpu_seconds(words: list[str], code: int) -> float:
    """Those of one process of this Python; ValueError where it ends otherwise than expected."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != code:
        raise ValueError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_startup(
    repeats: Annotated[int, typer.Option(help="runs of each, in turn, after one", min=1)] = 5,
    out: Out = RESULTS / "startup.json",
) -> dict[str, Any]:
    """Measure what commands cost before their work begins."""
    with TemporaryDirectory() as folder:
        image = ["run_inference.py", "image", *IMAGES, "--box", BOX, "--out", str(Path(folder) / "out.png")]
        image.append("--overwrite")
        runs = {"import torch": (["-c", "import torch"], 0), "composite, depth given": ([*image, *DEPTH], 0),
                "composite, depth estimated": (image, 0)}  # fmt: skip
        for command, missing in COMMANDS.items():
            kinds = {"--help": (["--help"], 0), "a typo": (["--stepz", "3"], 2), "no image": (missing, 2)}
            for kind, (words, code) in kinds.items():
                runs[f"{command}, {kind}"] = ([*command.split(), *words], code)
        spent: dict[str, list[float]] = {name: [] for name in runs}
        for name in [*runs] * (repeats + 1):
            spent[name].append(cpu_seconds(*runs[name]))
            log.info("%s: %.2f CPU s", name, spent[name][-1])
    rows = {name: round(median(values[1:]), 2) for name, values in spent.items()}
    words = [IMAGES[1], IMAGES[3], DEPTH[1], *BOX.split(",")]
    inside = subprocess.run([sys.executable, "-c", IN_PROCESS, *words], cwd=ROOT, capture_output=True,
                            text=True, check=True)  # fmt: skip
    for name, values in json.loads(inside.stdout.splitlines()[-1]).items():
        rows[f"compose in a running process, {name}"] = round(median(values), 3)
    body = {"median_cpu_s": rows, "repeats": repeats}
    write_results(out, body, overwrite=True)
    return body


build_app = single_app(measure_startup)

if __name__ == "__main__":
    run_module(build_app)
