"""Adapters under the names that LLaVA's parts had before transformers 5."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from ldm.mllm.training import current_name, load_adapter
from tests.ldm.small_mllm import build_small


def old_name(name: str) -> str:
    """A name of transformers 5 as the versions before have it."""
    pairs = {"model.language_model.": "language_model.model.", "lm_head": "language_model.lm_head"}
    for new, old in pairs.items():
        name = re.sub(rf"(?:^|(?<=model\.)){re.escape(new)}", old, name)
    return name.replace("model.multi_modal_projector", "multi_modal_projector")


@pytest.fixture(autouse=True)
def without_conversion_of_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """peft renames weights itself while it loads them; names are ours to understand."""
    names = ("convert_peft_adapter_state_dict_for_transformers", "convert_peft_config_for_transformers")
    for name in names:
        monkeypatch.setattr(f"peft.utils.transformers_weight_conversion.{name}", keep)


def keep(*given: Any, **named: Any) -> Any:
    """In place of a conversion: what it is given."""
    return next((value for value in (*given, *named.values()) if isinstance(value, dict)), None)


LAYER = "layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "today"),
    [
        (f"base_model.model.language_model.model.{LAYER}.lora_A.weight",
         f"base_model.model.model.language_model.{LAYER}.lora_A.weight"),
        (f"language_model.model.{LAYER}", f"model.language_model.{LAYER}"),
        ("base_model.model.language_model.lm_head.weight", "base_model.model.lm_head.weight"),
        ("language_model.lm_head", "lm_head"),
        ("base_model.model.multi_modal_projector.linear_1.weight",
         "base_model.model.model.multi_modal_projector.linear_1.weight"),
        ("image_newline", "model.image_newline"),
        # What has today's name stays, also where a former one stands within it.
        (f"base_model.model.model.language_model.{LAYER}.lora_A.weight",) * 2,
        ("model.vision_tower.language_model.model.odd",) * 2,
        ("base_model.model.model.multi_modal_projector.linear_1.weight",) * 2,
        ("lm_head",) * 2,
        ("base_model.model.language_model.lm_headroom.weight",) * 2,
        ("my_language_model.model.layer",) * 2,
    ],
)  # fmt: skip
def test_former_names_are_understood_at_their_beginning(name: str, today: str):
    assert current_name(name) == today
    assert current_name(today) == today


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
