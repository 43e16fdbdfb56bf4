"""Large inputs against an earlier revision, in pairs: a background of 8000 x 6000, long files of jobs.

    OMP_NUM_THREADS=1 python -m benchmarks.size [--pairs 3] [--out FILE]

Every measurement is a process of its own: CPU seconds, and the most memory that it held (GiB). The reading
of files and the loading of networks do not count. Composites have the usual settings: here with a shadow,
which the earlier revision does not draw (plain: a rendered scene without it, the same work as there); a
rendered scene has the networks that it had there, a photograph has depth by rules and the painter paste. With
U2-Netp the rules cost more, at any size of the image. Freed memory is kept, as by commands. Jobs count up to
the first composite, with and without imports; the earlier revision reads a short file of jobs, as it takes as
long for every line.
"""

import json
import logging
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.harness import RESULTS, Out, write_results
from ldm.files import ROOT
from ldm.registry.models import cutout_network
from ldm.settings.cli import run_module, single_app

log = logging.getLogger(__name__)

BEFORE = "8f05625f09d1ae8e2b2ea4dfd9883812ddba6dfb"  # composites worked on whole images
IMAGES = "photograph", "rendered", "plain"
WORKS = {"before": (*IMAGES[:2], "jobs 100"), "now": (*IMAGES, "jobs 100", "jobs 5000", "jobs 100000")}


@contextmanager
def checked_out(revision: str, repository: Path = ROOT) -> Iterator[Path]:
    """A git worktree of a revision, for a while; ValueError where git or the revision is missing."""
    git = ["git", "-C", str(repository), "worktree"]
    with TemporaryDirectory() as tree:
        try:
            subprocess.run([*git, "add", "--detach", tree, revision], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", b"") or str(error).encode()).decode().strip().splitlines()[-1]
            what = "cannot be checked out; a clone with its whole history is needed (git fetch --unshallow)"
            raise ValueError(f"revision {revision} of {repository} {what}: {reason}") from None
        try:
            yield Path(tree)
        finally:
            subprocess.run([*git, "remove", "--force", tree], check=True, capture_output=True)


def row_in(root: Path, code: str, *arguments: str) -> dict[str, Any]:
    """The line of JSON that Python code writes last, run in a folder: this one, or another revision's."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(arguments)} in {root} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_size(
    pairs: Annotated[int, typer.Option(help="how often each is measured, in turn", min=1)] = 3,
    out: Out = RESULTS / "size.json",
) -> dict[str, Any]:
    """Measure large inputs here and at an earlier revision."""
    code = Path(__file__).with_name("earlier_process.py").read_text(encoding="utf-8")
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {side: defaultdict(list) for side in WORKS}
    with checked_out(BEFORE) as before:
        for side, root in [("before", before), ("now", ROOT)] * pairs:
            for work in WORKS[side]:
                rows[side][work].append(row_in(root, code, *work.split()))
                log.info("%s, %s: %s", work, side, rows[side][work][-1])
    spent = {s: {work: median(row["cpu_s"] for row in rows[s][work]) for work in rows[s]} for s in rows}
    body = {
        "earlier_revision": BEFORE,
        "u2netp": cutout_network("auto") is not None,
        "median_cpu_s": spent,
        "measured": rows,
    }
    write_results(out, body)
    return body


build_app = single_app(measure_size)

if __name__ == "__main__":
    run_module(build_app)
