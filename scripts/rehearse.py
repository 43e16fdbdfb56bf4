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

from benchmarks.harness import RESULTS, write_results
from ldm.files import ROOT, read_json, write_json
from ldm.result import write_result
from ldm.settings.cli import run_module, single_app

log = logging.getLogger(__name__)

EXAMPLE = "assets/examples/tent"
NUMBERS, PAGE = RESULTS / "rehearsal.json", Path("docs/full_size.md")
IMAGE = f"""run_inference.py image --box 0.305,0.159,0.488,0.578 --depth 0.43,0.51 --dtype bf16
 --background {EXAMPLE}/room.png --depth-model MODELS/depth --out MODELS/out.png"""
PAINT = f"""--image {EXAMPLE}/room.png --masks MODELS/mask.png --model MODELS/inpainter --lora MODELS/rca
 --dtype bf16 --steps STEPS --out MODELS/out.png"""
LOCATE = f"""-m llava_bifrost.predict image --image {EXAMPLE}/room.png --dtype bf16
 --instruction "Place the cup on the table\""""
ROWS: dict[str, tuple[str, dict[str, str]]] = {  # name -> folders that it needs, and commands by their rows
    "image": ("compositor depth", {
        "image": f"""{IMAGE} --object {EXAMPLE}/object.png --model MODELS/compositor --speed balanced
 --steps STEPS""",
    }),
    "sam": ("sam depth", {
        "sam": f"{IMAGE} --object {EXAMPLE}/room.png --object-box 0.1,0.2,0.6,0.9 --sam MODELS/sam",
    }),
    "detect": ("grounding_dino depth", {
        "detect": f"{LOCATE} --locator geometric --detector MODELS/grounding_dino --depth-model MODELS/depth",
    }),
    "paint": ("inpainter", {"paint": f'-m inpainting.paint {PAINT} --prompts "a red cube"'}),
    "metrics": ("judges inpainter", {
        "metrics": """-m inpainting.models.text_to_image.test compute
 --config-path configs/inpainting/text_to_image/test/sd_2_inp_rca.yaml output_dir=MODELS/filled
 data.data_dir=MODELS/data pretrained=MODELS/inpainter backbones.clip=MODELS/judges/clip
 backbones.clip_iqa=MODELS/judges/clip backbones.inception=MODELS/judges/inception/model.safetensors
 backbones.squeezenet=MODELS/judges/squeezenet/model.safetensors workers=0 resamples=50""",
    }),
    "kosmos": ("kosmos", {
        "kosmos": """-m inpainting.data.ops annotate-images --model-id MODELS/kosmos
 --image-dir MODELS/data/images --out MODELS/described.json --max-new-tokens 16 --dtype bf16""",
    }),
    "dream": ("llava_next inpainter", {
        "dream": f"""-m inpainting.dream {PAINT} --prompter MODELS/llava_next --adapter MODELS/multimask
 --precision full --longest 16""",
    }),
    "locate": ("llava", {
        "convert": """-m llava_bifrost.model convert --adapter MODELS/adapter --base MODELS/llava
 --out MODELS/locator""",
        "locate": f"{LOCATE} --locator MODELS/locator"})}  # fmt: skip
LEAST = 0.01  # of the CPU seconds of its command: shorter calls are not shown
NOTES = {  # row -> what the first rehearsal found, and what became of it
    "image": "Convolutions are copied to lie channels-last: half of the brackets. "
    "`prepare` hashes the weights for the recipe, once: 6 GB at 1 to 2 a second.",
    "sam": "Was loaded at every call, in single precision: 89 s and 5.2 GiB.",
    "detect": "Gave NaN: PyTorch samples large maps of half precision in the wrong place on a CPU.",
    "paint": "Had PyTorch's attention and convolutions channels-first: 69 s, a step 11.1.",
    "metrics": "CLIP is loaded twice, as its folder stands for that of CLIP-IQA too.",
    "kosmos": "Knew single precision only: 30 s, 9.7 GiB, 6.7 of them its own.",
    "dream": "The writer leaves before the painter comes. The adapter's matrices are float32 (peft).",
    "convert": "One weight is in memory at a time.",
    "locate": "The weights are those of the mapped file: no copy. 576 tokens are the image.",
}
HEAD = """# Commands at full size

Written by `python -m scripts.rehearse`. A row is one run of a command with networks of true size and random
weights (bfloat16 on the disk), {steps} sampling steps, {hardware}. Seconds are CPU seconds, in all with the
start; networks: their type, loading, calls and what a later one takes; parts of a network where they are
called by themselves. Memory: the most that the process held, in brackets what of it was no mapped file, which
the system can drop and read again. All numbers: `benchmarks/results/rehearsal.json`.

| row | CPU s | peak GiB | stages | networks | tokens read; written a second | result |
|---|---:|---:|---|---|---|---|
"""


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
    report: Annotated[Path, typer.Option(help="JSON file of all rows")] = NUMBERS,
    out: Annotated[Path, typer.Option(help="table to write")] = PAGE,
) -> dict[str, Any]:
    """Run documented commands at full size and write what they cost."""
    from scripts import rehearse_models

    if unknown := sorted({*(names or ())} - ROWS.keys()):
        raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    models, chosen = Path(tempfile.mkdtemp(prefix="full_size_", dir=work)), names or [*ROWS]
    rows: dict[str, dict[str, Any]] = read_json(report)["rows"] if report.is_file() else {}
    try:
        write_inputs(models)
        for number, name in enumerate(chosen):
            folders, planned = ROWS[name]
            for folder in folders.split():
                if not (models / folder).is_dir():
                    getattr(rehearse_models, f"make_{folder}")(models / folder)
            for row, command in planned.items():
                rows[row] = run_command(command.replace("STEPS", str(steps)), models)
                log.info("%s: %s", row, rows[row])
                write_results(report, {"steps": steps, "rows": rows}, overwrite=True)  # is kept at once
            needed = {folder for other in chosen[number + 1 :] for folder in ROWS[other][0].split()}
            for folder in () if keep else {*folders.split(), "locator"} - needed:
                shutil.rmtree(models / folder, ignore_errors=True)
    finally:
        if not keep:
            shutil.rmtree(models, ignore_errors=True)
    write_result({out: page_of(read_json(report)).encode()}, True)
    return rows


def page_of(body: dict[str, Any]) -> str:
    """The page, from the numbers."""
    hardware, lines = body["hardware"], []
    text = HEAD.format(steps=body["steps"], hardware=f"{hardware['cpu']}, {hardware['threads']} thread")
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
        lines.append(f"* **{name}**: `{row['command']}`. {NOTES.get(name, '')}".rstrip())
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
