"""The six recipes of the prompt writer: tests that continue, released adapters, full training, mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from inpainting.config_path import find_config
from inpainting.models.image_to_text import training
from inpainting.models.image_to_text.evaluation.predictions import read_predictions
from inpainting.models.image_to_text.fine_tune_llavanext import build_app
from inpainting.models.image_to_text.settings import RECIPE, PromptTraining
from inpainting.models.image_to_text.training import (
    HeldOutTest,
    checkpoint_of,
    open_mllm,
    train_prompt_writer,
)
from ldm.mllm import model as mllm_model
from ldm.mllm.model import load_model
from ldm.settings.cli import run_app
from ldm.settings.config import load_config
from tests.inpainting.prompt_job import NAMES, RECIPES, adapter, recipe, table, write_job
from tests.inpainting.small_paintings import write_paintings
from tests.ldm.small_mllm import small_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run of the MultiMask recipe of 4 steps."""
    train_prompt_writer(
        recipe(folder, folder / "whole", "train/llava_multimask", "fit.steps=4", "val.instances=0")
    )
    return folder / "whole"


def test_a_test_continues_where_it_stopped(folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch):
    changes = ("val.batch=1", "checkpoint=checkpoint-4", f"predictions={folder / 'tested'}")
    config = recipe(folder, whole, "test/llava_multimask", *changes)
    asked: list[str] = []
    original = HeldOutTest.predictions

    def dying(self: Any, items: Any) -> Any:
        asked.extend(item["image_stems"] for item in items)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return original(self, items)

    monkeypatch.setattr(HeldOutTest, "predictions", dying)
    with pytest.raises(KeyboardInterrupt):
        train_prompt_writer(config)
    assert train_prompt_writer(config) == folder / "tested"
    assert asked == ["test_0", "test_1", "test_2", "test_2"]
    rows = read_predictions(folder / "tested" / "predictions.jsonl")
    assert [row.stem for row in rows] == ["test_0", "test_1", "test_1", "test_2", "test_2", "test_2"]
    report = json.loads((folder / "tested" / "metrics.json").read_text())
    assert (report["images"], report["regions"], report["left_out"]) == (3, 6, {})
    assert report["accuracy"] is not None
    assert set(report["weights"]) == {"model", "checkpoint"}
    assert (folder / "tested" / "sheet.png").is_file()
    with pytest.raises(ValueError, match="was begun with seed"):
        train_prompt_writer(recipe(folder, whole, "test/llava_multimask", *changes, "fit.seed=7"))


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_opens_and_runs(name: str, folder: Path, whole: Path, tmp_path: Path):
    """The test recipes on the adapter of `whole`; without bitsandbytes nothing is quantised."""
    published = load_config(PromptTraining, RECIPES / f"{name}.yaml")
    assert published.lora == RECIPE
    assert (published.fit.lr, published.fit.batch, published.fit.clip, published.fit.seed) == (
        2e-4,
        8,
        0.5,
        42,
    )
    if name.startswith("train"):
        assert not published.only_val
        return
    assert (published.val.split, published.val.instances) == ("test", 5000)
    known = {"test/llava_prompt": "none"}
    assert published.checkpoint == known.get(name, "latest")
    out = train_prompt_writer(recipe(folder, whole, name, f"checkpoint={known.get(name, 'checkpoint-4')}",
                       f"predictions={tmp_path}"))  # fmt: skip
    rows = read_predictions(out / "predictions.jsonl")
    colors = {row.color for row in rows}
    assert (colors == {"gray"}) == (name != "test/llava_multimask")
    assert len(rows) == (6 if name == "test/llava_multimask" else 3)
    assert all(row.prediction for row in rows) or name != "test/llava_prompt"


def test_names_of_the_published_readme_lead_to_the_recipes(caplog: pytest.LogCaptureFixture):
    for name in NAMES:
        assert find_config(Path(f"models/configs/image_to_text/{name}.yaml")) == Path(
            f"configs/inpainting/image_to_text/{name}.yaml"
        )
    for start in ("models/configs", "configs/inpainting"):
        found = find_config(Path(f"{start}/image_to_text/test/config_base.yaml"))
        assert found == Path("configs/inpainting/image_to_text/test/llava_prompt.yaml")


def test_numbers_of_a_test_go_to_the_tracker(folder: Path, whole: Path, tmp_path: Path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    changes = (
        "checkpoint=checkpoint-4",
        f"predictions={tmp_path}",
        "fit.tracker=tensorboard",
        "val.instances=1",
    )
    train_prompt_writer(recipe(folder, whole, "test/llava_multimask", *changes))
    read = events.EventAccumulator(str(next(whole.rglob("events.out*")).parent))
    read.Reload()
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert read.Scalars("val/accuracy")[0].value == pytest.approx(report["accuracy"])
    assert "val/rougeL_fmeasure_last" in read.Tags()["scalars"]


def test_the_language_model_itself_trains(folder: Path, tmp_path: Path):
    changes = ("fine_tuning_type=full", "fit.steps=2", "val.constrained=true")
    out = train_prompt_writer(recipe(folder, tmp_path, "train/llava_multimask", *changes))
    assert out == tmp_path / "model"
    before, after = (load_model(place, torch.float32).state_dict() for place in (folder / "base", out))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert not any("vision_tower" in key for key in changed)
    rows = read_predictions(tmp_path / "validation" / "predictions.jsonl")
    assert all(row.prediction for row in rows)  # constrained
    config = recipe(folder, tmp_path, "test/llava_multimask", *changes, "checkpoint=latest")
    again = open_mllm(config, torch.device("cpu"), checkpoint_of(config)).model.state_dict()
    assert all(torch.equal(again[key], after[key]) for key in changed)


def test_the_released_names_of_layers_are_read(folder: Path, whole: Path, tmp_path: Path):
    """An adapter in a project_dir, its layers named as in the released one, answers like ours."""

    def old(name: str) -> str:
        return name.replace("model.language_model.layers", "language_model.model.layers")

    released = tmp_path / "checkpoint-4" / "adapter"
    shutil.copytree(whole / "checkpoint-4", released.parent)
    weights = {old(key): value for key, value in adapter(released).items()}
    assert not weights.keys() & adapter(released).keys()
    save_file(weights, released / "adapter_model.safetensors")
    settings = json.loads((released / "adapter_config.json").read_text())
    modules = {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in weights}
    (released / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": sorted(modules)}))
    outs = [
        train_prompt_writer(
            recipe(folder, project, "test/llava_multimask", "checkpoint=checkpoint-4", f"predictions={out}")
        )
        for project, out in ((whole, tmp_path / "ours"), (tmp_path, tmp_path / "theirs"))
    ]
    lines = [(out / "predictions.jsonl").read_text() for out in outs]
    assert lines[0] == lines[1]
    (released.parent / "state.pt").unlink()
    with pytest.raises(ValueError, match="was not trained here.*choose another project_dir"):
        train_prompt_writer(recipe(folder, tmp_path, "train/llava_multimask"))


@pytest.mark.parametrize("where", ["checkpoint-4/adapter", "adapter", "model"])
def test_released_weights_in_the_run_folder_stay(folder: Path, whole: Path, tmp_path: Path, where: str):
    shutil.copytree(whole / "adapter", tmp_path / where)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"was not trained here.*choose another project_dir; resume_from="):
        train_prompt_writer(recipe(folder, tmp_path, "train/llava_multimask"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_begins_with_a_released_adapter(folder: Path, whole: Path, tmp_path: Path):
    changes = ("fit.steps=1", "fit.lr=0", "val.instances=0")
    for number, source in enumerate((whole / "adapter", whole / "checkpoint-4")):
        out = tmp_path / str(number)
        options = (f"resume_from={source}", *changes)
        train_prompt_writer(recipe(folder, out, "train/llava_multimask", *options))
        stored, wanted = adapter(out / "adapter"), adapter(whole / "adapter")
        assert all(torch.equal(stored[key], value) for key, value in wanted.items())
    for change, message in (
        ("lora.alpha=16", "its LoRA scale is 2, lora.alpha / lora.rank is 4"),
        ("lora.targets=[q_proj]", "not an adapter of these lora settings: 0 weights missing"),
        (f"resume_from={tmp_path}", "there is no file|adapter_config.json"),
    ):
        options = (f"resume_from={whole / 'adapter'}", *changes, change)
        with pytest.raises(ValueError, match=message):
            train_prompt_writer(recipe(folder, tmp_path / "refused", "train/llava_multimask", *options))
    with pytest.raises(ValueError, match=r"a whole model to train on from is model=FOLDER"):
        recipe(folder, tmp_path, "train/llava_multimask", f"resume_from={whole}", "fine_tuning_type=full")


def test_a_projector_may_train_beside_the_adapter(folder: Path, tmp_path: Path):
    changes = ("lora.projector=true", "fit.steps=1", "val.instances=1")
    train_prompt_writer(recipe(folder, tmp_path, "train/llava_multimask", *changes))
    assert any("multi_modal_projector" in key for key in adapter(tmp_path / "adapter"))
    first = (tmp_path / "validation" / "predictions.jsonl").read_text()
    config = recipe(folder, tmp_path, "test/llava_multimask", "checkpoint=latest", "val.split=val", *changes)
    assert (train_prompt_writer(config) / "predictions.jsonl").read_text() == first
    other = small_folder("llava_next", tmp_path / "wider", seed=1)
    text = (other / "config.json").read_text()
    (other / "config.json").write_text(text.replace('"intermediate_size": 48', '"intermediate_size": 40'))
    with pytest.raises(ValueError, match="do not fit its config.json"):
        train_prompt_writer(
            recipe(folder, tmp_path, "test/llava_multimask", "checkpoint=latest", f"model={other}")
        )


def test_four_bits_where_they_work(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a stand-in for bitsandbytes: what it is asked for, and that its model trains an adapter."""
    asked: dict[str, Any] = {}

    def opened(place: Path, **options: Any) -> Any:
        asked.update(options, place=place)
        model: Any = AutoModelForImageTextToText.from_pretrained(place, dtype=torch.float32)
        model.is_loaded_in_4bit = True
        return model

    monkeypatch.setattr(training, "four_bit_works", lambda: True)
    monkeypatch.setattr(mllm_model.transformers, "BitsAndBytesConfig", dict)
    monkeypatch.setattr(mllm_model, "AutoModelForImageTextToText", SimpleNamespace(from_pretrained=opened))
    train_prompt_writer(recipe(folder, tmp_path, "train/llava_multimask", "fit.steps=1", "val.instances=0"))
    assert asked["quantization_config"] == {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16
    }  # fmt: skip
    assert asked["place"] == folder / "base"
    assert asked["device_map"] == {"": torch.device("cpu")}
    assert adapter(tmp_path / "adapter")


def test_the_model_learns_to_answer_and_to_stop(folder: Path, tmp_path: Path):
    """Two images with one region each, known by heart: held-out copies of them are answered rightly."""
    data = write_paintings(tmp_path / "data", {"train": 4})
    for k in (1, 2):
        (data / "images" / "train" / f"train_{k}.jpg").unlink()
    shutil.copytree(data / "images" / "train", data / "images" / "val")
    changes = (f"data.data_dir={data}", "fine_tuning_type=full", "fit.steps=40", "fit.batch=2", "fit.lr=8e-3")
    more = (
        "val.max_new_tokens=40",
        "fit.schedule=cosine",
        "fit.log_every=50",
        "gradient_checkpointing=false",
    )
    train_prompt_writer(
        recipe(folder, tmp_path / "run", "train/llava_1mask", *changes, *more, "fit.validate_every=40")
    )
    rows = read_predictions(tmp_path / "run" / "validation" / "predictions.jsonl")
    assert [row.prediction for row in rows] == ["a red cube", "a yellow cube"]
    assert float(table(tmp_path / "run" / "validation.csv")[-1]["accuracy"]) == 1.0


def test_mistakes_are_one_line(
    folder: Path, tmp_path: Path, capsys: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
):
    published = "--config-path=models/configs/image_to_text/train/llava_multimask.yaml"
    assert run_app(build_app, ["train", published, "fine_tuning_type=quantized"]) == 2
    assert "trains nothing; set only_val=true" in capsys.readouterr().err
    assert run_app(build_app, ["train", published, "fine_tuning_type=lora", "lora.rank=0"]) == 2
    assert "needs lora.rank of at least 1" in capsys.readouterr().err
    assert run_app(build_app, ["train", "--config-path=models/configs/image_to_text/none.yaml"]) == 2
    assert "there is no file" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds no such checkpoint .there: none."):
        train_prompt_writer(recipe(folder, tmp_path, "test/llava_multimask"))
    config = recipe(folder, tmp_path, "train/llava_multimask")
    monkeypatch.setenv("BIFROST_MODELS", str(folder))
    named = recipe(folder, tmp_path, "train/llava_multimask", "model=somebody/base")
    assert open_mllm(named, torch.device("cpu")).folder == folder / "base"  # where the registry puts models
    assert "4-bit weights need CUDA and bitsandbytes" in caplog.text
    path = folder / "data" / "entities" / "val_0" / "annotations.json"
    text = path.read_text()
    path.write_text(text.replace("noun_chunk_root", "root"))
    with pytest.raises(ValueError, match="extract-noun-chunk-roots"):
        train_prompt_writer(config)
    path.write_text(text)
