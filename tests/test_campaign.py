"""The campaign of kills and the fuzz command: small versions of both, and that they see what is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import typer
from omegaconf import OmegaConf
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import auto, std

from benchmarks.campaign import COMMANDS, FAULTS, Campaign
from benchmarks.campaign_state import contents, count_renames, differences, output_to, wait
from benchmarks.fuzz import Fuzz, is_ours
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
        Fuzz(tmp_path / name).run_items(3, range(12), tmp_path / f"{name}.jsonl")
        signal.alarm(0)
        records.append((tmp_path / f"{name}.jsonl").read_text())
    assert records[0] == records[1]
    lines = [json.loads(line) for line in records[0].splitlines()]
    assert len(lines) == 24
    assert {came for _, _, came in lines} <= {"began", "made", "refused"}


def campaign_rows(table: dict[str, Any]) -> list[str]:
    """The table of docs/reliability.md."""
    kinds = ("kills", "at renames", "together", "full disk", "threads")
    hardware, commands = table["hardware"], table["commands"]
    revision = next(iter(commands.values()))["revision"]
    lines = ["| command | seconds alone | kills | at renames | two at once | full disk | threads | faults |"]
    lines += ["|---|" + "---:|" * 7]
    for name, row in [*commands.items(), ("**sum**", table["total"])]:
        counts = [row.get(kind, 0) for kind in kinds]
        shown = [name, row.get("seconds", ""), *counts, sum(row[fault] for fault in FAULTS)]
        lines.append("| " + " | ".join(map(str, shown)) + " |")
    where = f"{hardware['cpu']}, {hardware['cores']} cores, shared (load average {hardware['load_average']})"
    return [*lines, "", f"{where}, Python {hardware['python']}; revision {revision[:12]}."]


WITHOUT_ROW = re.compile(
    r"""run_inference.py[ ]schema|compose.benchmark[ ]verify|ldm.doctor|scripts.measure_code  # write nothing
    |scripts.rehearse                            # at full size; writes one table at its end
    |ldm.registry[ ](list|show|where|verify)
    |datasets.uvo_process                        # seconds, one file
    |compose.serve                               # does not end; tests/compose/serve
    |cldm.convert[ ](anydoor|sd21|dinov2|dpt)    # write as `bifrost` does, at full size
    |compose.hub[ ].*                            # write as `cldm.convert` does
    |compose.benchmark[ ]dreamedit|inpainting.data.ops[ ]lomoe  # seconds, a whole folder or none
    |llava_bifrost.model[ ]convert               # writes as `merge` does
    |inpainting.data.dci_ops[ ].*                # the steps of `ops`
    |tiny.bundle[ ].*|scripts.docs.(?!draw_regions).*  # into assets/ and docs/ of the repository""",
    re.VERBOSE,
)


def command_of(job: dict[str, str], commands: set[str]) -> str:
    """The command of docs/commands.md that a row of the campaign runs."""
    module = job["app"].partition(":")[0].removesuffix(".__main__")
    name = "cldm.convert bifrost" if module == "benchmarks.small_models" else module
    name = f"{name}.py" if name.startswith("run_") else name
    return name if name in commands else f"{name} {job['argv'].split()[0]}"


def test_every_long_command_has_a_row() -> None:
    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    commands = set(re.findall("^## (.*)", page, re.M)) - {"Commands of the two papers"}
    table: Any = OmegaConf.to_container(OmegaConf.load(ROOT / COMMANDS), resolve=True)
    rows = {command_of(job, commands) for job in table["commands"].values()}
    assert rows - commands == set()
    assert {name for name in commands - rows if not WITHOUT_ROW.fullmatch(name)} == set()
    assert [name for name in rows if WITHOUT_ROW.fullmatch(name)] == []


def test_the_committed_table_is_one_whole_run_and_the_page_shows_it() -> None:
    table = json.loads((ROOT / "benchmarks/results/campaign.json").read_text())
    commands = OmegaConf.to_container(OmegaConf.load(ROOT / COMMANDS))["commands"]  # type: ignore[index, call-overload]
    assert list(table["commands"]) == list(commands)
    (revision,) = {row["revision"] for row in table["commands"].values()}
    assert re.fullmatch("[0-9a-f]{40}", revision)
    total = table["total"]
    assert {fault: total[fault] for fault in FAULTS} == dict.fromkeys(FAULTS, 0)
    assert total["kills"] + total["at renames"] >= 300
    for name, row in table["commands"].items():
        assert row["findings"] == [], name
        assert min(row["kills"], row["together"], row["full disk"]) > 0, name
        assert ("at renames" in row) == (name != "predict"), name  # it appends to one file
        threads = "first" not in commands[name] and "{out}" in commands[name]["argv"]
        assert row.get("threads", 0) == threads, name
        for kind in ("kills", "at renames"):
            assert total[kind] == sum(other.get(kind, 0) for other in table["commands"].values())
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    assert page.endswith("\n".join(campaign_rows(table)) + "\n")


def slow(seconds: float) -> None:
    ends = time.process_time() + seconds
    while time.process_time() < ends:
        pass


@pytest.mark.parametrize(("cpu_s", "runs_on"), [(0.05, True), (0.1, True), (5.0, False)])
def test_a_kill_comes_after_processor_time_whatever_else_runs(cpu_s: float, runs_on: bool) -> None:
    if not (child := os.fork()):
        slow(0.4)
        os._exit(7)
    code = wait(child, 60, cpu_s)
    if runs_on:
        spent = sum(psutil.Process(child).cpu_times()[:2])
        assert code is None
        assert cpu_s < spent < 0.35
        os.kill(child, signal.SIGKILL)
        assert wait(child, 60) == -signal.SIGKILL
    else:
        assert code == 7


def test_a_child_shares_no_lock_of_a_progress_bar_with_processes_that_may_be_killed(tmp_path: Path) -> None:
    shared = std.tqdm.get_lock()
    if not (child := os.fork()):
        output_to(tmp_path / "log")
        locks = {kind.get_lock() for kind in (std.tqdm, auto.tqdm)}
        os._exit(len(locks | {shared}))
    assert wait(child, 60) == 2  # one of its own


def test_a_child_that_waits_without_work_is_given_up_on_the_clock() -> None:
    if not (child := os.fork()):
        time.sleep(60)
        os._exit(0)
    assert wait(child, 0.05, 1.0) is None
    os.kill(child, signal.SIGTERM)
    assert wait(child, 60) == -signal.SIGTERM


@pytest.mark.parametrize("name", ["a.json", "a.pt", "a.csv", "a.png"])
def test_paths_of_the_place_count_as_those_of_another(tmp_path: Path, name: str) -> None:
    for letter in "AB":
        place = tmp_path / letter
        place.mkdir()
        value = {"scenes": f"{place}/out", "w": 1}
        if name == "a.json":
            (place / name).write_text(json.dumps(value))
        elif name == "a.csv":
            (place / name).write_text(f"path\n{place}/out\n")
        elif name == "a.pt":
            torch.save({**value, "w": torch.ones(2)}, place / name)
        else:
            note = PngInfo()
            note.add_text("recipe", json.dumps(value))
            Image.new("RGB", (2, 2)).save(place / name, pnginfo=note)
    one, other = tmp_path / "A", tmp_path / "B"
    assert differences(contents(one), contents(other)) == [name]
    assert differences(contents(one), contents(other, one)) == []


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
