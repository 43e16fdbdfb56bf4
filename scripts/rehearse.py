"""Run documented commands once with networks of true size and random weights; write docs/full_size.md.

    python -m scripts.rehearse [NAME ...] [--work FOLDER] [--steps 4] [--keep]

The folders are written in bfloat16, tensor by tensor, and deleted after their commands. A command runs in a
process of its own. NAME: image, sam, detect, paint, metrics, kosmos (8 GB of disk), dream (20), locate (30);
the last two want 18 GB of memory. Rows of earlier runs stay.
"""

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from omegaconf import OmegaConf

from benchmarks.harness import RESULTS, write_results
from ldm.files import ROOT, read_json, write_json
from ldm.result import write_result
from ldm.settings.cli import run_module, single_app

log = logging.getLogger(__name__)

NUMBERS, PAGE = RESULTS / "rehearsal.json", Path("docs/full_size.md")
PLAN = Path(__file__).with_suffix(".yaml")
LEAST = 0.01  # of the CPU seconds of its command: shorter calls are not shown


def read_plan() -> Any:
    """Rows with their networks and commands, notes, and the head of the page."""
    return OmegaConf.to_container(OmegaConf.load(PLAN), resolve=True)


def write_inputs(models: Path) -> None:
    """A mask, and two test paintings with a region each and their filled images."""
    import numpy as np

    from ldm.images import read_image, resize, write_mask, write_png

    mask = np.zeros((384, 512), bool)  # the size of the rooms
    mask[120:280, 130:330] = True
    write_mask(models / "mask.png", mask)
    for number, room in enumerate(sorted((ROOT / "assets/examples").glob("*/room.png"))[:2]):
        stem, rgb_u8 = f"test_{number}", read_image(room).rgb_u8
        for path in (f"data/images/test/{stem}.png", f"data/entities/{stem}/mask_0.png"):
            (models / path).parent.mkdir(parents=True, exist_ok=True)
            write_png(models / path, rgb_u8)
        (models / "filled").mkdir(exist_ok=True)
        write_png(models / f"filled/{stem}.png", resize(rgb_u8, (512, 512)))  # as the model fills it
        (models / "data/masks" / stem).mkdir(parents=True)
        write_mask(models / "data/masks" / stem / "mask_0.png", mask)
        entry = {"concept": "red cube", "noun_chunk_root": "cube", "caption": "a red cube"}
        write_json(models / "data/entities" / stem / "annotations.json", {"mask_0": entry})


def rehearse(
    names: Annotated[list[str] | None, typer.Argument(help="rows to run; default: all")] = None,
    work: Annotated[Path | None, typer.Option(help="folder for the models; default: a temporary one")] = None,
    steps: Annotated[int, typer.Option(help="sampling steps", min=1)] = 4,
    keep: Annotated[bool, typer.Option(help="keep the models")] = False,
) -> dict[str, Any]:
    """Run documented commands at full size and write what they cost."""
    from scripts import rehearse_models

    planned = read_plan()["rows"]
    if unknown := sorted({*(names or ())} - planned.keys()):
        raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(planned)}")
    models, chosen = Path(tempfile.mkdtemp(prefix="full_size_", dir=work)), names or [*planned]
    rows: dict[str, dict[str, Any]] = read_json(NUMBERS)["rows"] if NUMBERS.is_file() else {}
    try:
        write_inputs(models)
        for number, name in enumerate(chosen):
            folders = planned[name]["networks"].split()
            for folder in folders:
                if not (models / folder).is_dir():
                    getattr(rehearse_models, f"make_{folder}")(models / folder)
            for row, command in planned[name]["commands"].items():
                rows[row] = run_command(command.replace("STEPS", str(steps)), models)
                log.info("%s: %s", row, rows[row])
                write_results(NUMBERS, {"steps": steps, "rows": rows}, overwrite=True)  # is kept at once
            needed = " ".join(planned[other]["networks"] for other in chosen[number + 1 :]).split()
            for folder in () if keep else {*folders, "locator"}.difference(needed):
                shutil.rmtree(models / folder, ignore_errors=True)
    finally:
        if not keep:
            shutil.rmtree(models, ignore_errors=True)
    write_result({PAGE: page_of(read_json(NUMBERS)).encode()}, True)
    return rows


def page_of(body: dict[str, Any]) -> str:
    """The page, from the numbers."""
    hardware, lines, plan = body["hardware"], [], read_plan()
    machine = f"{hardware['cpu']}, {hardware['threads']} thread"
    text = plan["head"].format(steps=body["steps"], hardware=machine)
    for name, row in body["rows"].items():
        networks, speeds = [], []
        for network, seen in row["networks"].items():
            loads, calls = seen["load_s"], seen["calls"]
            parts = [f"{network} {'/'.join(seen['types'])}"]
            parts += [f"loads {len(loads)} x {sum(loads) / len(loads):.1f}"] if loads else []
            if seen["calls_s"] >= LEAST * row["cpu_s"]:
                parts.append(f"{calls} x {seen['later_s'] or seen['first_s']:.3g}")
            networks += [", ".join(parts)] if len(parts) > 1 else []
            if seen["tokens"][1:] == [1]:  # it writes
                speeds.append(f"{seen['tokens'][0]} in {seen['first_s']:.0f} s; {1 / seen['later_s']:.2f}")
        stages = ", ".join(f"{stage} {spent:.1f}" for stage, spent in row["stages_s"].items())
        cells = [name, f"{row['cpu_s']:.0f}", f"{row['peak_gib']:.1f} ({row['own_gib']:.1f})", stages]
        cells += ["; ".join(networks), ", ".join(speeds), row["result"]]
        text += f"| {' | '.join(cells)} |\n"
        lines.append(f"* **{name}**: `{row['command']}`. {plan['notes'].get(name, '')}".rstrip())
    return text + "\n" + "\n".join(lines) + "\n"


def run_command(command: str, models: Path) -> dict[str, Any]:
    """Run a command; what its networks did, CPU seconds, peak memory. What it says where it fails."""
    report, own = models / "report.json", 0
    report.unlink(missing_ok=True)
    words = shlex.split(command.replace("MODELS", str(models)))
    full = [sys.executable, "-m", "scripts.rehearse_process", str(report), *words]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(full, cwd=ROOT, stdout=said, stderr=said)  # noqa: S603
        while not (done := os.wait4(process.pid, os.WNOHANG))[0]:  # resources of this process alone
            place = Path(f"/proc/{process.pid}/status")  # of Linux
            held = place.read_text().partition("RssAnon:")[2].split() if place.is_file() else []
            own = max(own, int(held[0]) if held else 0)
            time.sleep(0.1)
        _, status, spent = done
        said.seek(0)
        lines = said.read().strip().splitlines()
    watched = json.loads(report.read_text()) if report.is_file() else {"networks": {}, "stages_s": {}}
    return {
        "command": " ".join(command.split()).replace("MODELS", "models"),
        "cpu_s": round(spent.ru_utime + spent.ru_stime, 1), "peak_gib": round(spent.ru_maxrss / 2**20, 2),
        "own_gib": round(own / 2**20, 2), **watched,
        "result": (lines or ["failed"])[-1] if status else "done"}  # fmt: skip


build_app = single_app(rehearse, bare=False)

if __name__ == "__main__":
    run_module(build_app)
