"""The real trackers, where they are installed: what stands in their files after an interrupted run."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cldm.training.run import train
from cldm.training.settings import RunConfig
from ldm.images import read_image
from tests.cldm.test_train import scenes
from tests.cldm.test_train_run import rows, with_trainer
from tests.cldm.test_train_validation import others, table, validated
from tests.ldm.fit_job import train as fit_numbers

__all__ = ["others", "scenes"]  # fixtures
pytestmark = pytest.mark.slow

BLOCK, HEADER, LAST = 32768, 7, (1, 4)  # of LevelDB's log format: block, header; kinds of a last part


@pytest.fixture
def config(scenes: Path, others: Path, tmp_path: Path) -> RunConfig:
    config = validated(tmp_path / "run", scenes, others, 5, every=2)
    return with_trainer(config, save_every=2, sample_every=2, keep=9)


def wandb_records(file: Path) -> Iterator[Any]:
    """The whole records of a .wandb file; its reader is not part of the Python package any more."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        if at + HEADER + length > len(data):
            return
        record += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in LAST:
            yield Record.FromString(record)
            record = b""


def wandb_run(file: Path) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """The id of the run of a file, its settings and its rows."""
    run, settings, history = "", dict[str, Any](), list[dict[str, Any]]()
    found: list[tuple[str, Any]] = []
    for _ in range(600):  # the process that writes the file is not done when `finish` returns
        found = [(record.WhichOneof("record_type"), record) for record in wandb_records(file)]
        if "exit" in [kind for kind, _ in found]:
            break
        time.sleep(0.05)
    for kind, record in found:
        if kind == "run":
            run = record.run.run_id
        if kind in ("run", "config"):
            updates = record.run.config.update if kind == "run" else record.config.update
            settings |= {(one.key or one.nested_key[0]): json.loads(one.value_json) for one in updates}
        if kind == "history":
            items = ((one.key or "/".join(one.nested_key), one.value_json) for one in record.history.item)
            history.append({key: json.loads(value) for key, value in items})
    return run, settings, history


def test_wandb_goes_on_with_a_run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = with_trainer(config, tracker="wandb")
    elsewhere = replace(config, out=config.out.with_name("other"))
    train(with_trainer(config, max_steps=2))
    assert wandb.run is None, "the next run in this process has one of its own"
    train(with_trainer(elsewhere, max_steps=2))
    train(config)
    files = sorted(config.out.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    parts = [wandb_run(file) for file in files]
    assert len(parts) == 2
    assert {run for run, *_ in parts} == {(config.out / "tracker_id.txt").read_text().strip()}
    assert [settings["trainer"]["max_steps"] for _, settings, _ in parts] == [2, 5]
    assert all(settings["pair"]["hf_mode"] == "cutout" for _, settings, _ in parts)
    sent = [row for *_, history in parts for row in history]
    losses = {row["trainer/global_step"]: row["loss"] for row in sent if "loss" in row}
    assert [row["trainer/global_step"] for row in sent if "loss" in row] == [1, 2, 3, 4, 5]
    assert losses == {int(row["step"]): pytest.approx(float(row["loss"])) for row in rows(config.out)}
    held_out = [
        (row["trainer/global_step"], row["validation/loss"]) for row in sent if "validation/loss" in row
    ]
    assert held_out == [(int(row["step"]), pytest.approx(float(row["loss"]))) for row in table(config.out)]
    sheets = [row for row in sent if "samples/filenames" in row]
    assert [row["trainer/global_step"] for row in sheets] == [2, 4]
    for file, step in zip(files, (2, 4), strict=True):
        ours_u8 = read_image(config.out / f"samples/step-{step:08d}.png").rgb_u8
        (theirs,) = file.parent.rglob("samples_*.png")
        assert (read_image(theirs).rgb_u8 == ours_u8).all()
    (other,) = elsewhere.out.glob("wandb/offline-run-*/*.wandb")
    assert wandb_run(other)[0] == (elsewhere.out / "tracker_id.txt").read_text().strip() != parts[0][0]


@pytest.mark.parametrize("killed", [False, True])
def test_tensorboard_goes_on_with_a_run(config: RunConfig, killed: bool) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = with_trainer(config, tracker="tensorboard")
    train(with_trainer(config, max_steps=3 if killed else 2))
    if killed:  # after step 3 was sent and before its checkpoint was written
        shutil.rmtree(config.out / "checkpoints/step-00000003")
    train(config)
    read = events.EventAccumulator(str(config.out / "tensorboard"), size_guidance={events.IMAGES: 0})
    read.Reload()
    losses = [(one.step, pytest.approx(one.value)) for one in read.Scalars("loss")]
    assert losses == [(int(row["step"]), float(row["loss"])) for row in rows(config.out)]
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5]
    held_out = [(one.step, pytest.approx(one.value)) for one in read.Scalars("validation/loss")]
    assert held_out == [(int(row["step"]), float(row["loss"])) for row in table(config.out)]
    sheets = read.Images("samples")
    assert [one.step for one in sheets] == [2, 4]
    for one in sheets:
        file = config.out / f"samples/step-{one.step:08d}.png"
        theirs = read_image("sheet", one.encoded_image_string).rgb_u8
        assert (theirs == read_image(file).rgb_u8).all()
    sent = read.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"pair/hf_mode" in sent
    assert b"cutout" in sent


def steps_of(rows: list[dict[str, Any]], name: str) -> list[int]:
    return [row["_step"] for row in rows if name in row]


def test_wandb_goes_on_with_a_run_of_the_other_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    out, given = tmp_path / "run", ["schedule=constant", "tracker=wandb"]
    for steps in (3, 7):
        fit_numbers(out, [*given, f"steps={steps}"])
    assert not (tmp_path / "wandb").exists(), "nothing is written beside the run"
    files = sorted(out.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    parts = [wandb_run(file) for file in files]
    assert [run for run, *_ in parts] == [(out / "tracker_id.txt").read_text().strip()] * 2
    assert [settings["steps"] for _, settings, _ in parts] == [3, 7]
    assert [settings["betas"] for _, settings, _ in parts] == ["(0.9, 0.999)"] * 2
    assert [step for *_, history in parts for step in steps_of(history, "train/loss")] == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
    ]


@pytest.mark.parametrize("killed", [False, True])
def test_tensorboard_goes_on_with_a_run_of_the_other_loop(tmp_path: Path, killed: bool) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    given = ["schedule=constant", "tracker=tensorboard", "save_every=2"]
    fit_numbers(tmp_path, [*given, "steps=3"])
    if killed:
        shutil.rmtree(tmp_path / "checkpoint-3")
    time.sleep(1.1 - time.time() % 1)  # tensorboard orders its files by the second
    fit_numbers(tmp_path, [*given, "steps=7"])
    read = events.EventAccumulator(str(tmp_path / tmp_path.name))
    read.Reload()
    losses = [(one.step, pytest.approx(one.value)) for one in read.Scalars("train/loss")]
    assert losses == [(int(row["step"]), float(row["loss"])) for row in rows(tmp_path)]
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6, 7]
    sent = [yaml.safe_load(file.read_text()) for file in sorted(tmp_path.rglob("hparams.yml"))]
    assert [(one["steps"], one["betas"]) for one in sent] == [(3, "(0.9, 0.999)"), (7, "(0.9, 0.999)")]
