"""LoRA files in the released format and under every other name; what does not fit is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from inpainting.models.text_to_image.load import (
    LORA_FILE,
    load_inpainter,
)
from tests.inpainting.small_inpainter import small_unet
from tests.inpainting.test_load import edit_json, painted

TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    """A LoRA as the published trainer saved it."""
    unet = small_unet()
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=TARGETS))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in unet.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    weights = {f"unet.{key}": value.detach().contiguous() for key, value in state.items()}
    assert "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight" in weights
    return weights


@pytest.fixture
def lora(tmp_path: Path, released: dict[str, Tensor]) -> tuple[Path, dict[str, Tensor]]:
    """Its folder and its weights."""
    (tmp_path / "lora").mkdir()
    save_file(released, tmp_path / "lora" / LORA_FILE)
    return tmp_path / "lora", dict(released)


@pytest.fixture(scope="module")
def merged(saved: Path, released: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory):
    """The weights of the UNet with this LoRA."""
    file = tmp_path_factory.mktemp("released") / LORA_FILE
    save_file(released, file)
    return load_inpainter(saved, file).unet.state_dict()


def test_released_lora_is_merged_whole(model, folder, lora):
    path, released = lora
    merged = load_inpainter(folder, path)
    before, after = model.unet.state_dict(), merged.unet.state_dict()
    assert before.keys() == after.keys(), "a stock network again"
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert (
        changed
        == {key.removeprefix("unet.").replace(".lora.down", "") for key in released if ".down." in key}
        - set()
    )
    for key in changed:
        layer = "unet." + key.removesuffix(".weight")
        update = released[f"{layer}.lora.up.weight"] @ released[f"{layer}.lora.down.weight"]
        torch.testing.assert_close(after[key], before[key] + update, atol=1e-5, rtol=0)
    assert not np.array_equal(painted(merged), painted(model))
    assert merged.lora == path / LORA_FILE
    torch.save(released, path / "pytorch_lora_weights.bin")
    (path / LORA_FILE).rename(path / "kept.safetensors")
    pickled = load_inpainter(folder, path).unet.state_dict()
    assert all(torch.equal(pickled[key], after[key]) for key in after)
    none = load_inpainter(folder, path / "kept.safetensors", lora_scale=0.0)
    assert np.array_equal(painted(none), painted(model))


def processor_name(key: str) -> str:
    """Of an attention layer, as diffusers' attention processors with LoRA wrote it."""
    return re.sub(r"\.(to_[qkv]|to_out)(?:\.0)?\.lora\.", r".processor.\1_lora.", key)


def bare(key: str) -> str:
    """As a UNet alone writes it."""
    return key.removeprefix("unet.")


LORA_NAMES = {
    "processors": [processor_name],
    "bare": [bare],
    "bare processors": [processor_name, bare],
    "peft": [lambda key: key.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")],
    "both": [lambda key: processor_name(key) if ".attn1." in key else key],
}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("kind", LORA_NAMES)
def test_lora_under_every_name_is_the_same(saved, lora, merged, kind, suffix):
    path, released = lora
    renamed = released
    for name in LORA_NAMES[kind]:
        renamed = {name(key): value for key, value in renamed.items()}
    assert renamed.keys() != released.keys()
    file = path / f"renamed{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(renamed, file)
    found = load_inpainter(saved, file).unet.state_dict()
    assert all(torch.equal(value, merged[key]) for key, value in found.items())
    odd = {**renamed, next(iter(renamed)).replace("down_blocks.0", "down_blocks.7"): torch.zeros(4, 8)}
    save(odd, file)
    with pytest.raises(ValueError, match=r"1 of \d+ keys fit no layer of this UNet: .*down_blocks.7"):
        load_inpainter(saved, file)


def test_alpha_of_a_unet_alone_counts(folder, lora):
    path, released = lora
    plain = load_inpainter(folder, lora_scale=0.0).unet.state_dict()
    whole = load_inpainter(folder, path).unet.state_dict()
    header = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 2, "target_modules": TARGETS})}
    file = path / "bare.safetensors"
    save_file({bare(key): value for key, value in released.items()}, file, metadata=header)
    for key, value in load_inpainter(folder, file).unet.state_dict().items():
        torch.testing.assert_close(value, (plain[key] + whole[key]) / 2, atol=1e-6, rtol=0)


def test_lora_named_by_the_card(folder, lora):
    edit_json(folder / "inpainter.json", lora="../lora")
    assert load_inpainter(folder).lora is not None


def test_peft_names_and_alpha_in_the_header(saved, lora, merged):
    path, released = lora
    names = {".lora.down.": ".lora_A.", ".lora.up.": ".lora_B."}
    renamed = {re.sub(r"\.lora\.(down|up)\.", lambda m: names[m[0]], key): v for key, v in released.items()}
    save_file(renamed, path / "peft.safetensors")
    ours = load_inpainter(saved, path / "peft.safetensors").unet.state_dict()
    assert all(torch.equal(merged[key], ours[key]) for key in merged)
    header = {"unet.r": 4, "unet.lora_alpha": 2, "unet.target_modules": TARGETS}
    save_file(renamed, path / "alpha.safetensors", metadata={"lora_adapter_metadata": json.dumps(header)})
    half, doubled = (
        load_inpainter(saved, path / "alpha.safetensors", lora_scale=scale).unet.state_dict()
        for scale in (1.0, 2.0)
    )
    for key in merged:
        torch.testing.assert_close(doubled[key], merged[key], atol=1e-5, rtol=0)
    assert any(not torch.equal(half[key], merged[key]) for key in merged)


def broken(released: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    weights, first = dict(released), next(key for key in released if ".down." in key)
    if how == "other layer":
        weights["unet.down_blocks.7.attn1.to_q.lora.down.weight"] = weights[first].clone()
    elif how == "text encoder":
        weights["text_encoder.layers.0.q_proj.lora.down.weight"] = weights[first].clone()
    elif how == "half":
        del weights[first]
    elif how == "shape":
        weights[first] = weights[first][:, :3].contiguous()
    return weights if how != "empty" else {}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("other layer", r"1 of \d+ keys fit no layer of this UNet: \['unet.down_blocks.7"),
        ("text encoder", r"1 of \d+ keys fit no layer of this UNet: \['text_encoder"),
        ("half", "has only its up half"),
        ("shape", r"layer .* is 16 x 16, its LoRA \(16, 4\) x \(4, 3\)"),
        ("empty", "it is empty"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused(folder, lora, tmp_path, how, message):
    save_file(broken(lora[1], how), tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match=message):
        load_inpainter(folder, tmp_path / "broken.safetensors")


def test_a_missing_lora_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"absent.safetensors: no such LoRA file"):
        load_inpainter(folder, tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match=r"pytorch_lora_weights.safetensors: no such LoRA file"):
        load_inpainter(folder, tmp_path)
