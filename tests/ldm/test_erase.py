"""Filling holes: the four ways change masked pixels only, and fill them from what is around."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm.experts.erase import Eraser, window_around


class SmallLama(nn.Module):
    """Fills with the mean of what is not masked; fails where the sides are no multiples of 8."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        assert image.shape[2] % 8 == 0
        assert image.shape[3] % 8 == 0
        known = 1 - mask
        mean = (image * known).sum(dim=[2, 3], keepdim=True) / known.sum(dim=[2, 3], keepdim=True)
        return image * known + mean * mask


class WrongSize(nn.Module):
    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return image[:, :, ::2, ::2] + 0 * mask.sum()


def scripted(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))
    return path


@pytest.fixture(scope="module")
def inpainting_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Stable Diffusion inpainting folder, 64 px."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("inpainting")
    letters = [*"abcdefghijklmnopqrstuvwxyz,", *(f"{one}</w>" for one in "abcdefghijklmnopqrstuvwxyz,")]
    vocabulary = {word: index for index, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=32, in_channels=9, out_channels=4, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=16,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipeline = StableDiffusionInpaintPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model")
    return folder / "model"


def image(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """A gradient with a white square, and the mask of the square, one pixel larger."""
    rgb_u8 = np.zeros((h, w, 3), np.uint8)
    rgb_u8[..., 0] = np.linspace(20, 90, w)
    rgb_u8[..., 1] = 40
    mask = np.zeros((h, w), bool)
    top, left, side = h // 3, w // 3, min(h, w) // 4
    rgb_u8[top : top + side, left : left + side] = 255
    mask[top - 1 : top + side + 1, left - 1 : left + side + 1] = True
    return rgb_u8, mask


@pytest.mark.parametrize("size", [(60, 83), (1000, 600)])
def test_opencv_continues_the_surroundings(size: tuple[int, int]) -> None:
    rgb_u8, mask = image(*size)
    eraser = Eraser.load("opencv")
    assert eraser.kind == "opencv"
    filled = eraser.erase(rgb_u8, mask)
    assert np.array_equal(filled[~mask], rgb_u8[~mask])
    assert filled[mask].max() < 110  # nothing of the white square is left
    assert np.array_equal(filled, eraser.erase(rgb_u8, mask))


@pytest.mark.parametrize("size", [(64, 64), (61, 83)])
def test_lama_is_padded_to_its_sides(tmp_path: Path, size: tuple[int, int]) -> None:
    rgb_u8, mask = image(*size)
    eraser = Eraser.load(scripted(SmallLama(), tmp_path / "lama.pt"))
    assert eraser.kind == "lama"
    filled = eraser.erase(rgb_u8, mask)
    assert np.array_equal(filled[~mask], rgb_u8[~mask])
    assert np.abs(filled[mask].astype(int) - rgb_u8[~mask].mean(0)).max() < 12


def test_diffusion_paints_a_window(inpainting_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.experts.erase.STEPS", 2)
    rgb_u8, mask = image(90, 140)
    eraser = Eraser.load(inpainting_folder)
    assert eraser.kind == "diffusion"
    filled = eraser.erase(rgb_u8, mask, seed=1)
    assert filled.shape == rgb_u8.shape
    assert np.array_equal(filled[~mask], rgb_u8[~mask])
    assert not np.array_equal(filled[mask], rgb_u8[mask])
    assert np.array_equal(filled, eraser.erase(rgb_u8, mask, seed=1))
    assert not np.array_equal(filled, eraser.erase(rgb_u8, mask, seed=2))


class Overflown(nn.Module):
    """An image without numbers, as after an overflow."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return image + float("nan") * mask


def test_a_network_without_numbers_fills_nothing(
    tmp_path: Path, inpainting_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb_u8, mask = image(64, 64)
    lama = Eraser.load(scripted(Overflown(), tmp_path / "lama.pt"))
    with pytest.raises(ValueError, match=r"eraser \(LaMa\) gave NaN"):
        lama.erase(rgb_u8, mask)
    monkeypatch.setattr("ldm.experts.erase.STEPS", 1)
    shutil.copytree(inpainting_folder, tmp_path / "model")
    weights = next((tmp_path / "model" / "unet").glob("*.safetensors"))
    tensors = load_file(weights)
    save_file({**tensors, "conv_out.bias": tensors["conv_out.bias"] * float("nan")}, weights)
    with pytest.raises(ValueError, match=r"eraser \(diffusion model\) gave NaN"):
        Eraser.load(tmp_path / "model").erase(rgb_u8, mask)


def test_windows_lie_in_the_image() -> None:
    mask = np.zeros((90, 140), bool)
    mask[80:90, 0:10] = True
    assert window_around(mask, 64) == (0, 26, 64, 90)
    assert window_around(mask, 500) == (0, 0, 140, 90)
    mask[:] = False
    mask[30:50, 60:80] = True
    assert window_around(mask, 8) == (54, 24, 86, 56)


def test_what_cannot_be_filled_is_refused(tmp_path: Path, inpainting_folder: Path) -> None:
    rgb_u8, mask = image(60, 83)
    eraser = Eraser.load()
    assert np.array_equal(eraser.erase(rgb_u8, np.zeros_like(mask)), rgb_u8)
    with pytest.raises(ValueError, match="whole image"):
        eraser.erase(rgb_u8, np.ones_like(mask))
    with pytest.raises(ValueError, match="mask must be bool"):
        eraser.erase(rgb_u8, mask[1:])
    with pytest.raises(ValueError, match="neither a TorchScript file"):
        Eraser.load(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match="cannot be loaded as TorchScript"):
        Eraser.load(tmp_path / "text.pt")
    with pytest.raises(ValueError, match="not LaMa"):
        Eraser.load(scripted(WrongSize(), tmp_path / "wrong.pt")).erase(rgb_u8, mask)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded"):
        Eraser.load(tmp_path / "folder")


def stripes(h: int, w: int, period: int = 12) -> np.ndarray:
    """Vertical stripes, 40 and 200."""
    line = np.where(np.arange(w) // (period // 2) % 2, 200, 40).astype(np.uint8)
    return np.repeat(np.broadcast_to(line, (h, w))[..., None], 3, axis=2).copy()


@pytest.mark.parametrize(
    "hole", [(40, 90, 50, 100), (10, 30, 20, 140), (30, 60, 40, 70), (100, 120, 110, 160)], ids=str
)
def test_exemplars_continue_a_texture(hole: tuple[int, int, int, int]) -> None:
    pytest.importorskip("patchmatch")
    rgb_u8, (y0, y1, x0, x1) = stripes(120, 160), hole
    truth, mask = rgb_u8.copy(), np.zeros((120, 160), bool)
    mask[y0:y1, x0:x1] = True
    rgb_u8[mask] = 255
    eraser = Eraser.load("exemplar")
    assert eraser.kind == "exemplar"
    filled = eraser.erase(rgb_u8, mask, seed=3)
    assert np.array_equal(filled[~mask], truth[~mask])
    error = {name: np.abs(u8[mask].astype(int) - truth[mask]).mean() for name, u8 in (
        ("exemplar", filled), ("opencv", Eraser.load("opencv").erase(rgb_u8, mask)))}  # fmt: skip
    assert error["exemplar"] < 10 < error["opencv"]
    assert np.array_equal(filled, eraser.erase(rgb_u8, mask, seed=4))


def test_exemplars_of_a_large_image_are_taken_near_the_hole() -> None:
    pytest.importorskip("patchmatch")
    rgb_u8, mask = stripes(900, 1500), np.zeros((900, 1500), bool)
    rgb_u8[:, 1200:] = (255, 0, 0)  # far from the hole
    mask[20:80, 20:80] = True
    filled = Eraser.load("exemplar").erase(rgb_u8, mask)
    assert np.abs(filled[mask].astype(int) - stripes(900, 1500)[mask]).mean() < 10


@pytest.mark.parametrize("side", ["left", "right", "above"])
def test_exemplars_are_not_taken_from_what_is_apart(side: str) -> None:
    """A red thing stands at the hole; what is apart keeps its bytes and gives none."""
    pytest.importorskip("patchmatch")
    truth, mask, apart = stripes(120, 160), np.zeros((120, 160), bool), np.zeros((120, 160), bool)
    mask[40:80, 60:100] = True
    apart[
        {"left": np.s_[30:90, 40:60], "right": np.s_[30:90, 100:120], "above": np.s_[20:40, 50:110]}[side]
    ] = True
    rgb_u8 = np.where(apart[..., None], np.uint8([255, 0, 0]), truth)
    eraser = Eraser.load("exemplar")
    filled = eraser.erase(rgb_u8, mask, apart=apart)
    assert np.array_equal(filled[~mask], rgb_u8[~mask])
    red = [(u8[mask][:, 0].astype(int) - u8[mask][:, 1]).max() for u8 in (filled, eraser.erase(rgb_u8, mask))]
    assert red[0] < 20 < red[1]


@pytest.mark.parametrize("apart", ["all", "ring"])
def test_where_all_around_is_apart_it_is_taken_all_the_same(apart: str) -> None:
    pytest.importorskip("patchmatch")
    rgb_u8, mask = stripes(120, 160), np.zeros((120, 160), bool)
    mask[40:80, 60:100] = True
    other = ~mask
    if apart == "ring":
        other[:5] = other[-5:] = False
    eraser = Eraser.load("exemplar")
    assert np.array_equal(eraser.erase(rgb_u8, mask, apart=other), eraser.erase(rgb_u8, mask))


class NoBinary:
    patchmatch_available = False


@pytest.mark.parametrize("module", [None, NoBinary], ids=["absent", "without its binary"])
@pytest.mark.parametrize("source", [None, "auto", ""])
def test_auto_says_that_it_blurs(
    module: type | None, source: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "patchmatch", module)
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    assert Eraser.load(source).kind == "opencv"
    assert "pip install pypatchmatch" in caplog.text
    with pytest.raises(ValueError, match="eraser exemplar: pypatchmatch is not installed"):
        Eraser.load("exemplar")


def test_auto_prefers_lama_then_diffusion(
    inpainting_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    (tmp_path / "stable-diffusion-2-inpainting").mkdir()
    assert Eraser.load().kind in ("exemplar", "opencv")  # an empty folder is no model
    (tmp_path / "stable-diffusion-2-inpainting").rmdir()
    shutil.copytree(inpainting_folder, tmp_path / "stable-diffusion-2-inpainting")
    assert Eraser.load().kind == "diffusion"
    (tmp_path / "lama").mkdir()
    scripted(SmallLama(), tmp_path / "lama" / "big-lama.pt")
    assert Eraser.load().kind == "lama"
    assert Eraser.load("opencv").kind == "opencv"
