"""Model folders in every layout that exists, LoRA files in the released format, and the paint command."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from inpainting.models.text_to_image.config import InpainterConfig, PaintOptions
from inpainting.models.text_to_image.load import (
    LORA_FILE,
    Inpainter,
    load_inpainter,
    save_inpainter,
)
from inpainting.models.text_to_image.pipeline import paint
from tests.inpainting.small_inpainter import small_inpainter, small_unet

QUICK = PaintOptions(scheduler="ddim", steps=1, guidance=2.0)
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
MASK = np.zeros((48, 64), bool)
MASK[8:40, 10:40] = True


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Inpainter:
    return small_inpainter(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def saved(model: Inpainter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own layout, in single precision; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_inpainter(model, folder, torch.float32)
    return folder


@pytest.fixture
def folder(tmp_path: Path, saved: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


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
    save_inpainter(tiny, tmp_path / "model", torch.float32)
    assert not (tmp_path / "model" / "vae").exists()
    loaded = load_inpainter(tmp_path / "model")
    assert loaded.latent_space.mean.flatten().tolist() == pytest.approx([0.1, 0.0, -0.1, 0.2])
    assert np.array_equal(painted(loaded), painted(tiny))


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
