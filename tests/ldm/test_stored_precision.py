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

from ldm.checkpoints import load_pretrained
from ldm.experts.segment import sam_mask
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
