"""Training of the locator on small random models: what is trained, resumes, merges, answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from datasets.relations import Place
from ldm.images import write_png
from ldm.mllm.model import load_model
from ldm.mllm.training import is_projector, load_adapter, make_trainable, save_model
from ldm.settings.cli import run_app
from ldm.settings.config import dump_yaml, write_config
from ldm.training.settings import FitConfig, LoraSettings
from llava_bifrost.build_dataset.records import Sample, read_records
from llava_bifrost.language.instruction import Request
from llava_bifrost.locator import CONFIG, LocatorConfig, load_locator, read_locator_config
from llava_bifrost.model import build_app as model_app
from llava_bifrost.train import TrainConfig, build_app
from llava_bifrost.training import LocatorData, fine_tune_locator, locator_config
from tests.ldm.small_mllm import build_small, small_folder

LONGER = ("llava_next", "qwen3_vl", "smolvlm")  # what they add is covered by the other tests of families
BRANCHES = ("llava", "qwen2_5_vl", *(pytest.param(name, marks=pytest.mark.slow) for name in LONGER))


def write_data(folder: Path, count: int = 12, fmt: str = "center") -> Path:
    """Images with one bright square; the answer is the square's box, its depth the brightness."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(count):
        x, y, side = (int(value) for value in rng.integers(8, 24, 3))
        image = np.full((48, 64, 3), 30, np.uint8)
        image[y : y + side, x : x + side] = 120 + 10 * index
        box = (x / 64, y / 48, (x + side) / 64, min((y + side) / 48, 1.0))
        location = Place.of(box, 0.3 + 0.05 * index, 0.3, min(0.4 + 0.05 * index, 1.0))
        place = Place.of((0.1, 0.1, 0.2, 0.2), 0.9)
        request = Request("dog", (("behind", "sofa"),)) if index % 3 else Request("dog", replace=True)
        sample = Sample(str(index), f"{index}.png", image, request, location, {"sofa": place}, "test")
        write_png(folder / "images" / f"{index}.png", image)
        records.append(sample.record(fmt, 3))
    path = folder / "dataset.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def config(model: Path, data: Path, out: Path, **fit: Any) -> TrainConfig:
    settings = {
        "steps": 6,
        "batch": 4,
        "workers": 0,
        "lr": 2e-3,
        "save_every": 3,
        "log_every": 1,
        "device": "cpu",
    }
    return TrainConfig(
        model, data, out, validation=data, validation_samples=4, measured=0, checked=0, dtype="fp32",
        projector_lr=1e-3, lora=LoraSettings(rank=4, alpha=8, dropout=0.1),
        fit=FitConfig(**{**settings, "schedule": "constant", "validate_every": 6, **fit}),
    )  # fmt: skip


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("family", BRANCHES)
def test_each_family_trains_and_answers(family: str, data: Path, tmp_path: Path):
    base = small_folder(family, tmp_path / "base")
    settings = config(base, data, tmp_path / "run")
    fine_tune_locator(TrainConfig(**{**vars(settings), "measured": 1, "checked": 1}))
    rows = table(tmp_path / "run" / "metrics.csv")
    assert len(rows) == 6
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert {"loss", "parsed", "iou", "depth_error", "satisfied"} <= set(
        table(tmp_path / "run" / "validation.csv")[0]
    )
    report = json.loads((tmp_path / "run" / "check.json").read_text())
    assert report["answered"] == 1
    assert 0 <= report["free_answers_that_parse"] <= 1
    locator = load_locator(tmp_path / "run" / "model", "cpu")
    assert locator.codec.name == read_locator_config(base, family).codec
    asked = locator.locate(np.zeros((48, 64, 3), np.uint8), "Place the dog behind the sofa")[0]
    assert asked.text
    again = PeftModel.from_pretrained(
        load_model(base, torch.float32), str(tmp_path / "run" / "adapter")
    ).eval()
    batch = locator.chat.prompts(asks_of(data, locator))
    with torch.no_grad():
        torch.testing.assert_close(
            again(**batch).logits, locator.mllm.model(**batch).logits, atol=2e-4, rtol=1e-3
        )


def asks_of(data: Path, locator: Any) -> list[Any]:
    items = LocatorData(read_records(data), locator.codec, locator.mllm.processor)
    return [items[0], items[1]]


def test_only_language_model_and_projector_are_trained(data: Path, tmp_path: Path):
    base = small_folder("llava", tmp_path / "base")
    fine_tune_locator(config(base, data, tmp_path / "run"))
    before = load_file(base / "model.safetensors")
    after = load_file(next((tmp_path / "run" / "model").glob("*.safetensors")))
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    projector = {key for key in before if is_projector(key)}
    layers = {key for key in before if "language_model" in key and key.endswith("_proj.weight")}
    assert changed == projector | layers
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    newest = load_file(tmp_path / "run" / "checkpoint-6" / "adapter" / "adapter_model.safetensors")
    assert adapter.keys() == newest.keys()
    assert all(torch.equal(adapter[key], newest[key]) for key in adapter)


def test_projector_has_a_rate_of_its_own(data: Path, tmp_path: Path):
    base = small_folder("llava", tmp_path / "base")
    frozen = config(base, data, tmp_path / "run", steps=2)
    fine_tune_locator(TrainConfig(**{**vars(frozen), "projector_lr": 0.0}))
    before, after = (
        load_file(base / "model.safetensors"),
        load_file(tmp_path / "run" / "model" / "model.safetensors"),
    )
    assert all(torch.equal(before[key], after[key]) for key in before if is_projector(key))
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_an_interrupted_run_ends_the_same(data: Path, tmp_path: Path):
    base = small_folder("llava", tmp_path / "base")
    quick = {"measured": 0, "checked": 0, "merge": False}
    for run, steps in (("whole", 6), ("parts", 3), ("parts", 6)):
        fine_tune_locator(TrainConfig(**{**vars(config(base, data, tmp_path / run, steps=steps)), **quick}))
    names = ("step", "epoch", "loss", "lr", "grad_norm")
    curves = [
        [[float(row[name]) for name in names] for row in table(tmp_path / run / "metrics.csv")]
        for run in ("whole", "parts")
    ]
    assert curves[0] == curves[1]
    whole, parts = (
        load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("whole", "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_merge_command(data: Path, tmp_path: Path):
    """From a checkpoint in the middle of a run; logits are those of the adapter on its base."""
    base = small_folder("llava", tmp_path / "base")
    fine_tune_locator(TrainConfig(**{**vars(config(base, data, tmp_path / "run")), "merge": False}))
    assert not (tmp_path / "run" / "model").exists()
    adapter, out = tmp_path / "run" / "checkpoint-3" / "adapter", tmp_path / "merged"
    arguments = [
        "merge",
        "--adapter",
        str(adapter),
        "--base",
        str(base),
        "--out",
        str(out),
        "--dtype",
        "fp32",
    ]
    assert run_app(model_app, arguments) == 0
    locator = load_locator(out, "cpu")
    assert locator.config == read_locator_config(adapter, "llava")
    wanted = load_adapter(load_model(base, torch.float32), adapter).eval()
    batch = locator.chat.prompts(asks_of(data, locator))
    with torch.no_grad():
        torch.testing.assert_close(
            locator.mllm.model(**batch).logits, wanted(**batch).logits, atol=1e-4, rtol=1e-3
        )
        untrained = load_model(base, torch.float32).eval()(**batch).logits
    assert not torch.allclose(untrained, wanted(**batch).logits, atol=1e-3)


def test_whole_language_model_without_lora(data: Path, tmp_path: Path):
    base = small_folder("llava_words", tmp_path / "base")
    settings = config(base, data, tmp_path / "run")
    fine_tune_locator(
        TrainConfig(
            **{**vars(settings), "lora": LoraSettings(rank=0), "decimals": 2, "gradient_checkpointing": False}
        )
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "run" / "model"))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert not any("vision_tower" in key for key in changed)


def test_a_trained_locator_looks(tmp_path: Path):
    """Six images, two questions: the answers follow the images, without any constraint."""
    data = write_data(tmp_path / "data", 6)
    base = small_folder("llava_words", tmp_path / "base")
    changes = {"lora": LoraSettings(rank=0), "decimals": 2, "checked": 6, "measured": 6, "projector_lr": 5e-3}
    settings = config(base, data, tmp_path / "run", steps=40, lr=8e-3, batch=6, validate_every=40)
    fine_tune_locator(TrainConfig(**{**vars(settings), **changes}))
    report = json.loads((tmp_path / "run" / "check.json").read_text())
    assert report["free_answers_that_parse"] == 6
    assert len({one["free"] for one in report["answers"]}) == 6
    assert all(one["free"] == one["constrained"] for one in report["answers"])
    (row,) = table(tmp_path / "run" / "validation.csv")
    assert (float(row["parsed"]), float(row["depth_error"])) == (1, pytest.approx(0, abs=0.011))
    assert float(row["iou"]) > 0.9


def test_bf16_weights_below_trained_fp32(data: Path, tmp_path: Path):
    base = small_folder("llava", tmp_path / "base")
    settings = config(base, data, tmp_path / "run", steps=2, precision="bf16")
    fine_tune_locator(TrainConfig(**{**vars(settings), "dtype": "bf16"}))
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.float32}
    merged_weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {value.dtype for value in merged_weights.values()} == {torch.bfloat16}
    assert merged_weights.keys() == load_file(base / "model.safetensors").keys()
    assert all(key.startswith(("language_model.", "vision_tower.", "multi_modal_")) for key in merged_weights)


def test_targets_leave_the_vision_tower_alone():
    model = make_trainable(build_small("llava")[0], LoraSettings(rank=2, alpha=4))
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    assert sum("lora_A" in name for name in names) == 2 * 7
    assert not [name for name in names if "vision_tower" in name]
    assert sum(is_projector(name) for name in names) == 4
    with pytest.raises(ValueError, match="no layer called qkv"):
        make_trainable(build_small("llava")[0], LoraSettings(targets=("qkv",)))


def test_adapters_of_other_models_are_refused(tmp_path: Path):
    model = make_trainable(build_small("llava")[0], LoraSettings(rank=2, alpha=4))
    model.save_pretrained(str(tmp_path))
    whole = load_adapter(build_small("llava")[0], tmp_path).merge_and_unload()
    assert isinstance(whole, type(build_small("llava")[0]))
    with pytest.raises(ValueError, match="unexpected|shape|Target modules"):
        load_adapter(build_small("smolvlm")[0], tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({"a": torch.ones(1), "x": print}, tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model.bin: refused: .* builtins.print"):
        load_adapter(build_small("llava")[0], tmp_path)
    (tmp_path / "non_lora_trainables.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="llava_bifrost.model convert"):
        load_adapter(build_small("llava")[0], tmp_path)


def test_command_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = small_folder("llava", tmp_path / "base")
    settings = config(base, data, tmp_path / "run", steps=1)
    path = tmp_path / "run.yaml"
    path.write_text(dump_yaml(settings))
    assert run_app(build_app, [str(path), "checked=1", "measured=0"]) == 0
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "model")
    assert run_app(build_app, [str(path), "dtype=bf16"]) == 2
    assert "dtype=bf16 needs fit.precision=bf16" in capsys.readouterr().err
    assert run_app(build_app, [str(path), "codec=xml"]) == 2


def test_settings_follow_the_configuration_of_the_start(data: Path, tmp_path: Path):
    base = small_folder("llava_words", tmp_path / "base")
    plain = config(base, data, tmp_path / "run")
    assert locator_config(plain, "llava") == LocatorConfig(template="vicuna_v1")
    write_config(base / CONFIG, LocatorConfig(decimals=2, names=("dog",), notice="small"))
    taken = locator_config(TrainConfig(**{**vars(plain), "decimals": 2}), "llava")
    assert taken == LocatorConfig(decimals=2, names=("dog",), notice="small")
    assert locator_config(plain, "qwen2_5_vl").template is None
    assert locator_config(TrainConfig(**{**vars(plain), "codec": "square"}), "llava").codec == "square"


def test_a_saved_locator_does_not_depend_on_the_answers_before(data: Path, tmp_path: Path):
    model, processor = build_small("llava")
    saved = []
    for name in ("before", "after"):
        save_model(model, processor, tmp_path / name, CONFIG, LocatorConfig())
        saved.append((tmp_path / name / "tokenizer.json").read_bytes())
        processor.tokenizer(["dog", "red cube"], padding=True)
    assert saved[0] == saved[1]


@pytest.mark.parametrize("name", ["adapter", "model", "checkpoint-3"])
def test_what_was_not_trained_here_stays(data: Path, tmp_path: Path, name: str):
    (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / name / "weights.safetensors").write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"{name} was not trained here: .*choose another out"):
        fine_tune_locator(config(tmp_path / "base", data, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").rglob("*")] == [name, "weights.safetensors"]
