"""The published recipes of the prompt writer at small sizes, for the tests that run them."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from safetensors.torch import load_file

from inpainting.models.image_to_text.settings import PromptTraining
from ldm.settings.config import load_config
from tests.conftest import ROOT
from tests.inpainting.small_paintings import write_paintings
from tests.ldm.small_mllm import small_folder

RECIPES = ROOT / "configs" / "inpainting" / "image_to_text"
NAMES = ("train/llava_multimask", "train/llava_1mask", "test/llava_multimask", "test/llava_multimask_1pred",
         "test/llava_1mask", "test/llava_prompt")  # fmt: skip
SMALL = (
    *(
        "fit.precision=no",
        "fit.workers=0",
        "fit.batch=3",
        "fit.log_every=1",
        "fit.device=cpu",
        "fit.save_every=0",
    ),
    *(
        "lora.rank=4",
        "lora.alpha=8",
        "fit.lr=2e-3",
        "val.max_new_tokens=6",
        "val.instances=3",
        "val.resamples=0",
    ),
    *("fit.validate_every=0", "val.sheet=2", "fit.warmup=0"),
)


def write_job(folder: Path, family: str = "llava_next") -> Path:
    """base/ a random model, data/ with 6 training, 3 validation and 4 test images."""
    small_folder(family, folder / "base")
    write_paintings(folder / "data", {"train": 6, "val": 3, "test": 4})
    return folder


def recipe(folder: Path, out: Path, name: str = "train/llava_multimask", *changes: str) -> PromptTraining:
    """A published recipe with small sizes."""
    places = [f"project_dir={out}", f"model={folder / 'base'}", f"data.data_dir={folder / 'data'}"]
    places += [f"predictions={out / 'test'}"] if name.startswith("test") else []
    return load_config(PromptTraining, RECIPES / f"{name}.yaml", [*places, *SMALL, *changes])


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def curve(out: Path) -> list[list[float]]:
    columns = ("step", "epoch", "loss", "lr", "grad_norm")
    return [[float(row[name]) for name in columns] for row in table(out / "metrics.csv")]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")
