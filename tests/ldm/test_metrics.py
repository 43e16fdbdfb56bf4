"""Distances between sets of images, likeness, intervals: against formulas written out another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.small_models import write_clip
from ldm.metrics.backbones import (
    Inception,
    Lpips,
    hash_of,
    load_inception,
    read_weight_file,
    resize_like_tensorflow,
)
from ldm.metrics.clip import BAD, GOOD, AttentionPool, Clip, Dino, ResnetClip, quality
from ldm.metrics.numbers import (
    centred_interval,
    decibels,
    frechet_distance,
    kernel_distance,
    mean_interval,
    percentile_interval,
    psnr_over,
    squared_error,
)
from tests.ldm.small_metrics import write_dino, write_inception, write_resnet_clip, write_squeezenet

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("n", "m", "d"), [(40, 60, 8), (6, 9, 20), (30, 5, 12)])
def test_fid_is_the_formula_with_a_matrix_root(n: int, m: int, d: int):
    mixing = RNG.normal(size=(d, d))
    real, fake = RNG.normal(size=(n, d)) @ mixing, RNG.normal(0.3, 1.2, (m, d))
    one, other = (np.cov(values, rowvar=False) for values in (real, fake))
    root = scipy.linalg.sqrtm(one @ other).real
    expected = np.square(real.mean(0) - fake.mean(0)).sum() + np.trace(one + other - 2 * root)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6 * np.trace(one))


def test_fid_refuses_what_has_no_covariance():
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))


def test_kid_is_unbiased_and_written_out():
    real, fake = RNG.normal(size=(5, 4)), RNG.normal(0.5, 1, (4, 4))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / 4 + 1) ** 3

    expected = np.mean([kernel(a, b) for i, a in enumerate(real) for j, b in enumerate(real) if i != j])
    expected += np.mean([kernel(a, b) for i, a in enumerate(fake) for j, b in enumerate(fake) if i != j])
    expected -= 2 * np.mean([kernel(a, b) for a in real for b in fake])
    assert kernel_distance(real, fake) == pytest.approx(expected)
    same = [kernel_distance(*RNG.normal(size=(2, 20, 4))) for _ in range(300)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(300)


def test_intervals_hold_the_truth_at_their_rate():
    """The mean of 40 normal numbers lies in its 95 % interval in about 95 of 100 draws."""
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(100):
        values = rng.normal(5, 2, 40)
        low, high = percentile_interval(lambda some, values=values: values[some].mean(), 40, resamples=300)
        inside += low <= 5 <= high
    assert 86 <= inside <= 100
    values = rng.normal(5, 2, 400)
    low, high = centred_interval(lambda some: values[some].mean(), values.mean(), 400, resamples=100)
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.35)
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert mean_interval([1.0, 2.0, 3.0])["mean"] == 2.0


def test_psnr():
    one, other = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    half = np.arange(16).reshape(4, 4) % 2 == 0
    mixed = np.where(half[..., None], one, other)
    assert squared_error(one, mixed) == pytest.approx(255**2 / 2)
    assert squared_error(one, mixed, half) == 0
    assert psnr_over(mixed, other, half) == 0
    assert decibels(255**2 / 100) == pytest.approx(20)


def test_tensorflow_s_resize_keeps_ramps_and_the_first_pixel():
    ramp = torch.arange(8.0)[None, None, None].expand(1, 1, 8, 8)
    large = resize_like_tensorflow(ramp, 16)
    assert torch.allclose(large[0, 0, 0, :15], torch.arange(15) / 2)
    assert large[0, 0, 0, 15] == 7
    assert torch.equal(resize_like_tensorflow(ramp, 8), ramp)
    assert torch.equal(resize_like_tensorflow(ramp, 4)[0, 0, 0], torch.tensor([0.0, 2, 4, 6]))


def test_inception_has_the_published_layers(tmp_path: Path):
    names = dict(Inception().named_parameters())
    assert names["Mixed_5b.branch5x5_2.conv.weight"].shape == (64, 48, 5, 5)
    assert names["Mixed_6b.branch7x7dbl_2.conv.weight"].shape == (128, 128, 7, 1)
    assert names["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert names["Mixed_7a.branch7x7x3_4.conv.weight"].shape == (192, 192, 3, 3)
    assert names["fc.weight"].shape == (1008, 2048)
    path = write_inception(tmp_path / "inception.pth")
    images = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    with torch.inference_mode():
        features = load_inception(path)(images)
    assert features.shape == (2, 2048)
    assert not torch.allclose(features[0], features[1], rtol=1e-3, atol=0)  # untrained: all are tiny


def test_lpips_is_the_sum_of_weighted_differences(tmp_path: Path):
    network = Lpips.load(write_squeezenet(tmp_path / "squeezenet.pth"))
    one, other = torch.rand(2, 2, 3, 48, 40) * 2 - 1
    with torch.inference_mode():
        distance = network(one, other)
        assert torch.equal(network(one, one), torch.zeros(2))
        expected = torch.zeros(2)
        heads = [head.weight for head in network.heads]
        for a, b, weight in zip(network.layers(one), network.layers(other), heads, strict=True):
            expected += F.conv2d((a - b) ** 2, weight).mean((1, 2, 3))
        assert torch.allclose(distance, expected, rtol=1e-5)
        half = torch.cat([other[:1, :, :, :20], one[:1, :, :, 20:]], 3)
        where = network.map(one[:1], half)[0]
    assert float(where[:, :16].mean()) > 2 * float(where[:, 32:].mean())
    assert len(Lpips().features) == 13
    assert isinstance(network, Lpips)


def test_clip_squeezes_images_and_cuts_long_texts(tmp_path: Path):
    clip = Clip.load(write_clip(tmp_path / "clip"))
    wide = RNG.integers(0, 256, (20, 60, 3), np.uint8)
    images, texts = clip.images([wide, wide[:, ::-1]]), clip.texts(["a red cube", "a cube " * 100])
    assert images.shape == texts.shape == (2, 16)
    assert np.allclose(np.linalg.norm(np.concatenate([images, texts]), axis=1), 1, atol=1e-5)
    assert np.allclose(clip.images([wide]), images[:1], atol=1e-5)
    shares = clip.quality([wide, wide[:, ::-1]])
    logits = 100 * images @ clip.texts([GOOD, BAD]).T
    assert np.allclose(shares, torch.tensor(logits).softmax(-1)[:, 0], atol=1e-4)


def test_quality_by_a_resnet_takes_images_of_any_size(tmp_path: Path):
    network = ResnetClip.load(write_resnet_clip(tmp_path / "RN50.pt"))
    samples = [RNG.integers(0, 256, size, np.uint8) for size in ((64, 96, 3), (100, 64, 3), (5, 9, 3))]
    found = network.quality(samples)
    images, texts = (F.normalize(one, dim=-1) for one in network.features(samples))
    expected = (100 * images @ texts.T).softmax(-1)[:, 0]
    assert np.allclose(found, expected.detach().numpy(), atol=1e-4)
    assert np.allclose(network.quality(samples[1:]), found[1:], atol=1e-5)
    with pytest.raises(ValueError, match="not the weights of a CLIP with a ResNet"):
        ResnetClip.load(write_squeezenet(tmp_path / "squeezenet.pth"))


def test_attention_pool_is_attention_of_the_mean():
    """Against torch's own attention, with every place as a query."""
    pool = AttentionPool(5, 64, 6)
    x = torch.randn(2, 64, 2, 3)
    places = torch.cat([x.flatten(2).mean(2, keepdim=True), x.flatten(2)], 2).permute(2, 0, 1)
    parts = (pool.q_proj, pool.k_proj, pool.v_proj)
    read, _ = F.multi_head_attention_forward(
        places, places, places, 64, 1, None, torch.cat([part.bias for part in parts]), None, None, False, 0.0,
        pool.c_proj.weight, pool.c_proj.bias, use_separate_proj_weight=True, need_weights=False,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
    )  # fmt: skip
    assert torch.allclose(pool(x), read[0], atol=1e-5)


def test_scripts_are_read_for_their_weights(tmp_path: Path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 3)), tmp_path / "script.pt")
    assert read_weight_file(tmp_path / "script.pt")["weight"].shape == (3, 2)


def test_quality_is_a_probability_without_overflow():
    images, anchors = np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)
    assert quality(images, anchors).tolist() == pytest.approx([1, 0])


def test_dino_sees_the_middle_square(tmp_path: Path):
    dino = Dino(Dino.load(write_dino(tmp_path / "dino")).model, side=28)
    image = RNG.integers(0, 256, (28, 44, 3), np.uint8)
    sides = image.copy()
    sides[:, :8] = sides[:, 36:] = 0
    found = dino.images([image, sides])
    assert found.shape == (2, 16)
    assert np.allclose(found[0], found[1], atol=1e-5)


def test_weight_files_are_checked(tmp_path: Path):
    with pytest.raises(ValueError, match=r"absent.pth does not exist; `python -m ldm.registry list`"):
        read_weight_file(tmp_path / "absent.pth")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"broken.pth: (refused|not a readable)"):
        read_weight_file(tmp_path / "broken.pth")
    torch.save({"a": [1]}, tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no tensors"):
        read_weight_file(tmp_path / "list.pth")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="weights missing"):
        load_inception(tmp_path / "other.pth")
    assert list(hash_of(tmp_path / "other.pth")) == ["other.pth"]
