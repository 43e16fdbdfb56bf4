"""Model folders in every layout that exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from inpainting.models.text_to_image.config import InpainterConfig, PaintOptions
from inpainting.models.text_to_image.load import (
    Inpainter,
    load_inpainter,
)
from inpainting.models.text_to_image.pipeline import paint
from tests.inpainting.small_inpainter import save_inpainter, small_inpainter, small_unet

QUICK = PaintOptions(scheduler="ddim", steps=1, guidance=2.0)
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
MASK = np.zeros((48, 64), bool)
MASK[8:40, 10:40] = True


def painted(pipe: Inpainter) -> np.ndarray:
    return paint(IMAGE, [(MASK, "a red cube")], pipe, 1, QUICK, progress=False).image_u8


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_own_layout_gives_the_same_images(model, folder):
    assert np.array_equal(painted(load_inpainter(folder)), painted(model))


def test_a_stock_folder_needs_no_card(model, folder):
    (folder / "inpainter.json").unlink()
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionInpaintPipeline"}')
    loaded = load_inpainter(folder)
    assert loaded.config == InpainterConfig()
    assert loaded.resolution == 64
    assert np.array_equal(painted(loaded), painted(model))


def test_published_clone_with_old_names_and_patched_json(model, folder):
    """Pickled .bin files, attention names of older diffusers, a stored buffer, the published JSON files."""
    for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        weights = load_file(folder / part / f"{stem}.safetensors")
        (folder / part / f"{stem}.safetensors").unlink()
        torch.save({older(key) if part == "vae" else key: value for key, value in weights.items()},
                   folder / part / f"{stem}.bin")  # fmt: skip
    text = load_file(folder / "text_encoder" / "model.safetensors")
    (folder / "text_encoder" / "model.safetensors").unlink()
    named = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in text.items()}
    named["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(named, folder / "text_encoder" / "pytorch_model.bin")
    config = json.loads((folder / "unet" / "config.json").read_text())
    patched = {
        key: [re.sub("^(?=CrossAttn)", "Freestyle", name) for name in config[key]]
        for key in ("down_block_types", "up_block_types")
    }
    assert "FreestyleCrossAttnUpBlock2D" in patched["up_block_types"]
    edit_json(folder / "unet" / "config.json", **patched, mid_block_type="FreestyleUNetMidBlock2DCrossAttn")
    module = "inpainting.models.text_to_image.unets.unet_2d_condition"
    (folder / "model_index.json").write_text(json.dumps({"unet": [module, "UNet2DConditionModel"]}))
    (folder / "inpainter.json").unlink()
    assert np.array_equal(painted(load_inpainter(folder)), painted(model))


def older(key: str) -> str:
    """An attention weight's name before diffusers 0.18."""
    for old, new in OLD_ATTENTION.items():
        key = re.sub(rf"(attentions\.\d)\.{re.escape(new)}\.", rf"\1.{old}.", key)
    return key


def test_full_precision_is_preferred_to_the_half_variant(model, folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    half = {key: value.half() * 0 for key, value in load_file(path).items()}
    save_file(half, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert np.array_equal(painted(load_inpainter(folder)), painted(model))


def test_autoencoder_elsewhere_with_statistics(tmp_path):
    tiny = small_inpainter(
        tmp_path / "tokenizer", "tiny", InpainterConfig("tiny", vae="../vae", notice="small")
    )
    tiny.latent_space.save_pretrained(tmp_path / "vae", torch.float32)
    save_inpainter(tiny, tmp_path / "model")
    assert not (tmp_path / "model" / "vae").exists()
    loaded = load_inpainter(tmp_path / "model")
    assert loaded.latent_space.mean.flatten().tolist() == pytest.approx([0.1, 0.0, -0.1, 0.2])
    assert np.array_equal(painted(loaded), painted(tiny))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, torch.float32),  # on a CPU
        ({"dtype": "bf16"}, torch.bfloat16),
        ({"dtype": torch.float16, "device": "cpu"}, torch.float16),
        ({"device": torch.device("cpu"), "dtype": "auto"}, torch.float32),
    ],
)
def test_device_and_precision_are_chosen(folder, given, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loaded = load_inpainter(folder, **given)
    assert (loaded.device.type, loaded.dtype) == ("cpu", wanted)


def test_a_gpu_is_used_where_there_is_one(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    placed = []
    monkeypatch.setattr(
        Inpainter, "to", lambda self, device: placed.append((str(device), self.dtype)) or self
    )
    load_inpainter(folder)
    assert placed == [("cuda", torch.bfloat16)]
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        load_inpainter(folder, device="gpu")
    with pytest.raises(ValueError, match="unknown dtype 'half'"):
        load_inpainter(folder, dtype="half")


def test_half_precision_paints(folder):
    half = load_inpainter(folder, dtype=torch.bfloat16)
    result = paint(IMAGE, [(MASK, "a red cube")], half, 1, QUICK, progress=False)
    assert result.report["drift"][0]["changed_outside"] == 0
    assert result.recipe["machine"]["dtype"] == "bfloat16"


def drop_key(path: Path, key: str) -> None:
    weights = load_file(path)
    del weights[key]
    save_file(weights, path)


def test_broken_folders_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match="no such model folder"):
        load_inpainter(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="missing unet, text_encoder, tokenizer, scheduler, vae"):
        load_inpainter(tmp_path / "empty")
    drop_key(folder / "unet" / "diffusion_pytorch_model.safetensors", "conv_in.bias")
    with pytest.raises(ValueError, match=r"unet: its weights do not fit.*1 missing keys \['conv_in.bias'\]"):
        load_inpainter(folder)
    small_unet(in_channels=4).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match="takes 4 channels, an inpainting model 9"):
        load_inpainter(folder)
    edit_json(folder / "inpainter.json", layuot="nearest")
    with pytest.raises(ValueError, match=r"inpainter.json: unknown key 'layuot'; did you mean 'layout'"):
        load_inpainter(folder)
