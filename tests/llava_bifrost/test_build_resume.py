"""A data set that is built in pieces, or killed and continued, is the same data set."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import render_shards
from ldm.journal import SharedLines, read_lines
from ldm.locks import held
from ldm.settings.cli import run_app
from llava_bifrost.build_dataset import files
from llava_bifrost.build_dataset.__main__ import build_app
from llava_bifrost.build_dataset.coco import CocoSource
from llava_bifrost.build_dataset.files import build_questions, merge_shards
from llava_bifrost.build_dataset.scenes import SceneSource
from llava_bifrost.settings import MergeShardsSettings, ScenesBuild
from tests.datasets.photographs import COUNT, differing, run, settings, write_coco


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def built(coco: Path, small_depth_network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "set"
    run(settings(coco, small_depth_network, out))
    return out


def test_shards_merge_to_the_same_files(
    coco: Path, small_depth_network: Path, built: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    assert run(settings(coco, small_depth_network, out, shard="1/2")) is None
    with pytest.raises(ValueError, match="4 of 8 items are built"):
        merge_shards(MergeShardsSettings(out))
    assert run(settings(coco, small_depth_network, out, shard="0/2")) is None
    merge_shards(MergeShardsSettings(out))
    assert differing(out, built) == []


@pytest.mark.slow
def test_killed_and_continued_gives_the_same_files(
    coco: Path, small_depth_network: Path, built: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    given = settings(coco, small_depth_network, out)
    script = (
        "import sys, time, llava_bifrost.build_dataset.files as files\n"
        "from llava_bifrost.build_dataset.__main__ import build_app\n"
        "from ldm.settings.cli import run_app\n"
        "write = files.SharedLines.update\n"
        "def slow(*args):\n    write(*args)\n    time.sleep(0.3)\n"
        "files.SharedLines.update = slow\n"
        "sys.exit(run_app(build_app, sys.argv[1:]))\n"
    )
    arguments = ["coco", "--images", given.images, "--annotations", given.annotations, "--out", out,
                 "--depth", given.depth, "--targets", 2, "--replace", 0.6, "--batch", 2, "--device", "cpu",
                 "--thresholds.depth-error", 1]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], env=environment)
    part = out / "parts" / "shard-0-of-1.jsonl"
    until = time.monotonic() + 120
    while len(read_lines(part)) < 3 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 3 <= len(read_lines(part)) < COUNT
    assert not (out / "dataset.json").exists()
    # What a kill in the middle of a write leaves behind.
    with part.open("ab") as file:
        file.write(b'{"item": "p7", "rec')
    (out / "images" / ".p5_0.jpg.0123.tmp").write_bytes(b"half")
    run(given)
    assert differing(out, built) == []
    before = part.read_bytes()
    run(given)
    assert part.read_bytes() == before
    assert differing(out, built) == []


def test_damaged_parts_are_refused(coco: Path, small_depth_network: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    part = out / "parts" / "shard-0-of-1.jsonl"
    part.parent.mkdir(parents=True)
    part.write_text("no json\n")
    with pytest.raises(ValueError, match="shard-0-of-1.jsonl:1: not JSON"):
        run(settings(coco, small_depth_network, out))


def meeting(monkeypatch, kind: type) -> list[list[str]]:
    """Builds that begin only when two of them have a part each; the names that each call finishes."""
    real, both, begun, made = (
        kind.finish,
        threading.Barrier(2, timeout=60),
        threading.local(),
        list[list[str]](),
    )

    def finish(source, prepared):
        if not hasattr(begun, "yes"):
            begun.yes = both.wait() is not None
        built = real(source, prepared)
        made.append([item.name for item in built])
        return built

    monkeypatch.setattr(kind, "finish", finish)
    monkeypatch.setattr(files, "TAKEN", 1)
    return made


def at_once(*works) -> None:
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result(timeout=100)


def items_of(out: Path) -> list[str]:
    return [line["item"] for path in (out / "parts").glob("*.jsonl") for line in read_lines(path)]


def test_two_builds_at_once_divide_the_items_and_end_as_one(
    coco: Path, small_depth_network: Path, built: Path, tmp_path: Path, monkeypatch
) -> None:
    out, made = tmp_path / "set", meeting(monkeypatch, CocoSource)
    given = settings(coco, small_depth_network, out)
    at_once(lambda: run(given), lambda: run(given))
    assert sorted(items_of(out)) == sorted(items_of(built))
    assert sorted(name for names in made for name in names) == sorted(items_of(built))  # each is made once
    assert differing(out, built) == []
    names = {path.relative_to(out) for path in out.rglob("*")}
    assert names == {path.relative_to(built) for path in built.rglob("*")}  # no lock stays


def test_two_builds_of_one_shard_of_scenes_divide_its_items(tmp_path: Path, monkeypatch) -> None:
    render_shards(StoreSettings(out=tmp_path / "a", count=5, size=(32, 32), reference_size=(16, 16)))
    alone, shard = (ScenesBuild(scenes=tmp_path / "a", out=tmp_path / name) for name in ("alone", "set"))
    monkeypatch.setattr(SceneSource, "chunk", 2)
    build_questions(SceneSource, alone)
    build_questions(SceneSource, replace(shard, shard="1/2"))
    made = meeting(monkeypatch, SceneSource)
    at_once(*[lambda: build_questions(SceneSource, replace(shard, shard="0/2"))] * 2)
    assert sorted(map(len, made)) == [1, 2]  # of three chunks the last and the first
    merge_shards(MergeShardsSettings(shard.out))
    assert differing(shard.out, alone.out) == []
    assert sorted(items_of(shard.out)) == sorted(items_of(alone.out))


def test_items_that_another_process_holds_come_last_and_are_taken_over_when_it_ends(
    coco: Path, small_depth_network: Path, built: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(files, "TAKEN", 1)
    out = tmp_path / "set"
    given = settings(coco, small_depth_network, out)
    with ThreadPoolExecutor(1) as pool:
        with held(out / "parts" / ".shard-0-of-1.0.lock") as free:
            assert free
            done, until = pool.submit(run, given), time.monotonic() + 60
            while len(items_of(out)) < COUNT - given.batch and time.monotonic() < until:
                time.sleep(0.01)
            assert not (out / "dataset.json").exists()
        assert done.result(timeout=60)["samples"]
    assert len(items_of(out)) == COUNT
    assert not {"p0", "p1"} & set(items_of(out)[: -given.batch])
    assert differing(out, built) == []


def test_a_second_build_with_other_settings_is_refused(
    coco: Path, small_depth_network: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "set"
    run(settings(coco, small_depth_network, out, shard="0/2"))
    with pytest.raises(
        ValueError, match=r"was begun with another seed \(recipe.json\); choose another folder"
    ):
        run(settings(coco, small_depth_network, out, shard="0/2", seed=5))


def test_lines_of_several_processes_are_each_there_once(tmp_path: Path) -> None:
    one, other = SharedLines(tmp_path / "a.jsonl"), SharedLines(tmp_path / "a.jsonl")
    one.update()
    assert list(tmp_path.iterdir()) == []
    one.update({"item": "a"}, {"item": "b"})
    other.update({"item": "b", "n": 1}, {"item": "c"})
    assert other.items == {"a", "b", "c"}
    assert one.items == {"a", "b"}
    with one.path.open("ab") as file:  # of a process that died in a write
        file.write(b'{"item": "d", "rec')
    one.update({"item": "e"})
    other.update()
    assert one.items == other.items == {"a", "b", "c", "e"}
    assert read_lines(one.path) == [{"item": name} for name in "abce"]
    with one.path.open("ab") as file:
        file.write(b"no json\n")
    with pytest.raises(ValueError, match="a.jsonl:1: not JSON"):
        other.update()
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_merging_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_app(build_app, ["merge", "--out", str(tmp_path)]) == 2
    assert "holds no data set" in capsys.readouterr().err
