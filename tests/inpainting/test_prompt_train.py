"""Training the prompt writer: what is written, adapters that peft loads, runs that end the same when cut."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from inpainting.models.image_to_text import training
from inpainting.models.image_to_text.dataset import LlavaDataset
from inpainting.models.image_to_text.evaluation.predictions import read_predictions
from inpainting.models.image_to_text.settings import LlavaOptions, PromptTraining
from inpainting.models.image_to_text.training import train_prompt_writer
from inpainting.models.image_to_text.writer import PromptWriter
from inpainting.prompts import CONFIG_FILE, PrompterConfig, discover_question
from ldm.images import read_image
from ldm.mllm.model import ChatExample, load_model
from ldm.mllm.training import answer_loss
from ldm.settings.config import dump_yaml, load_config, read_config
from tests.conftest import ROOT
from tests.inpainting.prompt_job import adapter, curve, recipe, table, write_job
from tests.ldm.test_fit import environment, kill_after_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run of the MultiMask recipe: 2 epochs of 2 steps."""
    config = recipe(folder, folder / "whole", "train/llava_multimask", "fit.epochs=2")
    assert train_prompt_writer(config) == folder / "whole" / "adapter"
    return folder / "whole"


def test_files_of_a_run(folder: Path, whole: Path):
    assert {one.name for one in whole.iterdir()} == {
        *("config.yaml", "metrics.csv", "validation.csv", "validation", "adapter"),
        *("checkpoint-2", "checkpoint-4"),
    }
    assert {one.name for one in (whole / "validation").iterdir()} == {
        "predictions.jsonl", "metrics.json", "sheet.png"
    }  # fmt: skip
    assert len(curve(whole)) == 4
    assert all(row["grad_norm"] != "nan" for row in table(whole / "metrics.csv"))
    held_out = table(whole / "validation.csv")
    assert [row["step"] for row in held_out] == ["2", "4"]
    assert {"loss", "accuracy", "accuracy_last", "bleu1", "bleu4", "rougeL_fmeasure"} <= set(held_out[0])
    rows = read_predictions(whole / "validation" / "predictions.jsonl")
    assert [row.stem for row in rows] == ["val_0", "val_1", "val_1", "val_2", "val_2", "val_2"]
    assert [row.last for row in rows] == [True, False, True, False, False, True]
    assert all(row.color == "red" for row in rows if row.last)
    assert {row.root for row in rows} == {"cube"}
    assert all(read_image(Path(row.crop)).size == (8, 10) for row in rows)
    report = json.loads((whole / "validation" / "metrics.json").read_text())
    assert report["images"] == 3
    assert float(held_out[1]["accuracy"]) == pytest.approx(report["accuracy"])
    config = read_config(PrompterConfig, whole / "adapter" / CONFIG_FILE)
    assert (config.question, config.colors) == ("discover", ("red", "green", "blue", "yellow", "cyan"))
    assert load_config(PromptTraining, whole / "config.yaml").lora.init == "gaussian"


def test_only_linear_layers_of_the_language_model_train_and_peft_loads_them(folder: Path, whole: Path):
    stored = adapter(whole / "adapter")
    assert {key.rsplit(".", 3)[1] for key in stored} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert all("language_model" in key for key in stored)
    assert len(stored) == 2 * 7 * 2  # two layers
    settings = json.loads((whole / "adapter" / "adapter_config.json").read_text())
    assert isinstance(settings["target_modules"], str)
    assert settings["base_model_name_or_path"] == str(folder / "base")
    assert all(
        torch.equal(value, adapter(whole / "checkpoint-4" / "adapter")[key]) for key, value in stored.items()
    )
    plain = PeftModel.from_pretrained(
        load_model(folder / "base", torch.float32), str(whole / "adapter")
    ).eval()
    writer = PromptWriter.load(whole / "adapter", device="cpu")
    item = LlavaDataset(LlavaOptions(folder / "data", shuffle_concepts=False), "val")[2]
    batch = writer.chat.prompts([writer_ask(item)])
    base = load_model(folder / "base", torch.float32).eval()
    with torch.no_grad():
        logits = [model(**batch).logits for model in (plain, writer.mllm.model, base)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)


def writer_ask(item: dict[str, Any]) -> Any:
    return ChatExample(np.asarray(item["PIL_masked_images"]), discover_question(item["entity_colors"]))


def test_the_gradient_is_clipped_and_the_model_learns(folder: Path, tmp_path: Path):
    """With a limit near zero AdamW's first step is the same, but later ones are not."""
    losses = {}
    for clip in ("0", "1e-9"):
        out = tmp_path / clip
        train_prompt_writer(
            recipe(folder, out, "train/llava_multimask", "fit.steps=6", f"fit.clip={clip}", "val.instances=0")
        )
        losses[clip] = [row[2] for row in curve(out)]
        assert not (out / "validation.csv").exists()
    assert losses["0"][-1] < losses["0"][0]
    assert losses["0"][1:] != losses["1e-9"][1:]


def test_an_interrupted_run_ends_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    changes = ("fit.epochs=2", "fit.save_every=1", "fit.keep=1", "val.instances=0")
    changes += ("alphas.kind=curriculum", "alphas.start=0.2", "alphas.deviation=0.2")
    train_prompt_writer(recipe(folder, tmp_path / "one", "train/llava_1mask", *changes))
    calls: list[int] = []

    def dying(*given: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return answer_loss(*given)

    monkeypatch.setattr(training.training, "answer_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        train_prompt_writer(recipe(folder, tmp_path / "two", "train/llava_1mask", *changes))
    assert len(curve(tmp_path / "two")) == 3
    half_written = tmp_path / "two" / ".checkpoint-4.partial"  # what kill -9 while saving leaves behind
    shutil.copytree(tmp_path / "two" / "checkpoint-3" / "adapter", half_written / "adapter")
    train_prompt_writer(recipe(folder, tmp_path / "two", "train/llava_1mask", *changes))
    assert len(calls) == 5
    torch.testing.assert_close(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=1e-5, atol=1e-7)
    stored = [adapter(tmp_path / name / "adapter") for name in ("one", "two")]
    torch.testing.assert_close(stored[0], stored[1], rtol=1e-5, atol=1e-7)
    assert [path.name for path in sorted((tmp_path / "two").glob("checkpoint-*"))] == ["checkpoint-4"]
    assert read_config(PrompterConfig, tmp_path / "one" / "adapter" / CONFIG_FILE).question == "gray"


@pytest.mark.slow
def test_killed_and_started_again(folder: Path, tmp_path: Path):
    changes = (
        "fit.epochs=3",
        "fit.save_every=1",
        "alphas.kind=curriculum",
        "alphas.start=0.2",
        "val.instances=1",
    )
    whole = recipe(folder, tmp_path / "whole", "train/llava_multimask", *changes)
    train_prompt_writer(whole)
    config = recipe(folder, tmp_path / "run", "train/llava_multimask", *changes)
    (tmp_path / "run.yaml").write_text(dump_yaml(config))
    module = "inpainting.models.image_to_text.fine_tune_llavanext"
    arguments = [sys.executable, "-m", module, "train", f"--config-path={tmp_path / 'run.yaml'}"]
    kill_after_rows(arguments, tmp_path / "run" / "metrics.csv", 3)
    assert len(curve(tmp_path / "run")) < 6
    train_prompt_writer(config)
    torch.testing.assert_close(curve(tmp_path / "run"), curve(tmp_path / "whole"), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        adapter(tmp_path / "run" / "adapter"), adapter(tmp_path / "whole" / "adapter"), rtol=1e-5, atol=1e-7
    )


def test_a_loss_that_is_not_finite_ends_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(*given: Any) -> torch.Tensor:
        return answer_loss(*given) * float("nan")

    monkeypatch.setattr(training.training, "answer_loss", broken)
    with pytest.raises(ValueError, match="not finite after step 1"):
        train_prompt_writer(recipe(folder, tmp_path, "train/llava_multimask", "val.instances=0"))
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.slow
def test_two_processes(folder: Path, tmp_path: Path):
    """Two processes with half the batch see the same images with the same opacities."""
    changes = (
        "fit.epochs=2",
        "lora.dropout=0",
        "alphas.kind=curriculum",
        "alphas.start=0.2",
        "val.instances=2",
    )
    alone = recipe(folder, tmp_path / "one", "train/llava_multimask", *changes, "fit.batch=2")
    train_prompt_writer(alone)
    shared = recipe(folder, tmp_path / "two", "train/llava_multimask", *changes, "fit.batch=1")
    (tmp_path / "two.yaml").write_text(dump_yaml(shared))
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    run += ["inpainting.models.image_to_text.fine_tune_llavanext", "train"]
    done = subprocess.run(
        [*run, f"--config-path={tmp_path / 'two.yaml'}"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [(tmp_path / name / "validation" / "predictions.jsonl").read_text() for name in ("one", "two")]
    assert lines[0].count("\n") == lines[1].count("\n") == 3
    one, other = (curve(tmp_path / name) for name in ("one", "two"))
    assert [row[0] for row in one] == [row[0] for row in other]
