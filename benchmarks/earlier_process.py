"""A measurement of `benchmarks.size` or `.training_data`, in the folder of this or an earlier revision.

photograph | rendered | plain | jobs COUNT | examples DATASETS.yaml COUNT (of each source)
"""

import ctypes
import json
import os
import resource
import runpy
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

ROOM, OBJECT = Path("assets/examples/tent/room.png"), Path("assets/examples/tent/object.png")
JOB: Any = {"background": ROOM, "object": OBJECT, "box": (0.17, 0.19, 0.51, 0.64), "depth": (0.44,)}


def main(kind: str, count: str = "0") -> None:
    """Write a line of JSON: CPU seconds, and the most memory that this process held."""
    old, folder = find_spec("compose_batch") is not None, TemporaryDirectory()
    large, jobs = Path(folder.name) / "large", Path(folder.name) / "jobs.jsonl"

    def finish(**row: Any) -> None:
        row["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of Linux
        row = {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
        folder.cleanup()
        os._exit(0)

    if kind == "jobs":
        lines = (json.dumps({**JOB, "name": f"j{n}"}, default=str) for n in range(int(count)))
        jobs.write_text("\n".join(lines))
        started, clock = time.process_time(), time.process_time

        def imported() -> None:
            ready, batch = clock(), sys.modules.get("compose_batch" if old else "compose.composer")

            def first(*_: Any, **__: Any) -> None:
                finish(cpu_s=clock() - started, without_imports_s=clock() - ready)

            if batch is not None:
                setattr(batch, "compose" if old else "prepare", first)

        if old:
            import_module("compose_batch")
            imported()
        else:  # the command imports its work itself, and calls this afterwards
            import_module("ldm.settings.later").quiet_libraries = imported  # type: ignore[attr-defined]
        sys.argv = ["run_inference.py", "batch", str(jobs), "--out", folder.name]
        runpy.run_path(sys.argv[0], run_name="__main__")
    facts = PngInfo()
    facts.add_text("Software", "datasets.scenes")  # of a rendered scene, now: it keeps the small networks
    kinds = {"photograph": "JPEG", "rendered": "PNG", "plain": "PNG"}
    Image.open(ROOM).convert("RGB").resize((8000, 6000)).save(large, kinds[kind], quality=92, pnginfo=facts)
    ctypes.CDLL(None).malloc_trim(0)  # what was touched to make the image does not help either side
    if not old:
        import_module("ldm.settings.resources").keep_freed_memory()  # as a command does
    time.perf_counter = time.process_time  # the stages of a report are in CPU seconds then
    compose, settings = map(import_module, ("compose", "compose_settings" if old else "compose.settings"))
    job = {**JOB, "shadow": "off"} if kind == "plain" and not old else JOB
    models = compose.load_models(settings.ComposeSettings(**job))
    for background in (ROOM, large):  # the small one loads the networks
        chosen = settings.ComposeSettings(**{**job, "background": background})
        report = compose.compose(chosen, models, progress=False).report
    stages = {name: spent for name, spent in report["seconds"].items() if name not in ("read", "total")}
    finish(cpu_s=sum(stages.values()), stages_s=stages, changed_outside=report["drift"][0]["changed_outside"])


def measure_examples(settings: str, count: str) -> None:
    """Write a line of JSON: CPU milliseconds and megabytes of an example that is accepted, by source."""
    import cv2
    import torch

    old = find_spec("datasets.registry") is not None
    names = "datasets.sources.registry datasets.examples ldm.settings.config"
    names = "datasets.registry datasets.base ldm.config" if old else names
    registry, examples, config = map(import_module, names.split())
    options = import_module("datasets.inputs").PairOptions()
    collate: Any = examples.collate if old else examples.collate_pairs
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    loaded, rows = config.load_config(registry.DatasetsConfig, Path(settings)), {}
    for name in loaded.weights:
        # In a mixture another source takes the place of one that rejects so many items.
        limit = {} if old else {"stop_after": examples.ITEMS}
        dataset = examples.PairDataset(registry.open_source(loaded, name), options, 0, **limit)
        batch, failed = {}, 0
        for k in range(-1, int(count)):
            if k == 0:  # after a warm-up
                started, failed = time.process_time(), 0
            try:
                batch = collate([dataset[k if k >= 0 else int(count)]])
            except ValueError:  # the earlier revision stops after 16 rejections; what they take counts
                failed += 1
        ms = 1000 * (time.process_time() - started) / max(int(count) - failed, 1)
        sizes = (value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))
        rows[name] = {"cpu_ms": round(ms, 2), "mb": round(sum(sizes) / 1e6, 2), "failed": failed}
    sys.stdout.write(json.dumps(rows) + "\n")


if __name__ == "__main__":
    work, *given = sys.argv[1:]
    measure_examples(*given) if work == "examples" else main(work, *given)
