"""What is missing is named with the command that gets it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inpainting.models.image_to_text.writer import find_files
from inpainting.models.text_to_image.load import load_inpainter, load_tokenizer, lora_file
from ldm.metrics.backbones import read_weight_file
from ldm.metrics.clip import Clip
from ldm.mllm.model import load_model, load_processor
from ldm.registry.models import how_to_get, local_or_hub_folder
from llava_bifrost.locator import load_locator
from llava_bifrost.model import MergeLocator
from llava_bifrost.training import merge_adapter
from tests.conftest import ROOT

PULL = "python -m ldm.registry pull "
MISSING: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "inpainter": (load_inpainter, "stable-diffusion-2-inpainting", "sd2-inpainting"),
    "tokenizer": (load_tokenizer, "stable-diffusion-2-inpainting/tokenizer", "sd2-inpainting"),
    "LoRA": (lora_file, "sd/rca/checkpoint-2884", "rca-lora"),
    "prompt writer": (
        lambda path: find_files(path),
        "llava/multimask/checkpoint-2884/adapter",
        "multimask-adapter",
    ),
    "base of a writer": (lambda path: find_files(path), "llava-v1.6-vicuna-7b-hf", "llava-next-7b"),
    "locator": (load_locator, "locator", "bifrost-mllm, then python -m llava_bifrost.model convert"),
    "model": (lambda path: load_model(path, torch.float32), "llava-1.5-7b-hf", "llava-1.5-7b"),
    "processor": (load_processor, "llava-1.5-7b-hf", "llava-1.5-7b"),
    "Kosmos": (lambda path: local_or_hub_folder(str(path)), "kosmos-2-patch14-224", "kosmos-2"),
    "CLIP": (Clip.load, "clip_vit_base_patch32", "clip"),
    "Inception": (read_weight_file, "inception_fid/pt_inception-2015-12-05-6726825d.pth", "inception"),
    "base of a merge": (
        lambda path: merge_adapter(MergeLocator(adapter=path, base=path, out=path / "out")),
        "llava-1.5-7b-hf",
        "llava-1.5-7b",
    ),
}


@pytest.mark.parametrize("what", MISSING)
def test_the_error_names_the_command(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    read, place, name = MISSING[what]
    with pytest.raises(ValueError, match=f"{place}.*; get it with: {PULL}{name}"):
        read(tmp_path / place)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("models/sd/rca", "rca-lora"),
        ("models/sd/rca/checkpoint-2884/pytorch_lora_weights.safetensors", "rca-lora"),
        (Path("models/depth"), "depth"),
        ("llava-hf/llava-v1.6-vicuna-7b-hf", "llava-next-7b"),
        ("microsoft/kosmos-2-patch14-224", "kosmos-2"),
    ],
)
def test_places_belong_to_models(place: str, name: str):
    assert how_to_get(place) == f"; get it with: {PULL}{name}"


@pytest.mark.parametrize("place", ["models", "models/sd", "models/sd/other", "somewhere/else", "owner/name"])
def test_other_places_belong_to_none(place: str):
    assert how_to_get(place) == ""


@pytest.mark.parametrize(
    "name", ["sd2-inpainting", "rca-lora", "multimask-adapter", "llava-next-7b", "kosmos-2", "bifrost-mllm"]
)
def test_the_page_of_weights_names_every_pull(name: str):
    assert f"`{PULL}{name}`" in (ROOT / "docs" / "released_weights.md").read_text()
