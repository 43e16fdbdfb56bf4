"""Crops, layouts, thresholds and the choice of regions, against their published definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inpainting.data.choice import (
    PaintingOptions,
    choose_regions,
    crop_geometry,
    crop_image,
    crop_mask,
    layout_rows,
    within,
)
from inpainting.data.paintings import Painting
from inpainting.data.steps.regions import RegionSettings, make_masks
from tests.inpainting.painting_set import write_set

SIDE = 32
FIRST = {"shuffle_concepts": False, "masked_area_threshold": None}


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
    assert crop_geometry((542, 700), 512) == ((512, 661), (0, 74))  # 74.5 is rounded to even
    assert crop_geometry((700, 537), 512) == ((667, 512), (78, 0))
    assert crop_geometry((100, 333), 512) == ((512, 1704), (0, 596))
    rgb_u8 = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    by_hand = Image.fromarray(rgb_u8).resize((44, 32), Image.Resampling.BILINEAR).crop((6, 0, 38, 32))
    assert np.allclose(
        crop_image(rgb_u8, 32).permute(1, 2, 0) * 127.5 + 127.5, np.asarray(by_hand), atol=1e-3
    )
    mask = rgb_u8[..., 0] > 127
    rows, columns = (np.arange(32) * 50 // 32)[:, None], (np.arange(44) * 70 // 44)[None, 6:38]
    assert (crop_mask(mask, 32).numpy() == mask[rows, columns]).all()


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
    assert torch.allclose(published, crop_image(rgb_u8, 48), atol=1e-6)


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


def test_choices(tmp_path: Path) -> None:
    made = write_set(tmp_path)
    make_masks(RegionSettings(made.annotations, image_dir=made.images, out_dir=made.out / "masks", workers=1))
    folders = made.out / "masks/gina_dancers", made.out / "entities/gina_dancers"
    painting = Painting("gina_dancers", made.images / "gina_dancers.jpg", *folders)
    names, rng = ["mask_0", "mask_1", "mask_2"], np.random.default_rng
    size = painting.read_image().shape[:2]

    def chosen(seed: int, **rules: Any) -> tuple[str, ...]:
        options = PaintingOptions(resolution=SIDE, **{**FIRST, **rules})
        return choose_regions(painting, names, size, options, rng(seed))[0]

    by_area = ("mask_0", "mask_2", "mask_1")
    assert chosen(0) == chosen(1, max_concepts=None) == by_area
    assert chosen(0, max_concepts=2) == by_area[:2]
    assert {chosen(seed, max_concepts=1) for seed in range(30)} == {(name,) for name in names}
    assert len({chosen(seed, shuffle_concepts=True) for seed in range(60)}) == 6
