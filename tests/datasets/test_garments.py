"""Garments on white paper: the mask is what differs from white in any channel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.base import Rejected
from datasets.sources.objects import DreamBoothConfig, DressCodeConfig
from tests.profiles import in_profile, rgb_profile

INSIDE = np.s_[60:200, 40:150]
COLOURS = {
    "navy": (20, 20, 80), "red": (250, 20, 30), "orange": (255, 140, 0), "yellow": (255, 230, 40),
    "pink": (255, 180, 200), "magenta": (255, 120, 255), "cyan": (0, 255, 255), "cream": (255, 253, 208),
    "gray": (235, 235, 235), "green": (245, 255, 120),
}  # fmt: skip


def garment(folder: Path, colour: tuple[int, int, int], striped: bool, profile: bytes | None) -> np.ndarray:
    """One item of DressCode; returns the reference mask that the source finds."""
    for name in ("images", "depth", "label_maps"):
        (folder / name).mkdir()
    rgb_u8 = np.full((256, 192, 3), 255, np.uint8)
    rgb_u8[INSIDE] = colour
    if striped:
        rgb_u8[120:140, 40:150] = (20, 20, 120)
    own_u8 = in_profile(rgb_u8, profile) if profile else rgb_u8
    Image.fromarray(own_u8).save(folder / "images/a_1.jpg", quality=95, subsampling=0, icc_profile=profile)
    Image.fromarray(rgb_u8).save(folder / "images/a_0.jpg")
    labels = np.zeros((256, 192), np.uint8)
    labels[INSIDE] = 4
    Image.fromarray(labels).save(folder / "label_maps/a_4.png")
    Image.fromarray(np.arange(256 * 192, dtype=np.uint16).reshape(256, 192)).save(folder / "depth/a_0.png")
    config = DressCodeConfig(
        images=folder / "images", depth=folder / "depth", label_maps=folder / "label_maps"
    )
    return config.open().example(0, np.random.default_rng(0)).reference_mask


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("striped", [False, True])
def test_a_garment_of_any_colour_is_its_own_mask(tmp_path: Path, colour: str, striped: bool) -> None:
    mask = garment(tmp_path, COLOURS[colour], striped, None)
    assert mask[INSIDE].mean() > 0.99
    assert mask.sum() < 1.05 * 140 * 110


def test_a_profile_does_not_change_the_mask(tmp_path: Path) -> None:
    mask = garment(tmp_path, COLOURS["pink"], False, rgb_profile())
    assert mask[INSIDE].mean() > 0.99
    assert mask.sum() < 1.05 * 140 * 110


def test_white_paper_alone_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"object absent: .*a_1\.jpg is white"):
        garment(tmp_path, (255, 255, 255), False, None)


def test_only_black_is_filled_in_masks_of_backgrounds(tmp_path: Path) -> None:
    """The neighbour of the rule: a coloured pixel of a mask is no black one."""
    for name in ("objects", "object_masks", "backgrounds", "depth"):
        (tmp_path / name).mkdir()
    for name in ("objects/cup.png", "backgrounds/a.png", "depth/a.png"):
        Image.fromarray(np.full((64, 64), 99, np.uint8)).save(tmp_path / name)
    mask_u8 = np.full((64, 64, 3), 255, np.uint8)
    Image.fromarray(mask_u8).save(tmp_path / "object_masks/cup.png")
    mask_u8[8:40, 8:40], mask_u8[8:20, 8:20] = 0, (255, 0, 0)
    Image.fromarray(mask_u8).save(tmp_path / "backgrounds/a_mask.png")
    folders = {name: tmp_path / name for name in ("objects", "object_masks", "backgrounds", "depth")}
    views = list(DreamBoothConfig(**folders).open().views(0))
    assert views[1].mask().sum() == 32 * 32 - 12 * 12
