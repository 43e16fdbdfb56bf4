"""The campaign of kills and the fuzz command: small versions of both, and that they see what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from benchmarks.campaign import FAULTS, Campaign
from benchmarks.campaign_state import contents, count_renames, differences, wait
from benchmarks.fuzz import Fuzz, is_ours, run_items
from ldm.images import write_png
from ldm.settings.cli import single_app
from tests.conftest import ROOT


def test_times_do_not_count_and_everything_else_does(tmp_path: Path) -> None:
    def write(name: str, seconds: float, value: float) -> dict[str, str]:
        place = tmp_path / name
        place.mkdir()
        (place / "a.json").write_text(json.dumps({"seconds": seconds, "deep": [{"run_time": 1, "b": value}]}))
        (place / "a.csv").write_text(f"step,samples_per_second\n{value},{seconds}\n")
        torch.save({"w": torch.tensor([value]), "elapsed": seconds}, place / "a.pt")
        write_png(place / "a.png", np.full((2, 2, 3), int(value), np.uint8))
        (place / "empty").mkdir()
        return contents(place)

    one, later, other = write("a", 1, 5), write("b", 2, 5), write("c", 1, 6)
    assert set(one) == {"a.json", "a.csv", "a.pt", "a.png", "empty"}
    assert differences(one, later) == []
    assert differences(one, other) == ["a.csv", "a.json", "a.png", "a.pt"]
    assert differences(one, {**one, "more": ""}) == ["more"]


@pytest.mark.parametrize(("last", "left"), [(1, ["a"]), (2, ["b"]), (3, ["c"]), (0, ["d"])])
def test_a_process_ends_just_before_the_rename(tmp_path: Path, last: int, left: list[str]) -> None:
    (tmp_path / "a").touch()
    if not (child := os.fork()):
        count_renames(last)
        (tmp_path / "a").rename(tmp_path / "b")
        os.replace(tmp_path / "b", tmp_path / "c")
        (tmp_path / "c").replace(tmp_path / "d")
        os._exit(0)
    assert wait(child, 60) == (-signal.SIGKILL if last else 0)
    assert [path.name for path in tmp_path.iterdir()] == left


def careless(out: Path) -> None:
    """Believes any file that is there, and leaves what it needs meanwhile."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "result").exists():
        (out / "notes.tmp").touch()
        with (out / "result").open("w") as file:
            file.write("half")
            file.flush()
            os.replace(out / "notes.tmp", out / "notes")
            file.write(" and half")


def build_app() -> typer.Typer:
    return single_app(careless)()


@pytest.mark.parametrize("case", ["kill", "disk"])
def test_a_careless_command_is_found(tmp_path: Path, case: str) -> None:
    job = {"app": f"{__name__}:build_app", "argv": "{out}"}
    sys.modules.setdefault(__name__, sys.modules[careless.__module__])
    campaign = Campaign(tmp_path / "A", tmp_path, job)
    assert campaign.measure()
    assert (campaign.renames, sorted(campaign.alone)) == (1, ["out", "out/notes", "out/result"])
    if case == "kill":
        campaign.kill_at_renames(5)
        assert campaign.counts == {"at renames": 1, "left over": 1, "wrong": 1}
        assert "out/notes" in campaign.findings[1]
    else:
        campaign.run_together()
        assert campaign.counts == {"together": 2}


@pytest.mark.parametrize("error", [ValueError("a"), pytest.param(KeyError("a"), id="foreign")])
def test_a_plain_value_error_is_ours(error: Exception) -> None:
    assert is_ours(error) == (type(error) is ValueError)
    assert not is_ours(UnicodeDecodeError("utf-8", b"a", 0, 1, "b"))


def test_items_are_the_same_at_every_call(tmp_path: Path) -> None:
    records = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run_items(Fuzz(tmp_path / name), 3, range(12), tmp_path / f"{name}.jsonl")
        signal.alarm(0)
        records.append((tmp_path / f"{name}.jsonl").read_text())
    assert records[0] == records[1]
    lines = [json.loads(line) for line in records[0].splitlines()]
    assert len(lines) == 24
    assert {came for _, _, came in lines} <= {"began", "made", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["campaign --only ops-build --only scenes-render --kills 6 --renames 3", "fuzz --count 400"]
)
def test_small_versions_find_nothing(tmp_path: Path, command: str) -> None:
    out = tmp_path / "table.json"
    done = subprocess.run(
        [sys.executable, "-m", *f"benchmarks.{command} --out {out}".split()],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    table = json.loads(out.read_text())
    assert done.returncode == 0, done.stderr[-3000:]
    if "total" in table:
        assert {name: table["total"][name] for name in FAULTS} == dict.fromkeys(FAULTS, 0)
        assert table["total"]["kills"] == 6
    else:
        assert table["foreign"] == []
