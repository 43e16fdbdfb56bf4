"""Bulk work at size: the CPU seconds of a Ray cluster, 200,000 examples in tar shards, lists of the papers.

    OMP_NUM_THREADS=1 python -m benchmarks.scale ray    # needs ray
    OMP_NUM_THREADS=1 python -m benchmarks.scale tars
    OMP_NUM_THREADS=1 python -m benchmarks.scale lists

All inputs are fabricated. `ray` counts the CPU seconds of all processes, those of the cluster too; the first
composites are the start, which is stated apart.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import typer

from benchmarks.harness import RESULTS, Out, row_of_process, write_results
from datasets.base import Mixture
from datasets.sources.registry import DatasetsConfig, open_source
from inpainting.data.paintings import image_map
from ldm.files import ROOT, read_json
from ldm.images import write_depth, write_png
from ldm.settings.cli import new_app, run_module
from ldm.settings.config import load_config

FIRST, COMPOSITES, ADDRESS = 4, 204, "127.0.0.1:6399"
JOB = {"background": "room.png", "background_depth": "room_depth.png", "object": "object.png"}
JOB |= {"box": [0.3, 0.3, 0.7, 0.8], "steps": 8}  # type: ignore[dict-item]
EXAMPLES, BLOCKS, ORIGINALS = 200_000, 10, 100
LISTS = {"lvis": 100_170, "sam": 178_976, "paintings": 116_475}  # images that the papers use
LVIS_OBJECTS = 1_270_141  # of LVIS v1 for training
MIB = 2**20


def spent_below() -> dict[tuple[bool, int], float]:
    """CPU seconds of every process below this one. (True, id): of a command or what does its items."""
    spent = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            works = "_Worker" in words or "run_inference.py" in words or "datasets.tars" in words
            spent[works, process.pid] = sum(process.cpu_times()[:2])
    return spent


def run_all(*command: str) -> tuple[float, float, float]:
    """Runs a command. CPU seconds of its processes, those of the cluster meanwhile, and how long it took."""
    before, since = spent_below(), time.monotonic()
    last = dict(before)
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.DEVNULL) as running:
        while running.poll() is None:
            last |= spent_below()
            time.sleep(0.2)
    if running.returncode:
        raise ValueError(f"{' '.join(command)} ended with code {running.returncode}")
    sums = [sum(last[key] - before.get(key, 0) for key in last if key[0] is works) for works in (True, False)]
    return round(sums[0], 1), round(sums[1], 1), round(time.monotonic() - since, 1)


def measure_ray(out: Out = RESULTS / "scale_ray.json") -> dict[str, Any]:
    """200 small composites by one process, and by two nodes of a cluster with one CPU each."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # of a cluster on this machine
    rows: dict[str, list[tuple[float, float, float]]] = {"plain": [], "ray": []}
    with TemporaryDirectory() as folder, ExitStack() as nodes:
        for where in (f"--head --include-dashboard=false --port {ADDRESS[-4:]}", f"--address {ADDRESS}"):
            words = f"-m ray.scripts.scripts start --num-cpus 1 --block {where}".split()
            node = nodes.enter_context(subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL))
            nodes.callback(node.terminate)
            time.sleep(40)
        idle = run_all("-c", "import time; time.sleep(60)")
        for count in (FIRST, COMPOSITES):
            jobs = Path(folder, f"{count}.jsonl")
            jobs.write_text("".join(json.dumps({**JOB, "seed": seed}) + "\n" for seed in range(count)))
            argv = ["run_inference.py", "batch", str(jobs), "--root", "assets/examples/cone"]
            for side, more in {"plain": [], "ray": ["--ray", ADDRESS]}.items():
                rows[side].append(run_all(*argv, "--out", f"{folder}/{side}{count}", *more))
        made, other = Path(folder, f"plain{COMPOSITES}").glob("*.png"), Path(folder, f"ray{COMPOSITES}")
        equal = sum(path.read_bytes() == (other / path.name).read_bytes() for path in made)
    keys = ("cpu_seconds", "cluster_cpu_seconds", "seconds")
    body: dict[str, Any] = {"composites": [FIRST, COMPOSITES], "equal": equal}
    body["idle_cluster"] = dict(zip(keys, idle, strict=True))
    for side, measured in rows.items():
        body[side] = [dict(zip(keys, row, strict=True)) for row in measured]
    # The daemons of a cluster that does nothing are no part of the overhead.
    busy = [work + cluster - idle[1] / idle[2] * seconds for work, cluster, seconds in rows["ray"]]
    plain = [row[0] for row in rows["plain"]]
    body["overhead"] = round((busy[1] - busy[0]) / (plain[1] - plain[0]) - 1, 3)
    body["start_cpu_seconds"] = round(busy[0] - plain[0], 1)
    write_results(out, body)
    return body


def fabricated_source(name: str, folder: str, *more: str) -> Any:
    """A source of fabricated images."""
    places = [f"{name}.images={folder}/images", f"{name}.depth={folder}/depth", *more]
    return open_source(load_config(DatasetsConfig, ROOT / "configs/datasets.yaml", places), name)


def fabricate_images(folder: str, count: int) -> None:
    """SA-1B in small: few different images, annotations and depth maps, linked under many names."""
    rng, origin = np.random.default_rng(0), Path(folder, "origin")
    for number in range(ORIGINALS):
        write_png(origin / f"{number}.jpg", rng.integers(0, 255, (96, 128, 3), np.uint8))
        write_depth(origin / f"{number}.png", rng.random((24, 32), np.float32))
        shape = [[30.0 + number % 7, 20.0, 90.0, 24.0, 92.0, 80.0, 33.0, 76.0]]
        segments = [{"area": 3000.0, "segmentation": shape, "id": n} for n in range(3)]
        size = {"height": 96, "width": 128}
        (origin / f"{number}.json").write_text(json.dumps({"image": size, "annotations": segments}))
    for number in range(count):
        for ending in (".jpg", ".json", ".png"):
            tree = Path(folder, "depth" if ending == ".png" else "images", f"{number // 10_000:06d}")
            tree.mkdir(parents=True, exist_ok=True)
            os.link(origin / f"{number % ORIGINALS}{ending}", tree / f"sa_{number}{ending}")


def measure_tars(out: Out = RESULTS / "scale_tars.json", examples: int = EXAMPLES) -> dict[str, Any]:
    """Write and read fabricated examples: CPU milliseconds an example, and memory, as the run goes on."""
    with TemporaryDirectory() as folder:
        fabricate_images(folder, examples)
        places = [f"sam.images={folder}/images", f"sam.depth={folder}/depth", "sam.min_pixels=10"]
        written, *_ = run_all("-m", "datasets.tars", "--source", "sam", "--out", f"{folder}/tars", *places)
        start = time.process_time()
        places.append(f"tars.sam={folder}/tars")
        source = fabricated_source("sam", folder, *places[2:])
        body: dict[str, Any] = {"examples": len(source), "write_cpu_ms": round(1000 * written / examples, 2)}
        body |= {"open_cpu_s": round(time.process_time() - start, 2), "blocks": []}
        order = Mixture([len(source)], [1], 0)
        for block in np.array_split(np.arange(examples), BLOCKS):
            start = time.process_time()
            for k in block.tolist():
                source.example(order(k)[1], np.random.default_rng((0, k)))
            spent = 1000 * (time.process_time() - start) / len(block)
            memory = round(psutil.Process().memory_info().rss / MIB, 1)
            body["blocks"].append({"cpu_ms": round(spent, 2), "memory_mib": memory})
    write_results(out, body)
    return body


def lvis_text() -> Iterator[str]:
    """lvis_v1_train.json in pieces; polygons of 8 to 80 points, which give the size of the real file."""
    rng, images = np.random.default_rng(0), LISTS["lvis"]
    points = rng.integers(8, 80, 2000).tolist()
    shapes = [json.dumps([rng.uniform(0, 480, 2 * n).round(2).tolist()]) for n in points]
    url, size = "http://images.cocodataset.org/train2017/{:012d}.jpg", {"height": 480, "width": 640}
    records = (json.dumps({"id": i, "coco_url": url.format(i), **size}) for i in range(images))
    yield '{"images": [' + ", ".join(records) + '], "annotations": ['
    for n in range(LVIS_OBJECTS):
        more = {"bbox": [1.0, 2.0, 30.5, 40.25], "category_id": 7, "area": round(rng.gamma(0.5, 12000), 2)}
        yield (", " if n else "") + json.dumps({"id": n, "image_id": n % images, **more})[:-1]
        yield f', "segmentation": {shapes[n % len(shapes)]}}}'
    yield "]}"


def read_list(name: str, folder: str) -> dict[str, Any]:
    """CPU seconds and most memory of this process, which reads a list."""
    if name == "paintings":
        items: Any = image_map(Path(folder, "images"))
        read_json(Path(folder, "annotations.json"))
    else:
        items = fabricated_source(name, folder, f"lvis.annotations={folder}/lvis.json")
    gib = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB, 2)  # Linux counts KiB
    return {"items": len(items), "cpu_seconds": round(time.process_time(), 1), "gib": gib}


def measure_lists(out: Out = RESULTS / "scale_lists.json") -> dict[str, Any]:
    """Read fabricated lists at the sizes of the papers, each in a process of its own."""
    entity = {"startend": [0, 12], "bboxes": [[0.1, 0.2, 0.5, 0.8]] * 2}
    entry = {"description": "a woman sits under a tree " * 8}
    entry["entities"] = {f"a woman {n}": entity for n in range(5)}  # type: ignore[assignment]
    rows: dict[str, Any] = {}
    for name, images in LISTS.items():
        with TemporaryDirectory() as folder:
            fabricate_images(folder, 1 if name == "lvis" else images)
            with Path(folder, "lvis.json").open("w") as file:
                file.writelines(lvis_text() if name == "lvis" else ())
            text = json.dumps({f"sa_{number}.jpg": entry for number in range(images)})
            Path(folder, "annotations.json").write_text(text)
            rows[name] = row_of_process(read_list, name, folder)
    write_results(out, {"lists": rows})
    return rows


def build_app() -> typer.Typer:
    app = new_app("Bulk work at size.")
    for name, measure in {"ray": measure_ray, "tars": measure_tars, "lists": measure_lists}.items():
        app.command(name)(measure)
    return app


if __name__ == "__main__":
    run_module(build_app)
