"""Answers are made anew where what decides them has changed; the earlier ones stay beside the new ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.images import write_png
from ldm.settings.cli import run_app
from llava_bifrost.predict.__main__ import build_app
from llava_bifrost.predict.run import fingerprints
from llava_bifrost.settings import PredictJobs

TEXT = "Place the cup on the table"


@pytest.fixture
def settings(tmp_path: Path) -> PredictJobs:
    """Settings with folders of files that hash like models, an image and a file of anchors."""
    for name in ("locator", "depth"):
        (tmp_path / name).mkdir()
        save_file({"a": torch.zeros(2)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    write_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "anchors.json").write_text("{}")
    (tmp_path / "jobs.jsonl").touch()
    return PredictJobs(
        jobs=tmp_path / "jobs.jsonl",
        locator=str(tmp_path / "locator"),
        depth_model=tmp_path / "depth",
        anchors=tmp_path / "anchors.json",
    )


def weights(folder: Path) -> None:
    file = folder / "locator" / "model.safetensors"
    save_file({key: value + 1 for key, value in load_file(file).items()}, file)


CHANGES = {
    "nothing": lambda folder: None,
    "notes": lambda folder: (folder / "locator" / "README.md").write_text("x"),
    "weights": weights,
    "configuration": lambda folder: (folder / "locator" / "config.json").write_text("{} "),
    "depth network": lambda folder: (folder / "depth" / "config.json").write_text("{} "),
    "image": lambda folder: write_png(folder / "a.png", np.ones((8, 8, 3), np.uint8)),
    "anchors": lambda folder: (folder / "anchors.json").write_text("[]"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_an_answer(settings: PredictJobs, tmp_path: Path, change: str) -> None:
    jobs = [{"id": "1", "image": "a.png", "instruction": TEXT, "folder": tmp_path}]
    before = fingerprints(settings, jobs)
    CHANGES[change](tmp_path)
    assert (fingerprints(settings, jobs) == before) == (change in ("nothing", "notes"))


def test_changed_jobs_are_answered_anew_and_the_file_before_is_kept(tmp_path: Path) -> None:
    places = {"bed": {"box": [0.2, 0.3, 0.6, 0.9]}, "sofa": {"box": [0.1, 0.3, 0.3, 0.9]}}
    for name in ("a", "b"):
        write_png(tmp_path / f"{name}.png", np.zeros((32, 48, 3), np.uint8))
    depth = Path(shutil.copytree("assets/tiny/depth", tmp_path / "depth"))

    def answer(*texts: str) -> list[dict]:
        lines = [
            json.dumps({"image": f"{name}.png", "instruction": text, "anchors": places})
            for name, text in zip("ab", texts, strict=True)
        ]
        (tmp_path / "j.jsonl").write_text("\n".join(lines) + "\n")
        argv = [
            "jsonl",
            "--jobs",
            f"{tmp_path}/j.jsonl",
            "--locator",
            "geometric",
            "--depth-model",
            str(depth),
        ]
        assert run_app(build_app, argv) == 0
        return [json.loads(line) for line in (tmp_path / "j.answers.jsonl").read_text().splitlines()]

    first = answer("Place the cup on the bed", "Place the cup on the sofa")
    assert answer("Place the cup on the bed", "Place the cup on the sofa") == first
    second = answer("Place the cup on the bed", "Place the cup on the bed")
    assert second[0] == first[0]
    assert second[1]["instruction"] == "Place the cup on the bed"
    kept = (tmp_path / "j.answers.old1.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == first
    without = [{key: value for key, value in line.items() if key != "made_by"} for line in second]
    (tmp_path / "j.answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in without))
    assert answer("Place the cup on the bed", "Place the cup on the bed") == without  # of an earlier version
