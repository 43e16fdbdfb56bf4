"""A data set that is built in pieces, or killed and continued, is the same data set."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm.journal import read_lines
from ldm.locks import one_writer
from ldm.settings.cli import run_app
from llava_bifrost.build_dataset.__main__ import build_app
from llava_bifrost.build_dataset.files import merge_shards
from llava_bifrost.settings import MergeShardsSettings
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
        "write = files.append_line\n"
        "def slow(*args):\n    write(*args)\n    time.sleep(0.3)\n"
        "files.append_line = slow\n"
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


def test_a_second_build_of_a_shard_is_refused_and_of_another_is_not(
    coco: Path, small_depth_network: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    part = out / "parts" / "shard-0-of-2.jsonl"
    with one_writer(part, inside=False):
        with pytest.raises(ValueError, match=f"^{part}: another process is writing it"):
            run(settings(coco, small_depth_network, out, shard="0/2"))
        assert not part.exists()
        assert run(settings(coco, small_depth_network, out, shard="1/2")) is None
    run(settings(coco, small_depth_network, out, shard="0/2"))
    items = [line["item"] for path in part.parent.glob("*.jsonl") for line in read_lines(path)]
    assert len(items) == len(set(items)) == COUNT


def test_merging_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_app(build_app, ["merge", "--out", str(tmp_path)]) == 2
    assert "holds no data set" in capsys.readouterr().err
