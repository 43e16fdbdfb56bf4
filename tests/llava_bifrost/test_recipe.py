"""What locator training reads: records of a dataset file, and the shell script's defaults."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llava_bifrost.build_dataset.records import read_records
from llava_bifrost.language.answer import format_answer
from llava_bifrost.language.instruction import Request
from tests.conftest import ROOT
from tests.llava_bifrost.test_train import write_data

CONFIGS = ("configs/llava_bifrost/train.yaml", "configs/llava_bifrost/train_smoke.yaml")
MISSING = "[train_llava] error: {} does not exist; this gets it:\n    {}\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


def test_records(data: Path, tmp_path: Path):
    records = read_records(data)
    assert len(records) == 12
    assert records[1].request == Request("dog", (("behind", "sofa"),))
    values = json.loads(data.read_text())

    def refused(change: Any, said: str) -> None:
        broken = json.loads(json.dumps(values[:2]))
        change(broken[1])
        path = data.with_name("broken.json")
        path.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=said):
            read_records(path)

    refused(
        lambda r: r["conversations"][0].update(value="Place the cat behind the bed"), "record 1: .*looking"
    )
    refused(lambda r: r.update(image="none.png"), "none.png is neither in")
    refused(lambda r: r.pop("conversations"), "record 1: needs id")
    refused(lambda r: (r.pop("meta"), r["conversations"][1].update(value="[0.1]")), "4 box numbers")
    plain = json.loads(json.dumps(values[1]))
    plain.pop("meta")
    path = data.with_name("plain.json")
    path.write_text(json.dumps([plain]))
    (record,) = read_records(path)
    assert format_answer(record.location) == plain["conversations"][1]["value"]
    assert record.request == records[1].request


@pytest.mark.parametrize("shell", [shell for shell in ("bash", "dash", "sh") if shutil.which(shell)])
def test_script(shell: str, tmp_path: Path):
    """Missing files are named with the command that gets them; arguments are passed on."""
    folder = tmp_path / "a checkout"
    script = "scripts/train_llava.sh"
    for name in (script, "scripts/setup.sh", "requirements.txt", *CONFIGS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    stub = folder / ".venv/bin/python"
    stub.parent.mkdir(parents=True)
    stub.write_text('#!/bin/sh\nfor word; do printf "%s " "$word"; done\necho\n')
    stub.chmod(0o755)
    sums = subprocess.run(
        ["cksum"], input=(folder / "requirements.txt").read_bytes(), capture_output=True, check=True
    )
    (folder / ".venv/.requirements").write_bytes(sums.stdout)

    def run(*arguments: str, **settings: str) -> tuple[int, str]:
        environment = {"PATH": os.environ["PATH"], **settings}
        done = subprocess.run(
            [shell, str(folder / script), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    def make(name: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()

    assert run() == (
        2,
        MISSING.format("models/llava-1.5-7b-hf/config.json", "python -m ldm.registry pull llava-1.5-7b"),
    )
    make("models/llava-1.5-7b-hf/config.json")
    code, said = run()
    assert (code, "python -m llava_bifrost.build_dataset coco --config configs" in said) == (2, True)
    make("data/locator/coco_train/dataset.json")
    assert run("fit.batch=4") == (0, "-m llava_bifrost.train configs/llava_bifrost/train.yaml fit.batch=4 \n")
    code, said = run("model=models/none")
    assert (code, "models/none/config.json does not exist" in said) == (2, True)
    said = run(PROCESSES="4")[1]
    launch = "-m accelerate.commands.launch --quiet --num_processes 4 -m llava_bifrost.train"
    assert said == f"{launch} configs/llava_bifrost/train.yaml \n"
    assert run("configs/none.yaml")[0] == 2
    make("assets/tiny/locator/config.json")
    code, said = run("configs/llava_bifrost/train_smoke.yaml")
    assert code == 0
    assert [line.split()[1] for line in said.splitlines()] == [
        "datasets.scenes", "llava_bifrost.build_dataset", "llava_bifrost.train",
    ]  # fmt: skip
