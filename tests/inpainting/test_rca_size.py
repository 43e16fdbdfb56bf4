"""Rectified attention at the published size (no weights) and its figure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from diffusers.utils import convert_unet_state_dict_to_peft
from peft import LoraConfig

from inpainting.models.text_to_image.load import check_lora
from inpainting.models.text_to_image.rca import (
    RegionalAttention,
    attention_layers,
    install_rca,
)
from ldm.images import read_mask
from ldm.settings.cli import run_app
from scripts.docs import draw_regions
from tests.conftest import ROOT

TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
PUBLISHED = {
    "sample_size": 64, "in_channels": 9, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def published() -> UNet2DConditionModel:
    with init_empty_weights():
        return install_rca(UNet2DConditionModel(**PUBLISHED))


def test_sixteen_layers_of_the_published_network_are_rectified(published):
    assert all(isinstance(layer.processor, RegionalAttention) for _, layer in attention_layers(published))
    names = [name for name, _ in attention_layers(published)]
    assert len(names) == 32
    assert sum(name.endswith("attn2") for name in names) == 16


def test_released_lora_has_a_place_for_each_of_its_weights(published):
    """Rank 16 on all attentions: 3,319,808 weights, named as the published trainer saved them."""
    layers = dict(published.named_modules())
    names = [f"{name}.{target}" for name, _ in attention_layers(published) for target in TARGETS]
    weights = {}
    for name in names:
        tall, wide = layers[name].weight.shape
        weights[f"unet.{name}.lora.down.weight"] = torch.empty(16, wide, device="meta")
        weights[f"unet.{name}.lora.up.weight"] = torch.empty(tall, 16, device="meta")
    check_lora(published, convert_unet_state_dict_to_peft(weights), "released")
    assert len(weights) == 256
    assert sum(value.numel() for value in weights.values()) == 3_319_808
    config = LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS)
    published.add_adapter(config)
    trained = [value for value in published.parameters() if value.requires_grad]
    assert sum(value.numel() for value in trained) == 3_319_808
    published.delete_adapters("default")


def test_figure_and_example_masks_are_what_the_script_makes(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("a", "b"):
        words = ["--out", str(tmp_path / f"{name}.png"), "--masks", str(tmp_path)]
        assert run_app(draw_regions.build_app, words) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    for name in draw_regions.REGIONS:
        assert (read_mask(tmp_path / f"{name}.png") == read_mask(f"assets/regions/{name}.png")).all()
