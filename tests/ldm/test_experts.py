"""Properties of the depth expert, on small untrained networks of every supported architecture."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    PreTrainedModel,
    Swinv2Config,
)
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from ldm.experts.depth import DepthEstimator, DepthInput


def plain_dpt() -> PreTrainedModel:
    return DPTForDepthEstimation(
        DPTConfig(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=64,
            patch_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=8, is_hybrid=False,
        )
    )  # fmt: skip


def swin_dpt() -> PreTrainedModel:
    stages = [f"stage{level}" for level in range(1, 5)]
    backbone = Swinv2Config(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1] * 4,
        window_size=4,
        out_features=stages,
    )
    return DPTForDepthEstimation(
        DPTConfig(backbone_config=backbone, neck_hidden_sizes=[8, 16, 32, 64], fusion_hidden_size=8)
    )


def depth_anything(kind: str = "relative") -> PreTrainedModel:
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False,
    )  # fmt: skip
    return DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=8, depth_estimation_type=kind, max_depth=1 if kind == "relative" else 20,
        )
    )  # fmt: skip


MAKERS = {"dpt": plain_dpt, "swin": swin_dpt, "depth_anything": depth_anything}


@pytest.fixture(scope="module", params=sorted(MAKERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save(MAKERS[request.param](), path)
    return path


def save(model: PreTrainedModel, path: Path) -> None:
    """A folder with weights that give a varied, positive output."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
    for name, parameter in model.head.named_parameters():
        if parameter.numel() == 1 and name.endswith("bias"):
            parameter.data.fill_(5.0)
    model.save_pretrained(path)
    DPTImageProcessorPil(size={"height": 56, "width": 56}, ensure_multiple_of=14).save_pretrained(path)


def image(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (48, 90), (300, 200), (64, 16)])
def test_depth_has_the_images_size_and_fills_the_range(folder: Path, size: tuple[int, int]) -> None:
    depth_01 = DepthEstimator.load(folder).estimate(image(*size))
    assert (depth_01.shape, depth_01.dtype) == (size, np.float32)
    assert (depth_01.min(), depth_01.max()) == (0, 1)


def test_many_images_equal_single_ones(folder: Path) -> None:
    estimator = DepthEstimator.load(folder)
    images = [image(64, 64), image(40, 90), image(64, 64, 1), image(64, 64, 2)]
    together = estimator.estimate_many(images, batch_size=2)
    for one, depth_01 in zip(images, together, strict=True):
        assert np.abs(estimator.estimate(one) - depth_01).max() < 1e-4


def test_half_precision_agrees_with_single(folder: Path) -> None:
    single = DepthEstimator.load(folder).estimate(image(64, 64))
    half = DepthEstimator.load(folder, dtype=torch.bfloat16).estimate(image(64, 64))
    assert np.corrcoef(single.ravel(), half.ravel())[0, 1] > 0.95


def test_a_metric_network_is_inverted(tmp_path: Path) -> None:
    save(depth_anything("metric"), tmp_path)
    metric = DepthEstimator.load(tmp_path)
    distance = DepthEstimator(metric.model, metric.input, metric=False)
    near, far = metric.estimate(image(56, 56)).ravel(), distance.estimate(image(56, 56)).ravel()
    assert np.corrcoef(near, far)[0, 1] < -0.5


def test_published_preprocessing_without_a_preprocessor_file(tmp_path: Path) -> None:
    plain_dpt().save_pretrained(tmp_path)
    assert DepthEstimator.load(tmp_path).input == DepthInput(size=384, multiple_of=32)


def test_the_preprocessor_file_decides_sizes_and_colours(tmp_path: Path) -> None:
    plain_dpt().save_pretrained(tmp_path)
    values = {"size": 518, "ensure_multiple_of": 64, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    assert DepthEstimator.load(tmp_path).input == DepthInput(518, 64, (0.4,) * 3, (0.2,) * 3)


def test_network_size_keeps_the_aspect() -> None:
    published = DepthInput()
    assert published.network_size((480, 640)) == (384, 512)
    assert published.network_size((200, 150)) == (384, 288)  # the side that changes least decides
    assert published.network_size((3000, 4000)) == (384, 512)
    pixels = published.prepare(np.full((480, 640, 3), 255, np.uint8))
    assert pixels.shape == (3, 384, 512)
    assert pixels.min() == pixels.max() == 1


def test_a_constant_image_gives_finite_depth(folder: Path) -> None:
    assert np.isfinite(DepthEstimator.load(folder).estimate(np.zeros((64, 64, 3), np.uint8))).all()


def test_missing_and_foreign_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none is neither a folder nor a hub name"):
        DepthEstimator.load(tmp_path / "none")
    with pytest.raises(ValueError, match="cannot be read"):
        DepthEstimator.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert'; allowed: dpt, depth_anything"):
        DepthEstimator.load(tmp_path)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    plain_dpt().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = load_file(weights)
    key = next(name for name in whole if "neck" in name)
    save_file({name: value for name, value in whole.items() if name != key}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=f"1 missing keys \\['{key}'"):
        DepthEstimator.load(tmp_path)
    save_file({**whole, key: torch.zeros(2, 2)}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match="mismatched keys"):
        DepthEstimator.load(tmp_path)
    weights.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be loaded"):
        DepthEstimator.load(tmp_path)
