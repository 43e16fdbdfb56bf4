"""One measurement of `benchmarks.size`, in the folder of this or of an earlier revision.

    python -c "$(cat benchmarks/size_process.py)" image BACKGROUND
    python -c "$(cat benchmarks/size_process.py)" jobs JOBS OUT

Writes a line of JSON: CPU seconds of this process, and the most memory that it held.
"""

import json
import os
import resource
import runpy
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

EXAMPLE = Path("assets/examples/tent")


def first_module(*names: str) -> Any:
    """The first of these modules that a revision has."""
    for name in names:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            missing = error
    raise missing


def report(**values: Any) -> None:
    """Write the line and end the process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1 / 1024)
    sys.stdout.write(json.dumps({**values, "peak_gb": round(peak / 2**30, 3)}) + "\n")
    sys.stdout.flush()
    os._exit(0)


def image(background: str) -> None:
    """A composite with a large background, after a small one that loads the networks."""
    time.perf_counter = time.process_time  # the stages of a report are in CPU seconds then
    module, settings = import_module("compose"), first_module("compose.settings", "compose_settings")
    models = None
    for path in (EXAMPLE / "room.png", Path(background)):
        given: dict[str, Any] = {"background": path, "object": EXAMPLE / "object.png", "depth": (0.44,)}
        chosen = settings.ComposeSettings(**given, box=(0.17, 0.19, 0.51, 0.64))
        models = models or module.load_models(chosen)
        result = module.compose(chosen, models, progress=False)
    stages = {key: took for key, took in result.report["seconds"].items() if key not in ("read", "total")}
    drift = result.report["drift"][0]["changed_outside"]
    report(cpu_s=round(sum(stages.values()), 3), stages_s=stages, changed_outside=drift)


def jobs(path: str, out: str) -> None:
    """From the start of the command to the first composite of a file of jobs."""
    batch = first_module("compose.batch", "compose_batch")
    imported = time.process_time()

    def compose(*args: Any, **more: Any) -> None:
        total = time.process_time()
        report(cpu_s=round(total, 3), without_imports_s=round(total - imported, 3))

    batch.compose = compose
    sys.argv = ["run_inference.py", "batch", path, "--out", out]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    measure: dict[str, Callable[..., None]] = {"image": image, "jobs": jobs}
    measure[sys.argv[1]](*sys.argv[2:])
