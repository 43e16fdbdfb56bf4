"""Crops, layouts, thresholds and the choice of regions, against their published definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from inpainting.data.datasets import centre_crop, layout_rows, within


def test_layout_rows_are_the_published_ones() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2, :2] = True
    masks[1, 1:3, 1:3] = True
    rows = layout_rows(masks, max_concepts=5)
    assert rows.shape == (6, 4, 4)
    assert (rows[0] == 1).all()
    assert (rows[3:] == 0).all()
    outside = ~(masks[0] | masks[1])
    assert torch.equal(rows[1] > 0, masks[0] | outside)
    assert torch.equal(rows[2] > 0, masks[1] | outside)
    assert layout_rows(masks, None).shape == (3, 4, 4)


def test_pixels_are_resized_and_cropped_as_torchvision_does() -> None:
    sizes = {(542, 700): (512, 661, 0, 74), (700, 537): (667, 512, 78, 0), (100, 333): (512, 1704, 0, 596)}
    for shape, (h, w, top, left) in sizes.items():  # 74.5 is rounded to even
        mask = np.random.default_rng(0).random(shape) < 0.5
        scaled = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None].float(), (h, w))[0, 0] > 0
        assert torch.equal(centre_crop(mask, 512), scaled[top : top + 512, left : left + 512])
    rgb_u8 = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    by_hand = Image.fromarray(rgb_u8).resize((44, 32), Image.Resampling.BILINEAR).crop((6, 0, 38, 32))
    assert np.allclose(
        centre_crop(rgb_u8, 32).permute(1, 2, 0) * 127.5 + 127.5, np.asarray(by_hand), atol=1e-3
    )
    mask = rgb_u8[..., 0] > 127
    rows, columns = (np.arange(32) * 50 // 32)[:, None], (np.arange(44) * 70 // 44)[None, 6:38]
    assert (centre_crop(mask, 32).numpy() == mask[rows, columns]).all()


def test_torchvision_itself_agrees() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    rgb_u8 = np.random.default_rng(1).integers(0, 256, (71, 97, 3), dtype=np.uint8)
    steps = [
        transforms.Resize(48),
        transforms.CenterCrop(48),
        transforms.ToTensor(),
        transforms.Normalize([0.5], [0.5]),
    ]
    published = transforms.Compose(steps)(Image.fromarray(rgb_u8))
    assert torch.allclose(published, centre_crop(rgb_u8, 48), atol=1e-6)


def test_the_threshold_keeps_a_prefix() -> None:
    masks = torch.zeros(3, 10, 10, dtype=torch.bool)
    masks[0, :, :8] = True  # 0.8: the first is kept whatever it covers
    masks[1, :, 8:9] = True
    masks[2, :1, :1] = True
    assert within(masks, 0.65) == 1
    assert within(masks, 0.9) == 3
    assert within(masks[[2, 0, 1]], 0.65) == 1  # the walk stops at the first that is too much
    assert within(masks[[2, 1, 0]], 0.65) == 2
    assert within(masks, None) == 3
