"""A measurement of `benchmarks.size`, in the folder of this or an earlier revision: image, or jobs COUNT."""

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

ROOM, OBJECT = Path("assets/examples/tent/room.png"), Path("assets/examples/tent/object.png")
JOB: Any = {"background": ROOM, "object": OBJECT, "box": (0.17, 0.19, 0.51, 0.64), "depth": (0.44,)}


def main(kind: str, count: str = "0") -> None:
    """Write a line of JSON: CPU seconds, and the most memory that this process held."""
    old, folder = find_spec("compose_batch") is not None, TemporaryDirectory()
    large, jobs = Path(folder.name) / "large.jpg", Path(folder.name) / "jobs.jsonl"

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
        imported = started
        done: Any = lambda *_, **__: finish(cpu_s=clock() - started, without_imports_s=clock() - imported)  # noqa: E731
        if old:
            import_module("compose_batch").compose = done  # type: ignore[attr-defined]
            imported = clock()
        else:  # the command imports its work itself
            later, locks = map(import_module, ("ldm.settings.later", "ldm.locks"))
            quiet, taken = later.quiet_libraries, locks.taken

            def note_imports() -> None:
                nonlocal imported
                imported = clock()
                quiet()

            def first_taken(*given: Any) -> Any:
                sys.modules["compose.batch"].compose = done  # type: ignore[attr-defined]
                return taken(*given)

            later.quiet_libraries, locks.taken = note_imports, first_taken  # type: ignore[attr-defined]
        sys.argv = ["run_inference.py", "batch", str(jobs), "--out", folder.name]
        runpy.run_path(sys.argv[0], run_name="__main__")
    Image.open(ROOM).convert("RGB").resize((8000, 6000)).save(large, quality=92)
    time.perf_counter = time.process_time  # the stages of a report are in CPU seconds then
    compose, settings = map(import_module, ("compose", "compose_settings" if old else "compose.settings"))
    models = compose.load_models(settings.ComposeSettings(**JOB))
    for background in (ROOM, large):  # the small one loads the networks
        chosen = settings.ComposeSettings(**{**JOB, "background": background})
        report = compose.compose(chosen, models, progress=False).report
    stages = {name: spent for name, spent in report["seconds"].items() if name not in ("read", "total")}
    finish(cpu_s=sum(stages.values()), stages_s=stages, changed_outside=report["drift"][0]["changed_outside"])


if __name__ == "__main__":
    main(*sys.argv[1:])
