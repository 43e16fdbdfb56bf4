"""Two nodes of a Ray cluster on this machine: killed workers, nodes and drivers end in the same files."""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldm.cluster import TRIES, spread
from ldm.settings.cli import run_app
from run_inference import build_app
from tests.batches import HIDDEN, batch, job, made, write
from tests.conftest import ROOT
from tests.images import Case
from tests.ldm.spread_work import ENDS, ENDS_ONCE, RAISES, finished, maker


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of two nodes, each of processes of its own with one CPU, on this machine."""
    pytest.importorskip("ray", reason="ray is an extra: requirements-extras.txt")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        found = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        found.add_node(num_cpus=1)
        yield found
        found.shutdown()


@pytest.mark.slow
def test_workers_killed_and_poison_items_on_two_nodes(nodes: Any, tmp_path: Path) -> None:
    results = list(
        spread(maker(tmp_path, 0.02, (RAISES, ENDS)), range(12), nodes.address, lambda n, why: f"{n}: {why}")
    )
    said = [f"{number} in {Path.cwd()}" for number in range(12)]
    said[RAISES], said[ENDS] = "5: number 5 is poison", results[ENDS]
    assert results == said
    assert results[ENDS].startswith(f"7: ended {TRIES} workers: ")
    assert finished(tmp_path) == [n for n in range(12) if n not in (RAISES, ENDS)]  # and none of them twice

    other = tmp_path / "other"
    other.mkdir()
    assert len(list(spread(maker(other, 0.1, [ENDS_ONCE]), range(24), nodes.address))) == 24
    assert (other / "killed").is_file()
    assert finished(other) == list(range(24))  # and none of them twice
    assert len(list(other.glob("*.pid"))) >= 2  # two worked; a third may have come too late


@pytest.mark.slow
def test_a_batch_on_two_nodes_is_that_of_one_process(nodes: Any, case: Case) -> None:
    names = [f"job{index}" for index in range(8)]
    lines = [job(case, name=name, seed=index) for index, name in enumerate(names)]
    write(case, *lines[:4], job(case, name="bad", **HIDDEN), *lines[4:])
    out = case.folder / "many"
    assert batch(case) == 1
    whole = {path.name: path.read_bytes() for path in [*out.glob("*.png"), *out.glob("failed*")]}
    shutil.rmtree(out)
    argv = [sys.executable, "run_inference.py", "batch", str(case.folder / "jobs.jsonl"), "--out", str(out)]
    argv += ["--root", str(case.folder), "--ray", nodes.address]
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.DEVNULL) as running:  # the driver is killed
        while len(list(out.glob("*.png"))) < 2 and running.poll() is None:
            time.sleep(0.02)
        running.kill()
    first = made(out)
    assert batch(case, "--ray", nodes.address) == 1
    assert {path.name: path.read_bytes() for path in [*out.glob("*.png"), *out.glob("failed*")]} == whole
    assert first.items() <= made(out).items()  # none was made again
    assert not list(out.rglob(".*"))  # neither locks nor halves


@pytest.mark.slow
def test_a_node_that_ends_leaves_its_items_to_the_others(nodes: Any, tmp_path: Path) -> None:
    third = nodes.add_node(num_cpus=1)

    def remove() -> None:
        while len(finished(tmp_path)) < 6:
            time.sleep(0.01)
        nodes.remove_node(third, allow_graceful=False)

    remover = threading.Thread(target=remove)
    remover.start()
    assert len(list(spread(maker(tmp_path, 0.1), range(30), nodes.address))) == 30
    remover.join()
    assert set(finished(tmp_path)) == set(range(30))


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_line(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="ray is an extra: requirements-extras.txt")
    write(case, job(case, name="a"))
    assert batch(case, "--ray", "127.0.0.1:1") == 2
    shown = capsys.readouterr().err
    assert "error: --ray 127.0.0.1:1: " in shown
    assert run_app(build_app, ["batch", "--help"]) == 0
