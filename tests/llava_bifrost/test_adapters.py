"""Adapters under the names that LLaVA's parts had before transformers 5."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from ldm.mllm.training import load_adapter
from tests.ldm.small_mllm import build_small


def old_name(name: str) -> str:
    """A name of transformers 5 as the versions before have it."""
    pairs = {"model.language_model.": "language_model.model.", "lm_head": "language_model.lm_head"}
    for new, old in pairs.items():
        name = re.sub(rf"(?:^|(?<=model\.)){re.escape(new)}", old, name)
    return name.replace("model.multi_modal_projector", "multi_modal_projector")


@pytest.mark.parametrize("saved", ["multi_modal_projector", "lm_head", "both", "none"])
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_adapters_under_old_names_are_loaded_whole(tmp_path: Path, family: str, saved: str):
    parts = {"both": ["multi_modal_projector", "lm_head"], "none": None}.get(saved, [saved])
    base = build_small(family)[0]
    layers = [name for name, _ in base.named_modules() if name.endswith((".q_proj", ".down_proj"))]
    layers = [name for name in layers if "language_model" in name] + ["model.multi_modal_projector.linear_1"]
    layers = layers[:-1] if saved in ("multi_modal_projector", "both") else layers
    model = get_peft_model(
        base, LoraConfig(r=2, target_modules=layers, modules_to_save=parts, init_lora_weights=False)
    )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "modules_to_save" in name:
                value += 0.1
    model.save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    old = {old_name(key): value for key, value in load_file(file).items()}
    assert not any(key.startswith("base_model.model.model.") for key in old)
    save_file(old, file)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    settings["target_modules"] = [old_name(name) for name in layers]
    settings["modules_to_save"] = parts and [old_name(name) for name in parts]
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    again = load_adapter(build_small(family)[0], tmp_path)
    mine = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for name, value in again.named_parameters():
        if value.requires_grad:
            assert torch.equal(value, mine.pop(name)), name
    assert not mine
    save_file({**old, "base_model.model.multi_modal_projector.odd": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"not an adapter of this model: .*1 unexpected .*projector.odd"):
        load_adapter(build_small(family)[0], tmp_path)
