"""Training the inpainter's LoRA: the published recipe on eight paintings, resuming, two processes."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file

from inpainting.config_path import find_config
from inpainting.data.datasets import InpaintingDataset
from inpainting.models.text_to_image.load import LORA_FILE, Inpainter, load_inpainter
from inpainting.models.text_to_image.lora import LoraLoss, released_key, train_lora
from inpainting.models.text_to_image.train_text_to_image_lora import TARGETS, TrainLoraConfig, build_app
from ldm.settings.cli import run_app
from ldm.settings.config import dump_yaml, load_config
from tests.conftest import ROOT
from tests.inpainting.small_paintings import SIDE, write_inpainter, write_paintings
from tests.ldm.test_fit import environment, kill_after_rows

RECIPES = ROOT / "configs" / "inpainting" / "text_to_image" / "train"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ and data/ with 8 training and 3 validation images."""
    folder = tmp_path_factory.mktemp("inpaint")
    write_inpainter(folder / "model")
    write_paintings(folder / "data", {"train": 8, "val": 3})
    return folder


def recipe(folder: Path, out: Path, name: str = "sd_2_inp_rca_finetuned", *changes: str) -> TrainLoraConfig:
    """The published recipe with small sizes."""
    small = [f"project_dir={out}", f"pretrained={folder / 'model'}", f"data.data_dir={folder / 'data'}"]
    small += [
        f"data.resolution={SIDE}",
        "fit.precision=no",
        "fit.workers=0",
        "fit.batch=3",
        "fit.log_every=1",
    ]
    return load_config(TrainLoraConfig, RECIPES / f"{name}.yaml", [*small, *changes])


def losses(out: Path) -> list[float]:
    with (out / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run of the recipe: 2 epochs of 3 steps."""
    train_lora(recipe(folder, folder / "whole", "sd_2_inp_rca_finetuned", "fit.patience=0"))
    return folder / "whole"


def test_files_of_a_run(folder: Path, whole: Path):
    files = {"config.yaml", "metrics.csv", "validation.csv", LORA_FILE}
    assert {one.name for one in whole.iterdir()} == {*files, "checkpoint-3", "checkpoint-6"}
    assert len(losses(whole)) == 6
    assert load_config(TrainLoraConfig, whole / "config.yaml").rca
    weights = load_file(whole / LORA_FILE)
    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora"
    assert weights[f"{key}.down.weight"].shape == (16, 16)
    assert weights[f"{key}.up.weight"].shape == (16, 16)
    assert all(value.dtype == torch.float32 for value in weights.values())
    unet = load_inpainter(folder / "model").unet
    layers = [name for name, _ in unet.named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    assert len(weights) == 2 * len(layers)
    with (whole / "validation.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3", "6"]


def test_the_released_format_loads_in_the_library_and_here(folder: Path, whole: Path):
    plain, ours = load_inpainter(folder / "model"), load_inpainter(folder / "model", lora=whole)
    stock = UNet2DConditionModel.from_pretrained(folder / "model" / "unet")
    stock.load_lora_adapter(load_file(whole / LORA_FILE), prefix="unet")
    x, t, text = torch.randn(1, 9, 8, 8), torch.tensor([500]), torch.randn(1, 77, 32)
    with torch.no_grad():
        results = [
            unet(x, t, encoder_hidden_states=text).sample for unet in (plain.unet, ours.unet, stock.eval())
        ]
    assert torch.allclose(results[1], results[2], atol=1e-5)
    assert not torch.allclose(results[0], results[1], atol=1e-5)


def training_set(config: TrainLoraConfig, model: Inpainter) -> InpaintingDataset:
    return InpaintingDataset(config.data, model.tokenizer, seed=config.fit.seed, freestyle=config.rca)


def test_the_loss_is_the_paper_s(folder: Path):
    """Against the formula written out for one image at a time."""
    model = load_inpainter(folder / "model")
    config = recipe(folder, folder / "none")
    items = [training_set(config, model)[k] for k in (1, 2)]
    nearest = replace(config, rca=True, layout="nearest", encoding="joint")
    loss = LoraLoss(model, nearest)
    with torch.no_grad():
        both = loss(model.unet, InpaintingDataset.collate_fn(items), [7, 8])
        single = [
            loss(model.unet, InpaintingDataset.collate_fn([item]), [seed])
            for item, seed in zip(items, (7, 8), strict=True)
        ]
    assert float(both) == pytest.approx(float(sum(single)) / 2, rel=1e-5)
    plain = LoraLoss(model, replace(nearest, rca=False))
    with torch.no_grad():
        other = plain(model.unet, InpaintingDataset.collate_fn(items), [7, 8])
    assert float(other) != pytest.approx(float(both), rel=1e-6)


def test_rectified_attention_is_on_under_gradient_checkpointing(folder: Path):
    model = load_inpainter(folder / "model")
    config = recipe(folder, folder / "none")
    batch = InpaintingDataset.collate_fn([training_set(config, model)[2]])
    values = []
    for checkpointing in (False, True):
        if checkpointing:
            model.unet.enable_gradient_checkpointing()
        else:
            model.unet.add_adapter(LoraConfig(init_lora_weights="gaussian", target_modules=list(TARGETS)))
        model.unet.train()
        regional = replace(config, rca=True, layout="coverage", encoding="joint")
        loss = LoraLoss(model, regional)(model.unet, batch, [3])
        loss.backward()
        gradients = [p.grad.clone() for p in model.unet.parameters() if p.grad is not None]
        model.unet.zero_grad()
        values.append((float(loss.detach()), sum(float(one.abs().sum()) for one in gradients)))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_options_of_the_recipe(folder: Path, tmp_path: Path):
    changes = ("encoding=separate", "layout=coverage", "min_snr=5", "noise_offset=0.1",
               "gradient_checkpointing=true", "train_samples=4", "val_samples=2", "fit.epochs=1")  # fmt: skip
    train_lora(recipe(folder, tmp_path / "rca", "sd_2_inp_rca_finetuned", *changes))
    assert len(losses(tmp_path / "rca")) == 2
    train_lora(recipe(folder, tmp_path / "plain", "sd_2_inp_finetuned", "fit.epochs=1", "fit.precision=bf16"))
    assert len(losses(tmp_path / "plain")) == 3
    with pytest.raises(ValueError, match="encoding=separate needs rca"):
        recipe(folder, tmp_path, "sd_2_inp_finetuned", "encoding=separate")


def test_learns_and_is_the_same_when_interrupted(folder: Path, whole: Path, tmp_path: Path):
    for steps in (2, 5):
        train_lora(recipe(folder, tmp_path, "sd_2_inp_rca_finetuned", f"fit.steps={steps}", "fit.warmup=1"))
    train_lora(recipe(folder, tmp_path, "sd_2_inp_rca_finetuned", "fit.warmup=1", "fit.patience=0"))
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-5)
    one, other = (
        load_file(whole / "checkpoint-6" / LORA_FILE),
        load_file(tmp_path / "checkpoint-6" / LORA_FILE),
    )
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    with safe_open(tmp_path / LORA_FILE, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_command_with_the_published_path(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    for name in ("train/sd_2_inp_rca_finetuned.yaml", "sd_2_inp_rca_finetuned.yaml"):
        path = Path("models/configs/text_to_image") / name
        assert find_config(path) == Path("configs/inpainting/text_to_image/train/sd_2_inp_rca_finetuned.yaml")
    assert caplog.text.count("is configs/inpainting/text_to_image/train") == 2
    overrides = [f"project_dir={tmp_path}", f"pretrained={folder / 'model'}", "fit.precision=no"]
    overrides += [
        f"data.data_dir={folder / 'data'}",
        f"data.resolution={SIDE}",
        "fit.workers=0",
        "fit.steps=1",
    ]
    published = "--config-path=models/configs/text_to_image/sd_2_inp_rca_finetuned.yaml"
    assert run_app(build_app, ["main", published, *overrides]) == 0
    assert (tmp_path / LORA_FILE).is_file()


def test_mistakes_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert run_app(build_app, ["main", "--config-path=models/configs/nothing.yaml"]) == 2
    assert "there is no file models/configs/nothing.yaml; there are configs/" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no such model folder"):
        train_lora(recipe(folder, tmp_path, "sd_2_inp_finetuned", "pretrained=nowhere"))
    with pytest.raises(ValueError, match="no parameter of a LoRA"):
        released_key("down_blocks.0.weight")


@pytest.mark.slow
def test_killed_and_started_again(folder: Path, whole: Path, tmp_path: Path):
    config = recipe(folder, tmp_path / "run", "sd_2_inp_rca_finetuned", "fit.save_every=1", "fit.patience=0")
    (tmp_path / "run.yaml").write_text(dump_yaml(config))
    module = "inpainting.models.text_to_image.train_text_to_image_lora"
    arguments = [sys.executable, "-m", module, "main", f"--config-path={tmp_path / 'run.yaml'}"]
    kill_after_rows(arguments, tmp_path / "run" / "metrics.csv", 2)
    train_lora(config)
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-5)
    one, other = load_file(whole / LORA_FILE), load_file(tmp_path / "run" / LORA_FILE)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_two_processes(folder: Path, tmp_path: Path):
    """Two processes with half the batch see the same images with the same noise."""
    changes = ("fit.patience=0", "lora.dropout=0", "train_samples=6")
    alone = recipe(folder, tmp_path / "one", "sd_2_inp_rca_finetuned", *changes, "fit.batch=2")
    train_lora(alone)
    shared = replace(alone, project_dir=tmp_path / "two", fit=replace(alone.fit, batch=1))
    (tmp_path / "two.yaml").write_text(dump_yaml(shared))
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    run += ["inpainting.models.text_to_image.train_text_to_image_lora", "main"]
    done = subprocess.run(
        [*run, f"--config-path={tmp_path / 'two.yaml'}"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, other = load_file(tmp_path / "one" / LORA_FILE), load_file(tmp_path / "two" / LORA_FILE)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
