"""A network that gives NaN or infinity ends the work with its name; `auto` is the checkpoint's own type."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.small_models import write_kosmos
from cldm.create import create_compositor
from cldm.pipeline import CompositorPipeline
from datasets.inputs import Inputs
from datasets.pairs import Pair, build_pair
from inpainting.data.steps.describe import caption_crops, describe_paintings
from inpainting.models.image_to_text.settings import Decoding
from inpainting.models.image_to_text.writer import PromptWriter
from inpainting.models.text_to_image.load import Inpainter
from inpainting.models.text_to_image.pipeline import paint
from ldm.device import pick_dtype
from ldm.experts.depth import DepthEstimator, DepthInput
from ldm.experts.detect import Detector
from ldm.experts.segment import sam_mask
from ldm.mllm.model import Mllm, load_mllm
from llava_bifrost.locator import Locator, LocatorConfig
from tests.cldm.small import SMALL, SMALL_CONFIG
from tests.inpainting.small_inpainter import QUICK, random_image, small_inpainter, two
from tests.ldm.small_detectors import owlv2, sam
from tests.ldm.small_mllm import build_small, llama_like
from tests.ldm.test_experts import plain_dpt

IMAGE = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
MASK = np.zeros((60, 80), bool)
MASK[10:40, 20:60] = True
CUDA = torch.device("cuda")


def spoil(network: nn.Module, value: float, where: int = -1) -> None:
    """One parameter of a network, by default its last, holds `value`."""
    with torch.no_grad():
        list(network.parameters())[where].fill_(value)


def small_locator(value: float) -> Locator:
    model, processor = build_small("llava")
    spoil(model.lm_head, value)
    return Locator(Mllm(model, processor, Path()), LocatorConfig())


def small_writer(value: float) -> PromptWriter:
    model, processor = build_small("llava")
    spoil(model.lm_head, value)
    return PromptWriter(Mllm(model, processor, Path()))


LANGUAGE: dict[str, Callable[[float], Any]] = {
    "greedy place": lambda value: small_locator(value).locate(IMAGE, "Place the dog behind the sofa"),
    "drawn places": lambda value: small_locator(value).locate(IMAGE, "Place the dog behind the sofa", 3),
    "greedy prompt": lambda value: small_writer(value).write([IMAGE], [[MASK]]),
    "drawn prompt": lambda value: small_writer(value).write([IMAGE], [[MASK]], Decoding(temperature=0.7)),
    "free prompt": lambda value: small_writer(value).write([IMAGE], [[MASK]], Decoding(constrained=False)),
    "caption": lambda value: caption_crops(small_writer(value).mllm, [IMAGE], ["dog"], 3),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("task", LANGUAGE)
def test_a_language_model_without_numbers_gives_no_answer(task: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"language model gave NaN .*--dtype bf16 or fp32"):
        LANGUAGE[task](value)


def test_a_description_needs_numbers(tmp_path: Path) -> None:
    mllm = load_mllm(write_kosmos(tmp_path / "kosmos", llama_like()), "cpu")
    spoil(mllm.model.get_output_embeddings(), float("nan"))
    with pytest.raises(ValueError, match="language model gave NaN"):
        describe_paintings(mllm, [IMAGE], 4)


PARTS: dict[str, tuple[Callable[[Inpainter], nn.Module], int, str]] = {
    "UNet": (lambda pipe: pipe.unet, -1, r"denoising network \(UNet\)"),
    "VAE encoder": (lambda pipe: pipe.latent_space.vae.encoder, -1, r"autoencoder \(VAE\)"),
    "VAE decoder": (lambda pipe: pipe.latent_space.vae.decoder, -1, r"autoencoder \(VAE\)"),
    "text encoder": (lambda pipe: pipe.text_encoder, -1, "text encoder"),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", PARTS)
def test_an_inpainter_without_numbers_paints_nothing(part: str, value: float, tmp_path: Path) -> None:
    pipe = small_inpainter(tmp_path)
    network, where, name = PARTS[part]
    spoil(network(pipe), value, where)
    with pytest.raises(ValueError, match=rf"the {name} gave NaN .*--dtype bf16 or fp32"):
        paint(random_image(64, 64), two(64, 64), pipe, 0, QUICK, progress=False)


def made_pair() -> Pair:
    depth_01 = np.repeat(np.linspace(0, 1, 60, dtype=np.float32)[:, None], 80, axis=1)
    inputs = Inputs(IMAGE, MASK, IMAGE, depth_01, (0.3, 0.3, 0.6, 0.8), (0.6, 0.8))
    return build_pair(inputs, SMALL_CONFIG.pair)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", r"denoising network \(UNet\)"),
        ("detail", r"denoising network \(UNet\)"),  # it has no answer of its own
        ("identity", "image encoder"),
        ("latent_space", r"autoencoder \(VAE\)"),
    ],
)
def test_a_compositor_without_numbers_paints_nothing(part: str, name: str) -> None:
    model = create_compositor(SMALL, seed=4).eval()
    spoil(getattr(model, part), float("nan"))
    with pytest.raises(ValueError, match=rf"the {name} gave NaN"):
        CompositorPipeline(model).paint(made_pair(), [0], SMALL_CONFIG.sampling)


def test_a_depth_network_without_numbers_gives_no_map() -> None:
    network = plain_dpt()
    spoil(network.head, float("nan"))
    with pytest.raises(ValueError, match="the depth network gave NaN"):
        DepthEstimator(network, DepthInput(64)).estimate(IMAGE)


def test_found_objects_need_numbers(tmp_path: Path) -> None:
    detector = Detector.load(owlv2(tmp_path / "owl"))
    spoil(detector.model.box_head, float("nan"))
    with pytest.raises(ValueError, match="the detector gave NaN"):
        detector.find_all(IMAGE, "sofa")
    folder = sam(tmp_path / "sam")
    weights = load_file(folder / "model.safetensors")
    key = next(key for key in weights if "iou_prediction_head" in key and key.endswith("bias"))
    save_file({**weights, key: weights[key] * float("nan")}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"segmentation network \(SAM\) gave NaN"):
        sam_mask(IMAGE, folder)


@pytest.mark.parametrize(
    ("config", "has_bf16", "wanted"),
    [
        ({"dtype": "bfloat16"}, True, torch.bfloat16),
        ({"dtype": "bfloat16"}, False, torch.float16),
        ({"torch_dtype": "bfloat16"}, True, torch.bfloat16),  # its former name
        ({"dtype": "float16"}, True, torch.float16),
        ({"dtype": "float32"}, False, torch.float32),
        ({"dtype": None}, True, torch.bfloat16),
        ({}, False, torch.float16),
        (None, True, torch.bfloat16),  # no such file
    ],
)
def test_auto_is_the_type_of_the_checkpoint(
    config: dict | None, has_bf16: bool, wanted: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert pick_dtype("auto", CUDA, tmp_path) == wanted
    assert pick_dtype("auto", torch.device("cpu"), tmp_path) == torch.float32
    assert pick_dtype("fp16", CUDA, tmp_path) == torch.float16


def test_a_checkpoint_that_declares_nothing_takes_the_type_that_is_asked_for(tmp_path: Path) -> None:
    assert pick_dtype("auto", CUDA, tmp_path, "fp32") == torch.float32
    (tmp_path / "config.json").write_text('{"dtype": "float16"}')
    assert pick_dtype("auto", CUDA, tmp_path, "fp32") == torch.float16
    with pytest.raises(ValueError, match="unknown dtype 'half'; allowed: auto, fp32, fp16, bf16"):
        pick_dtype("half", CUDA)
