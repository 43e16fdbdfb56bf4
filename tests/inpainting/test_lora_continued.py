"""LoRA training beside released weights: they stay, a run may begin with them, tests name theirs."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inpainting.models.text_to_image.config import PaintingsConfig
from inpainting.models.text_to_image.evaluation.generate import GENERATED_WITH, fill_paintings
from inpainting.models.text_to_image.load import LORA_FILE
from inpainting.models.text_to_image.lora import train_lora
from inpainting.models.text_to_image.train_text_to_image_lora import TrainLoraConfig
from ldm.files import file_sha256
from ldm.settings.config import load_config
from ldm.training.run import named_checkpoint
from tests.conftest import ROOT
from tests.inpainting.small_paintings import SIDE, write_inpainter, write_paintings
from tests.inpainting.test_lora_training import recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ and data/ with 8 training and 3 validation images."""
    folder = tmp_path_factory.mktemp("inpaint")
    write_inpainter(folder / "model")
    write_paintings(folder / "data", {"train": 8, "val": 3})
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run of the recipe: 2 epochs of 3 steps."""
    train_lora(recipe(folder, folder / "whole", "sd_2_inp_rca_finetuned", "fit.patience=0"))
    return folder / "whole"


@pytest.mark.parametrize(
    "name",
    [
        f"checkpoint-6/{LORA_FILE}",
        f"checkpoint-99/{LORA_FILE}",
        "checkpoint-6/pytorch_lora_weights.bin",
        LORA_FILE,
    ],
)
def test_released_weights_in_the_run_folder_stay(folder: Path, whole: Path, tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(whole / LORA_FILE, tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        ValueError, match=r"was not trained here: .* choose another project_dir; resume_from="
    ):
        train_lora(recipe(folder, tmp_path))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_begins_with_released_weights(folder: Path, whole: Path, tmp_path: Path):
    """Also from a file and under peft's names; the rate 0 changes nothing."""
    (tmp_path / "released").mkdir()
    weights = load_file(whole / LORA_FILE)
    save_file(
        {
            key.replace("lora.down", "lora_A").replace("lora.up", "lora_B"): value
            for key, value in weights.items()
        },
        tmp_path / "released" / LORA_FILE,
    )
    changes = ("fit.steps=1", "fit.lr=0", "fit.epochs=1")
    for number, source in enumerate((whole / "checkpoint-6", tmp_path / "released", whole / LORA_FILE)):
        out = tmp_path / str(number)
        train_lora(recipe(folder, out, "sd_2_inp_rca_finetuned", f"resume_from={source}", *changes))
        wanted = load_file(source / LORA_FILE if number == 0 else whole / LORA_FILE)
        stored = load_file(out / LORA_FILE)
        assert all(torch.equal(stored[key], value) for key, value in wanted.items())
    assert load_config(TrainLoraConfig, out / "config.yaml").resume_from == whole / LORA_FILE
    for change, message in (
        ("lora.rank=4", "not a LoRA of these lora settings"),
        ("lora.targets=[to_k]", "not a LoRA of these lora settings: 0 weights missing"),
        (f"resume_from={tmp_path / 'nowhere'}", "nowhere: no such LoRA file"),
    ):
        options = (f"resume_from={whole}", "fit.steps=1", change)
        with pytest.raises(ValueError, match=message):
            train_lora(recipe(folder, tmp_path / "refused", "sd_2_inp_rca_finetuned", *options))
    save_file(weights, tmp_path / "scaled.safetensors", lora_header(alpha=32))
    with pytest.raises(ValueError, match="alpha is 32 and rank 16; only a LoRA of scale 1"):
        train_lora(recipe(folder, tmp_path / "refused", "sd_2_inp_rca_finetuned",
                          f"resume_from={tmp_path / 'scaled.safetensors'}"))  # fmt: skip


def lora_header(alpha: int) -> dict[str, str]:
    """What diffusers writes beside the weights."""
    return {"format": "pt", "lora_adapter_metadata": json.dumps({"unet.r": 16, "unet.lora_alpha": alpha})}


def test_a_test_names_its_checkpoint(folder: Path, whole: Path, tmp_path: Path):
    """best is the checkpoint of the lowest validation loss, latest the last one."""
    with (whole / "validation.csv").open() as file:
        best = min(csv.DictReader(file), key=lambda row: float(row["loss"]))["step"]
    for name, wanted in (("best", f"checkpoint-{best}"), ("latest", "checkpoint-6"), ("checkpoint-3",) * 2):
        assert named_checkpoint(whole, name, LORA_FILE) == whole / wanted
    shutil.copytree(whole / "checkpoint-3", tmp_path / "checkpoint-10")
    shutil.copytree(whole / "checkpoint-3", tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-11").mkdir()  # empty
    assert named_checkpoint(tmp_path, "latest", LORA_FILE).name == "checkpoint-10"
    for number in (9, 10):  # as released ones
        (tmp_path / f"checkpoint-{number}" / "state.pt").unlink()
    for name in ("best", "checkpoint-11", "newest"):
        with pytest.raises(ValueError, match=f"checkpoint={name}"):
            named_checkpoint(tmp_path, name, LORA_FILE)
    with pytest.raises(ValueError, match=r"no such checkpoint \(there: checkpoint-9, checkpoint-10\)"):
        named_checkpoint(tmp_path, "checkpoint-2884", LORA_FILE)
    config = ROOT / "configs" / "inpainting" / "text_to_image" / "test" / "sd_2_inp_rca_finetuned.yaml"
    changes = [f"pretrained={folder / 'model'}", f"lora={whole}", f"data.data_dir={folder / 'data'}"]
    changes += [
        "split=val",
        "checkpoint=latest",
        f"output_dir={tmp_path / 'out'}",
        "paint.steps=1",
        "workers=0",
    ]
    run = load_config(PaintingsConfig, config, [*changes, f"data.resolution={SIDE}"])
    fill_paintings(run)
    made = json.loads((tmp_path / "out" / GENERATED_WITH).read_text())
    assert made["weights"]["lora"] == file_sha256(whole / "checkpoint-6" / LORA_FILE)
    for number, lora in enumerate((whole / "checkpoint-3", whole / LORA_FILE)):  # taken as they are
        fill_paintings(replace(run, lora=lora, output_dir=tmp_path / str(number), checkpoint="none there"))
        made = json.loads((tmp_path / str(number) / GENERATED_WITH).read_text())
        assert made["weights"]["lora"] == file_sha256(lora / LORA_FILE if number == 0 else lora)
