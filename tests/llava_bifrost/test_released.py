"""Synthetic adapters in the original LLaVA layout: merged completely, refused where a tensor is left."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from ldm.mllm.llava_original import merge_into, read_changes, today
from ldm.mllm.model import Chat, ChatExample, load_model
from ldm.settings.cli import run_app
from llava_bifrost.locator import load_locator, read_locator_config
from llava_bifrost.model import build_app
from tests.ldm.small_mllm import TAIL, small_folder

RANK, ALPHA = 4, 8
LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LAYERS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
PROJECTOR = {"0": "linear_1", "2": "linear_2"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return small_folder("llava", tmp_path / "base")


def stored(base: Path) -> dict[str, Tensor]:
    """Weights by today's names; files keep the names of transformers before 5."""
    return {today(key): value for key, value in load_file(base / "model.safetensors").items()}


def write_adapter(base: Path, folder: Path, prefix: str = "base_model.model.model.", **settings: Any) -> Path:
    """A folder as LLaVA's LoRA training writes it, with random values."""
    weights = stored(base)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    lora, extra = {}, {}
    for layer in (0, 1):
        for name in LAYERS:
            out, into = weights[f"model.language_model.layers.{layer}.{name}.weight"].shape
            key = f"base_model.model.model.layers.{layer}.{name}"
            lora |= {f"{key}.lora_A.weight": draw(RANK, into), f"{key}.lora_B.weight": draw(out, RANK)}
    for old, new in PROJECTOR.items():
        for kind in ("weight", "bias"):
            shape = weights[f"model.multi_modal_projector.{new}.{kind}"].shape
            extra[f"{prefix}mm_projector.{old}.{kind}"] = draw(*shape)
    folder.mkdir()
    config = {"r": RANK, "lora_alpha": ALPHA, "bias": "none", "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    config |= {
        "target_modules": sorted(name.split(".")[1] for name in LAYERS),
        "lora_dropout": 0.05,
        **settings,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu"})
    )
    save_file(lora, folder / "adapter_model.safetensors", {"format": "pt"})
    torch.save(extra, folder / "non_lora_trainables.bin")
    return folder


def by_hand(base: Path, adapter: Path) -> dict[str, Tensor]:
    """W + alpha / r B A in single precision, and the projector's own values."""
    weights = stored(base)
    lora = load_file(adapter / "adapter_model.safetensors")
    extra = torch.load(adapter / "non_lora_trainables.bin", weights_only=True)
    for layer in (0, 1):
        for name in LAYERS:
            key = f"base_model.model.model.layers.{layer}.{name}"
            change = lora[f"{key}.lora_B.weight"] @ lora[f"{key}.lora_A.weight"]
            weights[f"model.language_model.layers.{layer}.{name}.weight"] += ALPHA / RANK * change
    for key, value in extra.items():
        number, kind = re.findall(r"mm_projector\.(\d)\.(\w+)", key)[0]
        weights[f"model.multi_modal_projector.{PROJECTOR[number]}.{kind}"] = value
    return weights


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.fixture
def batch(base: Path) -> dict[str, Tensor]:
    locator = load_locator(base, "cpu")
    image = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    return dict(
        Chat(locator.mllm.processor).prompts([ChatExample(image, f"Place the dog behind the sofa{TAIL}")])
    )


@pytest.mark.parametrize("prefix", ["base_model.model.model.", "model.model.", "model."])
def test_logits_equal_a_merge_by_hand(base: Path, batch: dict[str, Tensor], tmp_path: Path, prefix: str):
    adapter = write_adapter(base, tmp_path / "adapter", prefix)
    out = tmp_path / "out"
    command = ["convert", "--adapter", str(adapter), "--base", str(base), "--out", str(out)]
    assert run_app(build_app, command) == 0
    wanted = LlavaForConditionalGeneration.from_pretrained(base)
    wanted.load_state_dict(by_hand(base, adapter), strict=True)
    locator = load_locator(out, "cpu")
    torch.testing.assert_close(logits(locator.mllm.model, batch), logits(wanted, batch), atol=1e-5, rtol=0)
    plain = logits(load_model(base, torch.float32), batch)
    assert (plain - logits(wanted, batch)).abs().max() > 0.1
    report = json.loads((out / "conversion.json").read_text())
    assert report["lora_pairs_merged"] == 14
    assert report["adapter_tensors"] == 32
    assert len(report["weights_replaced"]) == 4
    assert report["projector_change"] > 0.1
    assert read_locator_config(out, "llava").template == "vicuna_v1"
    assert locator.locate(np.zeros((30, 60, 3), np.uint8), "Place the dog behind the sofa")


def test_base_in_todays_names_and_shards(base: Path, tmp_path: Path):
    """Names of the modules themselves, in two files, half precision."""
    assert "language_model.model.norm.weight" in load_file(base / "model.safetensors")
    adapter = write_adapter(base, tmp_path / "adapter")
    wanted = by_hand(base, adapter)
    weights = {key: value.half() for key, value in stored(base).items()}
    names = sorted(weights)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    (base / "model.safetensors").unlink()
    for file, keys in files.items():
        save_file({key: weights[key] for key in keys}, base / file, {"format": "pt"})
    index = {key: file for file, keys in files.items() for key in keys}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    merge_into(base, adapter, tmp_path / "out")
    merged = load_model(tmp_path / "out", torch.float32).state_dict()
    assert merged.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(merged[key], value, atol=2e-3, rtol=2e-3)
    written = load_file(tmp_path / "out" / "model-00001-of-00002.safetensors")
    assert {value.dtype for value in written.values()} == {torch.float16}


def test_peft_would_load_nothing_and_is_refused(base: Path, batch: dict[str, Tensor], tmp_path: Path):
    """The trap: peft takes the original folder without an error, and none of its matrices."""
    adapter = write_adapter(base, tmp_path / "adapter")
    with pytest.warns(UserWarning, match="missing adapter keys"):
        fooled = PeftModel.from_pretrained(load_model(base, torch.float32), str(adapter))
    filled = [
        value for name, value in fooled.named_parameters() if "lora_B" in name and value.abs().max() > 0
    ]
    assert not filled
    torch.testing.assert_close(logits(fooled, batch), logits(load_model(base, torch.float32), batch))
    with pytest.raises(ValueError, match="llava_bifrost.model convert"):
        load_locator(adapter)
    arguments = ["merge", "--adapter", str(adapter), "--base", str(base), "--out", str(tmp_path / "out")]
    assert run_app(build_app, arguments) == 2


def test_a_tensor_that_fits_nothing_stops_the_conversion(base: Path, tmp_path: Path):
    adapter = write_adapter(base, tmp_path / "adapter")
    lora = load_file(adapter / "adapter_model.safetensors")
    moved = {key.replace("layers.1.", "layers.7."): value for key, value in lora.items()}
    out = tmp_path / "out"
    single = {key: value for key, value in lora.items() if "layers.0.mlp.up_proj.lora_B" not in key}
    name = next(key for key in lora if key.endswith("layers.0.mlp.up_proj.lora_A.weight"))
    cases = [
        (moved, "14 tensors fit no weight of the base, such as .*layers.7"),
        (single, "without their partner"),
        ({**lora, "base_model.model.odd": torch.zeros(2)}, "odd is no LoRA matrix"),
        ({**lora, name: lora[name][:, :-1]}, r"is for a weight of shape \(48, 31\)"),
    ]
    for weights, said in cases:
        save_file(
            {key: value.contiguous() for key, value in weights.items()}, adapter / "adapter_model.safetensors"
        )
        with pytest.raises(ValueError, match=said):
            merge_into(base, adapter, out)
        assert not out.exists()


def test_folders_of_other_kinds_are_refused(base: Path, tmp_path: Path):
    adapter = write_adapter(base, tmp_path / "dora", use_dora=True)
    with pytest.raises(ValueError, match=r"use_dora.* is not supported"):
        read_changes(adapter)
    adapter = write_adapter(base, tmp_path / "adapter")
    (adapter / "non_lora_trainables.bin").unlink()
    with pytest.raises(ValueError, match="non_lora_trainables.bin is missing"):
        read_changes(adapter)
    with pytest.raises(ValueError, match="adapter_config.json does not exist"):
        read_changes(tmp_path)
    with pytest.raises(ValueError, match="no \\*.safetensors"):
        merge_into(tmp_path, write_adapter(base, tmp_path / "good"), tmp_path / "out")


def test_a_projector_that_never_moved_is_reported(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    adapter = write_adapter(base, tmp_path / "adapter")
    weights = stored(base)
    same = {f"model.mm_projector.{old}.{kind}": weights[f"model.multi_modal_projector.{new}.{kind}"]
            for old, new in PROJECTOR.items() for kind in ("weight", "bias")}  # fmt: skip
    torch.save(same, adapter / "non_lora_trainables.bin")
    assert merge_into(base, adapter, tmp_path / "out")["projector_change"] == 0
    assert "trained without images" in caplog.text


def test_pickled_adapters(base: Path, tmp_path: Path):
    adapter = write_adapter(base, tmp_path / "adapter")
    wanted = merge_into(base, adapter, tmp_path / "one")
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert merge_into(base, adapter, tmp_path / "two") == wanted
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("base_model.model.model.layers.3.mlp.up.weight", "model.language_model.layers.3.mlp.up.weight"),
        ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("model.vision_tower.vision_tower.vision_model.encoder.x", "model.vision_tower.encoder.x"),
        ("vision_tower.vision_model.encoder.x", "model.vision_tower.encoder.x"),
        ("vision_tower.encoder.x", "model.vision_tower.encoder.x"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("base_model.model.lm_head.weight", "lm_head.weight"),
        ("language_model.model.norm.weight", "model.language_model.norm.weight"),
        ("model.image_newline", "model.image_newline"),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
    ],
)  # fmt: skip
def test_names(old: str, new: str):
    assert today(old) == new
    assert today(new) == new
