"""Training on photographs shows the depth that inference can make."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.examples import PairDataset
from datasets.inputs import PUBLISHED_TRAINING, Augment, AugmentationParams, PairOptions
from datasets.pairs import build_pair
from datasets.sources.still import FolderConfig
from ldm.images import write_depth, write_mask

TARGET = PairOptions(size=(64, 64), reference_size=28, depth_hint="target")
FUSED = replace(TARGET, depth_hint="fused")
H, W = 120, 160
BOX = np.s_[40:80, 50:110]


def write_source(root: Path, near: float = 0.6, occluder: bool = False) -> FolderConfig:
    """A box of depth `near` on a floor of depth 0.3; a bar of depth 1 before it; at the left depth is 0."""
    mask, depth_01 = np.zeros((H, W), bool), np.full((H, W), 0.3, np.float32)
    mask[BOX] = True
    depth_01[BOX] = near
    depth_01[40:80, 50:80] += 0.1  # a relief of its own
    depth_01[:, :5], depth_01[:4, 150:] = 0, 1
    if occluder:
        depth_01[:, 100:115] = 1
        mask[:, 100:115] = False
    write_mask(root / "masks/a.png", mask)
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (H, W, 3), dtype=np.uint8)).save(root / "images/a.png")
    write_depth(root / "depth/a.png", depth_01)
    return FolderConfig(root=root)


def hint(root: Path, options: PairOptions, level: str = "box"):
    source = write_source(root).open() if not (root / "images").exists() else FolderConfig(root=root).open()
    source.options = options
    inputs = source.example(0, np.random.default_rng(0))
    return build_pair(inputs, options, AugmentationParams(mask_level=level)), inputs


def test_the_hole_is_filled_and_the_object_s_own_depth_fused(tmp_path) -> None:
    (target, shown), (fused, given) = hint(tmp_path, TARGET), hint(tmp_path, FUSED)
    assert (shown.mode, given.mode) == ("inpaint", "replace")
    assert given.depth_range == pytest.approx((0.6, 0.7), abs=1e-3)
    edit = fused.edit_mask[0].numpy()
    values = fused.depth_01[0].numpy()
    assert np.abs(values[~edit] - target.depth_01[0].numpy()[~edit]).max() < 0.02
    assert values[fused.layers.visible].min() >= 0.59
    ring = edit & ~fused.layers.placed.alpha_01.astype(bool)
    assert np.abs(values[ring] - 0.3).max() < 0.05  # of the filled floor
    assert np.array_equal(fused.target_u8, target.target_u8)


@pytest.mark.parametrize("level", ["exact", "fine", "coarse", "box"])
def test_mask_levels_are_the_same(tmp_path, level) -> None:
    (target, _), (fused, _) = hint(tmp_path, TARGET, level), hint(tmp_path, FUSED, level)
    assert np.array_equal(target.edit_mask, fused.edit_mask)


def test_what_is_nearer_is_cut_out_of_the_mask(tmp_path) -> None:
    write_source(tmp_path, occluder=True)
    (target, _), (fused, _) = hint(tmp_path, TARGET), hint(tmp_path, FUSED)
    bar = fused.layers.keep
    assert bar.mean() > 0.05
    assert target.edit_mask[0].numpy()[bar].any()
    assert not fused.edit_mask[0].numpy()[bar].any()


@pytest.mark.parametrize(
    ("options", "mode"), [(PUBLISHED_TRAINING, "inpaint"), (TARGET, "inpaint"), (FUSED, "replace")]
)
def test_a_run_shows_what_its_options_say(tmp_path, options, mode) -> None:
    dataset = PairDataset(write_source(tmp_path).open(), replace(options, augment=Augment()), seed=0)
    assert dataset[0].geometry.inputs.mode == mode


def test_a_reference_without_depth_bulges(tmp_path) -> None:
    source = write_source(tmp_path).open()
    source.options = FUSED
    name, view, other = source.items[0]
    source.items = [(name, replace(view, tree=None), other)]
    inputs = source.example(0, np.random.default_rng(0))
    assert inputs.mode == "replace"
    assert inputs.reference_depth_01 is None
