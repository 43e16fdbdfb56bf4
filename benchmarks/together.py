"""One process and two at once, for commands whose processes divide their items: CPU and wall-clock seconds.

    OMP_NUM_THREADS=1 python -m benchmarks.together [--out FILE]

What they leave is compared, as in `benchmarks.campaign`. Files hold 16 scenes here: there are several.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.campaign import Campaign
from benchmarks.harness import RESULTS, Out, write_results
from ldm.settings.cli import run_module, single_app

ROOM, BOX = Path("assets/examples/cone/room.png"), [0.3, 0.3, 0.7, 0.8]
VIEWS = "--size 64,64 --reference-size 16,16 --no-smooth-edges"
COMMANDS = {  # the first renders the scenes of the last
    "scenes": ("datasets.scenes.__main__", f"render --out {{out}} --count 128 {VIEWS}"),
    "batch": ("run_inference", "batch {data}/jobs.jsonl --out {out}"),
    "depth": ("ldm.precompute_depth", "{data}/images {out} --model assets/tiny/depth --batch 4 --device cpu"),
    "build": ("llava_bifrost.build_dataset.__main__", "scenes --scenes {data}/../scenes/out --out {out}"),
}


def run_once(campaign: Campaign, processes: int) -> dict[str, Any]:
    """CPU seconds of every process, and seconds until the last of them ended."""
    campaign.prepare()
    started, children = time.monotonic(), [campaign.start() for _ in range(processes)]
    used = [os.wait4(child, 0)[2] for child in children]
    wall_s = round(time.monotonic() - started, 2)
    campaign.compare(f"{processes} at once", campaign.place)
    if campaign.findings:
        raise ValueError(f"{campaign.job['argv']}: {campaign.findings[0]}")
    return {"cpu_s": [round(usage.ru_utime + usage.ru_stime, 2) for usage in used], "wall_s": wall_s}


def measure_together(out: Out = RESULTS / "together.json") -> dict[str, Any]:
    """Three times in turn one process and two at once, over 24 small composites, 192 images, 128 scenes."""
    from datasets.scenes import store

    rows: dict[str, Any] = {}
    store.SCENES_PER_SHARD = 16
    with tempfile.TemporaryDirectory() as folder:
        data, names = Path(folder, "data"), {"object": "object.png", "background_depth": "room_depth.png"}
        job = {key: str(ROOM.with_name(name)) for key, name in names.items()}
        job["background"] = str(ROOM)
        lines = [{**job, "model": "assets/tiny/compositor", "box": BOX, "seed": seed} for seed in range(24)]
        noise_u8 = np.random.default_rng(0).integers(0, 256, (192, 72, 96, 3), np.uint8)
        (data / "images").mkdir(parents=True)
        (data / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
        for number, image_u8 in enumerate(noise_u8):
            Image.fromarray(image_u8).save(data / "images" / f"{number}.png")
        for name, (module, argv) in COMMANDS.items():
            campaign = Campaign(Path(folder, name), data, {"app": f"{module}:build_app", "argv": argv})
            campaign.measure()  # imports, and shows what one process leaves
            both = [(run_once(campaign, 1), run_once(campaign, 2)) for _ in range(3)]
            turns = list(zip(*both, strict=True))
            rows[name] = {
                "median_cpu_s": [median(max(run["cpu_s"]) for run in runs) for runs in turns],
                "median_wall_s": [median(run["wall_s"] for run in runs) for runs in turns],
            } | dict(zip(("alone", "two"), turns, strict=True))
    write_results(out, {"commands": rows})
    return rows


build_app = single_app(measure_together)

if __name__ == "__main__":
    run_module(build_app)
