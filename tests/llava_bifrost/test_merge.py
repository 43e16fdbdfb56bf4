"""`merge` writes one weight after the other: every family, precisions, what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ldm.mllm.model import load_model
from ldm.mllm.training import ADAPTER, adapter_key, load_adapter, make_trainable
from ldm.settings.config import write_config
from ldm.training.settings import LoraSettings
from llava_bifrost import training
from llava_bifrost.locator import CONFIG, LocatorConfig, load_locator
from llava_bifrost.model import MergeLocator
from llava_bifrost.training import merge_adapter
from tests.ldm.small_mllm import FAMILIES, small_folder


def trained_adapter(base: Path, folder: Path, **changes: Any) -> Path:
    """An adapter as training writes it, with random weights."""
    model = make_trainable(load_model(base, torch.float32), LoraSettings(rank=2, alpha=8, **changes))
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for name, value in model.named_parameters():
        if value.requires_grad:
            weights[adapter_key(name)] = 0.1 * torch.randn(value.shape, generator=generator)
    folder.mkdir(parents=True)
    save_file(weights, folder / ADAPTER, metadata={"format": "pt"})
    model.peft_config["default"].save_pretrained(str(folder))
    write_config(folder / CONFIG, LocatorConfig(decimals=2))
    return folder


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_merge_is_one_step_and_may_be_repeated(tmp_path: Path, interrupted: bool):
    base = small_folder("llava", tmp_path / "base")
    adapter, out = trained_adapter(base, tmp_path / "adapter"), tmp_path / "made/out"
    settings = MergeLocator(adapter=adapter, base=base, out=out, dtype="fp32")
    seen: list[set[str]] = []

    def killed(path: Path, target: Path) -> None:
        seen.append({file.name for file in path.iterdir()})
        raise InterruptedError

    if interrupted:
        with pytest.MonkeyPatch.context() as patched:  # just before the folder gets its name
            patched.setattr(Path, "rename", killed)
            with pytest.raises(InterruptedError):
                merge_adapter(settings)
        assert CONFIG in seen[0]
    merge_adapter(settings)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    merge_adapter(settings)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert CONFIG in first


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("projector", [True, False])
def test_every_family_is_merged_one_weight_at_a_time(
    family: str, projector: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = small_folder(family, tmp_path / "base")
    adapter = trained_adapter(base, tmp_path / "adapter", projector=projector)
    wanted = load_adapter(load_model(base, torch.float32), adapter).merge_and_unload().state_dict()
    with monkeypatch.context() as patched:
        patched.setattr(training, "load_model", lambda *given: pytest.fail("the whole base is read"))
        merge_adapter(MergeLocator(adapter=adapter, base=base, out=tmp_path / "out", dtype="fp32"))
    merged = load_model(tmp_path / "out", torch.float32).state_dict()
    plain = load_model(base, torch.float32).state_dict()
    assert merged.keys() == plain.keys()
    changed = 0
    for key, value in merged.items():
        other = wanted[key]
        torch.testing.assert_close(value, other, atol=1e-6, rtol=1e-5)
        changed += not torch.equal(value, plain[key])
    assert changed >= 14
    assert load_locator(tmp_path / "out", "cpu").config.decimals == 2


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_precision_is_written_and_declared(name: str, dtype: torch.dtype, tmp_path: Path):
    base = small_folder("llava", tmp_path / "base")
    adapter = trained_adapter(base, tmp_path / "adapter")
    merge_adapter(MergeLocator(adapter=adapter, base=base, out=tmp_path / "out", dtype=name))
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert "torch_dtype" not in config
    with safe_open(base / "model.safetensors", "pt") as before:
        assert before.get_tensor(next(iter(before.keys()))).dtype == torch.float32


def test_what_does_not_fit_leaves_nothing(tmp_path: Path):
    base = small_folder("llava", tmp_path / "base")
    other = trained_adapter(small_folder("smolvlm", tmp_path / "other"), tmp_path / "of_other")
    adapter = trained_adapter(base, tmp_path / "adapter")
    settings = {"base": base, "out": tmp_path / "out"}
    with pytest.raises(ValueError, match="tensors fit no weight of the base, such as"):
        merge_adapter(MergeLocator(adapter=other, **settings))
    (adapter / "non_lora_trainables.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="is merged by python -m llava_bifrost.model convert"):
        merge_adapter(MergeLocator(adapter=adapter, **settings))
    (adapter / "non_lora_trainables.bin").unlink()
    stated = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**stated, "use_dora": True}))
    with pytest.raises(ValueError, match="'use_dora': True"):
        merge_adapter(MergeLocator(adapter=adapter, **settings))
    assert not (tmp_path / "out").exists()
