"""The one pre-processing: published numbers behind the switches, and what every pair promises."""

import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from datasets.augment import mirror, permute_colours, relight_room
from datasets.inputs import AugmentationParams, Inputs, PairOptions
from datasets.pairs import Geometry, Pair, build_pair
from tests.datasets.preprocess_golden import (
    OPTIONS,
    SEEDS,
    Golden,
    golden_inputs,
    load_golden,
    perturbed_region,
    published_choices,
)

SMALL = PairOptions(size=(64, 64), reference_size=56, hf_mode="cutout", show_background=True)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden()


def sample(mode: str = "place", size: tuple[int, int] = (96, 128), **changes) -> Inputs:
    """Smooth random images, an elliptic object, a floor that comes nearer downwards."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:72, :80]
    target = np.zeros(size, bool)
    target[30:70, 50:90] = True
    values = {
        "reference_u8": cv2.GaussianBlur(rng.integers(0, 256, (72, 80, 3), dtype=np.uint8), (0, 0), 2),
        "reference_mask": ((rows - 36) / 30) ** 2 + ((columns - 40) / 24) ** 2 < 1,
        "background_u8": cv2.GaussianBlur(rng.integers(0, 256, (*size, 3), dtype=np.uint8), (0, 0), 3),
        "background_depth_01": np.repeat(np.linspace(0, 1, size[0], dtype=np.float32)[:, None], size[1], 1),
        "box01_xyxy": (0.4, 0.3, 0.7, 0.75),
        "depth_range": (0.7, 0.8),
        "mode": mode,
        "target_mask": None if mode == "place" else target,
    }
    return Inputs(**(values | changes))


def test_stretching_is_limited_and_keeps_the_foot():
    geometry = Geometry.of(sample(box01_xyxy=(0.1, 0.3, 0.9, 0.75)), SMALL)
    (h, w), native = geometry.cutout.mask.shape, geometry.crop.native
    box = native.to_frame(geometry.box_xyxy)
    for limit in (1.0, 1.25, 100.0):
        stretched = replace(geometry, options=replace(SMALL, max_stretch=limit))
        x0, y0, x1, y1 = stretched.fitted_box(native)
        assert ((x0 + x1) / 2, y1) == pytest.approx(((box[0] + box[2]) / 2, box[3]))
        if limit == 100.0:
            assert (x0, y0) == pytest.approx(box[:2])
        else:
            assert (x1 - x0) / w == pytest.approx(limit * (y1 - y0) / h)


def flat(pair: Pair) -> list[torch.Tensor]:
    return [value for value in vars(pair).values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", sorted(OPTIONS))
def test_pairs_equal_the_published_ones(golden, kind, seed):
    inputs, (choices, stream) = golden_inputs(golden), published_choices(kind, seed)
    pair = build_pair(inputs, OPTIONS[kind], choices)
    if choices.mask_level == "perturbed":
        region = perturbed_region(inputs, pair.crop.box_xyxy, stream)
        pair = build_pair(replace(inputs, region=region), OPTIONS[kind], choices)
    x0, y0, x1, y1 = pair.crop.box_xyxy
    assert (y0, y1, x0, x1) == tuple(golden[f"{kind}{seed}_tar_box_yyxx_crop"])
    assert (y1 - y0, x1 - x0, *pair.crop.padded_size) == tuple(golden[f"{kind}{seed}_extra_sizes"])
    detail = pair.detail_pm1.permute(1, 2, 0).numpy()
    expected = golden[f"{kind}{seed}_hint"]
    assert np.array_equal(detail[:: golden.step, :: golden.step, 3], expected[..., 3])
    assert golden.error(f"{kind}{seed}_hint", detail) <= 1 / 127.5
    assert golden.error(f"{kind}{seed}_jpg", pair.target_pm1.permute(1, 2, 0).numpy()) <= 1 / 127.5
    assert golden.error(f"{kind}{seed}_ref", pair.reference_01.permute(1, 2, 0).numpy()) <= 1 / 255
    assert golden.error(f"{kind}{seed}_depth", pair.depth_01.permute(1, 2, 0).numpy()) <= 1 / 255


def visible_mask(pair: Pair) -> torch.Tensor:
    """(1, h, w) bool: the visible cut-out."""
    return torch.from_numpy(pair.layers.visible)[None]


@pytest.mark.parametrize("mode", ["place", "replace", "id-transfer", "inpaint"])
@pytest.mark.parametrize("hf_mode", ["zero", "gray255", "color", "cutout"])
def test_shapes_ranges_and_masks_of_every_mode(mode, hf_mode):
    options = replace(SMALL, hf_mode=hf_mode)
    pair = build_pair(sample(mode), options)
    assert pair.reference_01.shape == (3, 56, 56)
    assert pair.detail_pm1.shape == (4, 64, 64)
    for name in ("target_pm1", "depth_01", "background_pm1", "paste_pm1"):
        assert getattr(pair, name).shape == (3, 64, 64)
        assert getattr(pair, name).dtype == torch.float32
    assert pair.edit_mask.dtype == visible_mask(pair).dtype == torch.bool
    assert pair.edit_mask.any()
    assert visible_mask(pair).any()
    assert not (visible_mask(pair) & ~pair.edit_mask).any()
    assert torch.equal(pair.detail_pm1[3:] == 1, pair.edit_mask)
    assert all(torch.isfinite(value.float()).all() for value in flat(pair))
    assert pair.reference_01.min() >= 0
    assert pair.reference_01[:, 0, 0].tolist() == [1, 1, 1]
    assert pair.detail_pm1.min() >= -1
    assert pair.detail_pm1.max() <= 1
    outside = ~pair.edit_mask.expand(3, -1, -1)
    assert torch.equal(pair.detail_pm1[:3][outside], pair.background_pm1[outside])
    assert torch.equal(pair.paste_pm1[outside], pair.background_pm1[outside])


def test_only_place_and_replace_change_the_depth():
    for mode in ("place", "replace", "id-transfer", "inpaint"):
        inputs = sample(mode)
        pair = build_pair(inputs, SMALL)
        untouched = torch.from_numpy(pair.crop.take(inputs.background_depth_01))
        assert torch.equal(pair.depth_01[0], untouched) == (mode in ("id-transfer", "inpaint"))
        if mode == "place":
            inside = visible_mask(pair)[0]
            assert torch.equal(pair.depth_01[0][~inside], untouched[~inside])
            assert pair.depth_01[0][inside].min() >= 0.7
            assert pair.depth_01[0][inside].max() <= 0.8 + 1e-6


def test_training_and_inference_read_the_same_hints():
    inference = sample()
    truth = 255 - inference.background_u8
    training = replace(inference, target_u8=truth)
    ours, theirs = build_pair(training, SMALL), build_pair(inference, SMALL)
    assert torch.equal(ours.detail_pm1, theirs.detail_pm1)
    assert torch.equal(ours.depth_01, theirs.depth_01)
    assert torch.equal(ours.paste_pm1, theirs.paste_pm1)
    assert torch.equal(theirs.target_pm1, theirs.background_pm1)
    edit = ours.edit_mask.expand(3, -1, -1)
    assert torch.equal(ours.target_pm1[~edit], ours.background_pm1[~edit])
    assert torch.allclose(ours.target_pm1[edit], -ours.background_pm1[edit], atol=2 / 127)


@pytest.mark.parametrize("hf_mode", ["zero", "gray255", "cutout"])
@pytest.mark.parametrize("mode", ["replace", "id-transfer", "inpaint"])
def test_the_hint_never_shows_the_answer(mode, hf_mode):
    inputs = sample(mode)
    other = inputs.background_u8.copy()
    other[inputs.target_mask] = 255 - other[inputs.target_mask]
    options = replace(SMALL, hf_mode=hf_mode, show_background=False)
    images = inputs.background_u8, other
    first, second = (build_pair(replace(inputs, background_u8=u8), options) for u8 in images)
    edit = first.edit_mask.expand(3, -1, -1)
    assert torch.equal(first.detail_pm1[:3][edit], second.detail_pm1[:3][edit])
    # The smooth continuation may read pixels at the edge into which resizing mixed a little of the answer.
    shown = replace(options, show_background=True)
    first, second = (build_pair(replace(inputs, background_u8=u8), shown) for u8 in images)
    answer = (first.background_pm1 - second.background_pm1)[edit].abs().mean()
    for name in ("paste_pm1", "detail_pm1"):
        leak = (getattr(first, name)[:3] - getattr(second, name)[:3])[edit].abs().mean()
        assert leak < 0.1 * answer


def test_the_same_choices_give_the_same_pair_and_sampling_is_reproducible():
    for seed in range(12):
        choices = AugmentationParams.sample(np.random.default_rng(seed), SMALL)
        assert choices == AugmentationParams.sample(np.random.default_rng(seed), SMALL)
        first, second = build_pair(sample(), SMALL, choices), build_pair(sample(), SMALL, choices)
        assert all(torch.equal(a, b) for a, b in zip(flat(first), flat(second), strict=True))


def test_choices_are_visible_in_the_pair():
    plain = build_pair(sample(), SMALL)
    wide = build_pair(sample(), SMALL, AugmentationParams(crop_ratio=1.3))
    assert wide.crop.padded_size < plain.crop.padded_size
    bright = build_pair(sample(), SMALL, AugmentationParams(brightness=0.3))
    assert bright.paste_pm1[visible_mask(bright).expand(3, -1, -1)].mean() > (
        plain.paste_pm1[visible_mask(plain).expand(3, -1, -1)].mean() + 0.3
    )
    assert bright.reference_01[:, 0, 0].tolist() == [1, 1, 1]
    flipped = build_pair(sample(), SMALL, AugmentationParams(flip=True))
    assert (flipped.reference_01.flip(-1) - plain.reference_01).abs().mean() < 0.02


def test_symmetries_act_on_the_whole_sample():
    inputs = replace(sample(), target_u8=sample().background_u8[::-1].copy())
    options = replace(SMALL, max_stretch=100.0)
    plain, mirrored = build_pair(inputs, options), build_pair(mirror(inputs), options)
    assert (plain.edit_mask.flip(-1) != mirrored.edit_mask).float().mean() < 0.02
    assert (plain.depth_01.flip(-1) - mirrored.depth_01).abs().mean() < 0.01
    moved = build_pair(permute_colours(inputs, (2, 0, 1)), options)
    assert torch.equal(moved.target_pm1, plain.target_pm1[[2, 0, 1]])
    assert torch.equal(moved.reference_01, plain.reference_01[[2, 0, 1]])


def test_another_lamp_lights_the_room_and_not_the_reference():
    inputs = replace(sample(), target_u8=np.full_like(sample().background_u8, 100))
    lit = relight_room(inputs, (0.5, 1.0, 4.0))
    linear = (np.array(lit.target_u8[0, 0]) / 255.0) ** 2.2 / (100 / 255) ** 2.2
    assert linear == pytest.approx([0.5, 1.0, 4.0], rel=0.03)
    assert np.array_equal(lit.background_u8[..., 1], inputs.background_u8[..., 1])
    assert int(lit.background_u8.max()) <= 255
    assert lit.reference_u8 is inputs.reference_u8
    assert relight_room(sample(), (0.5, 1.0, 1.0)).target_u8 is None


def test_padding_is_marked_and_black():
    pair = build_pair(sample(size=(96, 300), box01_xyxy=(0.1, 0.3, 0.9, 0.7)), SMALL)
    assert pair.crop.pad[1] + pair.crop.pad[3] > 0
    padded = ~torch.from_numpy(pair.crop.inside)
    assert (pair.detail_pm1[3][padded] == -1).all()
    assert (pair.detail_pm1[3][~padded] >= 0).all()
    certainly = torch.from_numpy(cv2.erode(padded.numpy().astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
    assert (pair.background_pm1[:, certainly] == -1).all()


def test_context_is_cut_before_it_would_need_padding():
    narrow = sample(size=(96, 300), box01_xyxy=(0.4, 0.3, 0.6, 0.75))
    pair = build_pair(narrow, replace(SMALL, crop_ratio=8.0))
    assert pair.crop.pad == (0, 0, 0, 0)
    assert pair.crop.padded_size == (96, 96)


@pytest.mark.parametrize("size", [(64, 64), (200, 64), (64, 300), (1080, 1920)])
@pytest.mark.parametrize("box01", [(0.0, 0.0, 0.2, 0.3), (0.7, 0.6, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)])
def test_any_background_and_a_box_at_the_border(size, box01):
    inputs = sample(size=size, box01_xyxy=box01, depth_range=(1.0, 1.0), target_mask=None)
    pair = build_pair(inputs, SMALL)
    assert visible_mask(pair).any()
    x0, y0, x1, y1 = pair.crop.box_xyxy
    assert 0 <= x0 < x1 <= size[1]
    assert 0 <= y0 < y1 <= size[0]


def test_a_pair_can_be_pickled():
    pair = build_pair(sample(), SMALL)
    again = pickle.loads(pickle.dumps(pair))
    assert again.crop == pair.crop
    assert all(torch.equal(a, b) for a, b in zip(flat(pair), flat(again), strict=True))


def test_modes_have_one_alias_and_a_clear_error():
    assert sample("draw").mode == "inpaint"
    with pytest.raises(ValueError, match="place, replace, id-transfer, inpaint"):
        sample("palce")
