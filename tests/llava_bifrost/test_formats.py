"""Depths of the centre and medians are not mixed in training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llava_bifrost.build_dataset.records import read_records
from llava_bifrost.language.answer import AnswerError, answer_numbers
from llava_bifrost.train import TrainConfig
from llava_bifrost.training import fine_tune_locator
from tests.ldm.small_mllm import small_folder
from tests.llava_bifrost.test_train import config, write_data


@pytest.mark.parametrize(
    ("text", "fmt"),
    [
        ("[0.1, 0.2, 0.3, 0.4], 0.5.", "center"),
        ("[0.1, 0.2, 0.3, 0.4], 0.9, 0.5, 0.1.", "maxmedmin"),
        ("0.1 0.2 0.3 0.4 0.5", "center"),
        ("(0.1, 0.2, 0.3, 0.4) 0.9 0.5 0.1", "maxmedmin"),
    ],
)
def test_the_number_of_depths_tells_the_format(text: str, fmt: str):
    assert len(answer_numbers(text)[1]) == {"center": 1, "maxmedmin": 3}[fmt]


def test_what_is_no_answer_has_no_format():
    with pytest.raises(AnswerError, match="1 or 3 depths, got 4 and 2"):
        answer_numbers("[0.1, 0.2, 0.3, 0.4], 0.9, 0.5.")


def training(folder: Path, data: Path, fmt: str) -> TrainConfig:
    base = folder / "base"
    plain = config(base if base.is_dir() else small_folder("llava", base), data, folder / "run")
    return replace(plain, format=fmt)


@pytest.mark.parametrize("built", ["center", "maxmedmin"])
def test_data_of_another_format_are_refused(tmp_path: Path, built: str):
    other = {"center": "maxmedmin", "maxmedmin": "center"}[built]
    data = write_data(tmp_path / "data", 4, built)
    assert {record.format for record in read_records(data)} == {built}
    message = (
        f"record 0 answers in format {built}, training in {other}: .*Build the data with --format {other}"
    )
    with pytest.raises(ValueError, match=message):
        fine_tune_locator(training(tmp_path, data, other))
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_one_record_of_another_format_is_named(tmp_path: Path):
    data, odd = write_data(tmp_path / "data", 4), write_data(tmp_path / "odd", 4, "maxmedmin")
    records = json.loads(data.read_text())
    records[2] = json.loads(odd.read_text())[2]
    data.write_text(json.dumps(records))
    with pytest.raises(ValueError, match="record 2 answers in format maxmedmin"):
        fine_tune_locator(training(tmp_path, data, "center"))
    whole = write_data(tmp_path / "whole", 4)
    with pytest.raises(ValueError, match=r"odd/dataset.json: record 0 answers in format maxmedmin"):
        fine_tune_locator(replace(training(tmp_path, whole, "center"), validation=odd))
