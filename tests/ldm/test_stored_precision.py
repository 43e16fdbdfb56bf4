"""Networks that read float32 images work whatever precision their files are in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    CLIPTextConfig,
    CLIPTextModel,
    Dinov2Config,
    Dinov2Model,
    SamModel,
    ViTConfig,
    ViTModel,
)

from compose.settings import ComposeSettings
from compose.sources import read_sources, replaced_region
from ldm.checkpoints import load_pretrained
from ldm.decode import LoadedImage
from ldm.experts.segment import object_mask, sam_mask
from ldm.files import ROOT
from ldm.metrics.clip import Dino
from tests.ldm.small_detectors import sam

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def small_vit() -> torch.nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTModel(ViTConfig(**sizes, image_size=224, patch_size=56))


def small_text() -> torch.nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return CLIPTextModel(CLIPTextConfig(vocab_size=50, **sizes))


def small_dinov2() -> torch.nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Dinov2Model(Dinov2Config(**sizes, image_size=28, patch_size=14))


@HALVES
@pytest.mark.parametrize("make", [small_vit, small_text, small_dinov2])
def test_single_precision_unless_another_is_asked_for(tmp_path: Path, make, dtype: torch.dtype) -> None:
    make().to(dtype).save_pretrained(tmp_path)
    kind = type(make())
    assert load_pretrained(kind, tmp_path).dtype is torch.float32
    assert load_pretrained(kind, tmp_path, dtype=dtype).dtype is dtype


@HALVES
def test_sam_finds_the_mask_of_its_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = sam(tmp_path / "sam")
    network = SamModel.from_pretrained(folder).to(dtype)
    network.save_pretrained(folder)
    half = sam_mask(IMAGE, folder, (0.2, 0.2, 0.8, 0.8))
    network.float().save_pretrained(folder)
    assert np.array_equal(half, sam_mask(IMAGE, folder, (0.2, 0.2, 0.8, 0.8)))


@pytest.mark.parametrize(
    ("dtype", "kind"), [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_sam_is_loaded_once_in_the_asked_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, kind: torch.dtype
) -> None:
    folder, loaded = sam(tmp_path / "sam"), []

    def load(*args, **options):
        loaded.append(load_pretrained(*args, **options))
        return loaded[-1]

    monkeypatch.setattr("ldm.experts.segment.load_pretrained", load)
    first = sam_mask(IMAGE, folder, (0.2, 0.2, 0.8, 0.8), dtype=dtype)
    assert np.array_equal(sam_mask(IMAGE, folder, (0.2, 0.2, 0.8, 0.8), dtype=dtype), first)
    assert object_mask(LoadedImage(IMAGE), folder, box01=(0.2, 0.2, 0.8, 0.8), dtype=dtype)[1] == "sam"
    assert [network.dtype for network in loaded] == [kind]
    network = SamModel.from_pretrained(folder)
    token = network.mask_decoder.iou_token.weight
    token.data += 1
    network.save_pretrained(folder)  # other weights in the same place
    sam_mask(IMAGE, folder, dtype=dtype)
    assert len(loaded) == 2
    assert torch.equal(loaded[1].mask_decoder.iou_token.weight, token.to(kind))


@pytest.mark.parametrize("dtype", ["auto", "bf16"])
def test_settings_say_the_precision_of_sam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    seen: list[torch.dtype] = []
    monkeypatch.setattr("ldm.experts.segment.PLAUSIBLE", (0.0, 1.0))
    monkeypatch.setattr("ldm.experts.segment.load_sam", lambda *given: seen.append(given[2]) or 1 / 0)
    room, box = ROOT / "assets/examples/tent/room.png", (0.1, 0.2, 0.6, 0.9)
    given = {"sam": sam(tmp_path / "sam"), "dtype": dtype, "box": box, "background": room, "object": room}
    settings = ComposeSettings(**given)
    with pytest.raises(ZeroDivisionError):
        read_sources(settings)
    with pytest.raises(ZeroDivisionError):
        replaced_region(settings, IMAGE, box)
    assert seen == [torch.bfloat16 if dtype == "bf16" else torch.float32] * 2


def test_sam_weights_that_are_missing_are_refused(tmp_path: Path) -> None:
    folder = sam(tmp_path / "sam")
    network = SamModel.from_pretrained(folder)
    del network.mask_decoder.iou_prediction_head.proj_out
    network.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"2 missing keys \['mask_decoder\.iou_prediction_head"):
        sam_mask(IMAGE, folder)


@HALVES
def test_similarity_is_that_of_the_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    network = small_vit().to(dtype)
    network.save_pretrained(tmp_path)
    half = Dino.load(tmp_path).images([IMAGE])
    network.float().save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).dtype is torch.float32
    np.testing.assert_array_equal(half, Dino.load(tmp_path).images([IMAGE]))
