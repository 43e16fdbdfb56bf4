"""Crop and stitch: nothing outside the edit mask changes, nothing nearer is covered, detail comes through."""

import weakref
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import pasteback
from datasets.geometry import Crop, mask_of_box, square_box, square_padding
from datasets.inputs import Inputs, PairOptions
from datasets.masks import feather_inside
from datasets.pairs import Geometry, build_pair
from datasets.pasteback import stitch, transfer_detail
from ldm.decode import LoadedImage
from ldm.images import from_pm1
from tests.datasets.preprocess_golden import load_golden

OPTIONS = PairOptions(size=(64, 64), reference_size=56, hf_mode="cutout")


def noise(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def visible_mask(geometry: Geometry) -> np.ndarray:
    """(H, W) bool, the object's cut-out where nothing hides it."""
    return geometry.window.embed(geometry.native_layers.visible)


def scene(
    box01: tuple[float, float, float, float], size: tuple[int, int] = (150, 210), near: float = 0.7
) -> Inputs:
    """A disc with stripes placed before a wall, a post in front of the wall's left part."""
    rows, columns = np.mgrid[:60, :60]
    stripes = np.repeat(((columns // 4) % 2 * 200).astype(np.uint8)[..., None], 3, axis=-1)
    depth = np.full(size, 0.2, np.float32)
    depth[:, size[1] // 4 : size[1] // 3] = 0.9
    return Inputs(
        reference_u8=stripes,
        reference_mask=(rows - 30) ** 2 + (columns - 30) ** 2 < 27**2,
        background_u8=noise(size, 1),
        background_depth_01=depth,
        box01_xyxy=box01,
        depth_range=(near - 0.1, near),
    )


@pytest.mark.parametrize(
    ("name", "box"),
    [("square", (200, 100, 400, 300)), ("wide", (200, 100, 500, 300)), ("tall", (200, 100, 400, 400))],
)
def test_rectangle_equals_the_published_paste(name, box):
    golden = load_golden()
    generated = np.empty((512, 512, 3), np.float32)
    generated[:] = 40, 120, 0
    generated[..., 2] = np.linspace(0, 255, 512)
    crop = Crop(box, square_padding((box[3] - box[1], box[2] - box[0])), (512, 512), (480, 640))
    before = golden["in_img"].copy()
    inputs = replace(scene((0.3, 0.2, 0.6, 0.6), crop.background_size), background_u8=before)
    geometry = replace(Geometry.of(inputs, OPTIONS), crop=crop)
    result = stitch(geometry, generated, paste="legacy-rect").result_u8
    assert golden.error(f"paste_{name}", result) == 0
    assert np.array_equal(before, golden["in_img"])


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_random_mask_never_drifts(data):
    size = data.draw(st.integers(40, 160)), data.draw(st.integers(40, 160))
    seed = data.draw(st.integers(0, 1000))
    x, y = data.draw(st.integers(0, size[1] - 9)), data.draw(st.integers(0, size[0] - 9))
    x0, y0, x1, y1 = square_box((x, y, x + data.draw(st.integers(8, 90)), y + 8), size)
    crop = Crop((x0, y0, x1, y1), square_padding((y1 - y0, x1 - x0)), (32, 32), size)
    fields = cv2.GaussianBlur(np.random.default_rng(seed).random((y1 - y0, x1 - x0, 2)), (0, 0), 4)
    edit, keep = np.moveaxis(fields > np.median(fields), -1, 0)
    background = noise(size, seed)
    image = crop.undo(noise((32, 32), seed + 1))
    feather = data.draw(st.floats(0, 20))
    edit &= ~keep
    weight_01 = feather_inside(edit, feather, open_to=keep)
    result, mask = (
        LoadedImage(background).painted(image, weight_01, edit, crop.part).own_u8,
        np.zeros(size, bool),
    )
    mask[crop.part] = edit
    assert np.array_equal(result[~mask], background[~mask])
    if feather < 1:
        assert np.array_equal(result[mask], image[edit])


@pytest.mark.parametrize("box01", [(0.4, 0.3, 0.8, 0.9), (0.0, 0.0, 0.3, 0.5), (0.7, 0.5, 1.0, 1.0)])
@pytest.mark.parametrize("detail", [0.0, 1.0])
def test_stitching_keeps_the_background_and_what_is_nearer(box01, detail):
    inputs = scene(box01)
    pair = build_pair(inputs, OPTIONS)
    done = stitch(pair.geometry, noise((64, 64), 2), detail=detail)
    assert np.array_equal(done.result_u8[~done.edit_mask], inputs.background_u8[~done.edit_mask])
    nearer = inputs.background_depth_01 > 0.8
    assert np.array_equal(done.result_u8[nearer], inputs.background_u8[nearer])
    assert not (done.edit_mask & nearer).any()
    assert not (visible_mask(pair.geometry) & ~done.edit_mask).any()
    assert visible_mask(pair.geometry).any()
    assert np.array_equal(scene(box01).background_u8, inputs.background_u8)


def test_the_background_itself_comes_back_as_it_was():
    inputs = scene((0.4, 0.3, 0.8, 0.9))
    options = PairOptions(size=(512, 512))
    smooth = cv2.GaussianBlur(inputs.background_u8, (0, 0), 6)
    pair = build_pair(Inputs(**{**vars(inputs), "background_u8": smooth}), options)
    done = stitch(pair.geometry, from_pm1(pair.background_pm1))
    assert np.abs(done.result_u8.astype(int) - smooth).max() <= 2


def test_an_object_that_is_entirely_hidden_is_refused():
    inputs = scene((0.26, 0.3, 0.32, 0.6), near=0.5)
    with pytest.raises(ValueError, match="nearer things hide the object"):
        build_pair(inputs, OPTIONS)


def test_detail_replaces_texture_and_keeps_the_models_light():
    mask = mask_of_box((16, 16, 80, 80), (96, 96))
    light = np.full((96, 96, 3), 60, np.uint8)
    light[:, 48:] = 160
    texture = (
        np.where((np.arange(96) // 2 % 2)[:, None, None], 150, 90).astype(np.uint8).repeat(96, 1).repeat(3, 2)
    )
    result = transfer_detail(light, texture, mask, 1.0, 6.0)
    assert np.array_equal(result[~mask], light[~mask])
    inside = result[24:72, 24:40].astype(float)
    cutout = texture[24:72, 24:40]
    assert inside.mean() == pytest.approx(60, abs=4)
    assert inside.std() / inside.mean() == pytest.approx(cutout.std() / cutout.mean(), rel=0.03)
    half = transfer_detail(light, texture, mask, 0.5, 6.0)[24:72, 24:40].astype(float)
    assert half.std() == pytest.approx(inside.std() / 2, rel=0.1)
    assert transfer_detail(light, texture, mask, 0.0, 6.0) is light


def test_detail_does_not_leak_over_the_silhouette():
    mask = mask_of_box((30, 0, 60, 90), (90, 90))
    generated = np.full((90, 90, 3), 100, np.uint8)
    paste = np.where(mask[..., None], 100, 255).astype(np.uint8).repeat(3, 2)
    assert np.array_equal(transfer_detail(generated, paste, mask, 1.0, 8.0), generated)


def test_detail_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        transfer_detail(noise((9, 9)), noise((9, 9)), np.ones((9, 9), bool), 1.5, 2.0)


def test_the_native_paste_is_hidden_by_what_is_nearer_and_has_soft_edges():
    inputs = scene((0.2, 0.2, 0.6, 0.9))
    pair = build_pair(inputs, OPTIONS)
    x0, y0, x1, y1 = pair.geometry.window.box_xyxy
    result, nearer = inputs.background_u8.copy(), inputs.background_depth_01 > 0.8
    result[y0:y1, x0:x1] = pair.geometry.native_layers.paste_u8
    assert np.array_equal(result[nearer], inputs.background_u8[nearer])
    changed = (result != inputs.background_u8).any(-1)
    assert changed[visible_mask(pair.geometry)].mean() > 0.95
    assert changed.sum() >= visible_mask(pair.geometry).sum()


def test_detail_around_the_object_is_the_backgrounds_own(monkeypatch):
    monkeypatch.setattr(pasteback, "FEATHER", 0.0)
    inputs = scene((0.3, 0.2, 0.8, 0.9))
    pair = build_pair(inputs, OPTIONS)
    model_u8 = noise(OPTIONS.size, 5)
    around = pair.edit_mask[0].numpy() & ~pair.layers.visible
    assert around.sum() > 50
    errors = []
    for detail in (0.0, 1.0):
        done = stitch(pair.geometry, model_u8, detail=detail)
        nearer = pair.geometry.window.embed(pair.geometry.native_layers.keep)
        ring = done.edit_mask & ~visible_mask(pair.geometry) & ~nearer
        errors.append(np.abs(done.result_u8[ring].astype(float) - inputs.background_u8[ring]).mean())
    assert errors[1] < 0.5 * errors[0]
    replaced = Inputs(**{**vars(inputs), "mode": "replace"})
    pair = build_pair(replaced, OPTIONS)
    results = [stitch(pair.geometry, model_u8, detail=detail) for detail in (0.0, 1.0)]
    ring = results[0].edit_mask & ~visible_mask(pair.geometry)
    ring = cv2.erode(ring.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert np.array_equal(results[0].result_u8[ring], results[1].result_u8[ring])


@pytest.mark.parametrize("resample", ["area", "legacy"])
def test_a_geometry_over_another_image_has_its_layers(resample):
    inputs, options = scene((0.2, 0.2, 0.6, 0.9)), replace(OPTIONS, resample=resample)
    shaded_u8 = inputs.background_u8 // 2
    anew = Geometry.of(replace(inputs, background_u8=shaded_u8), options)
    geometry, last = Geometry.of(inputs, options), weakref.ref(shaded_u8)
    over = geometry.over(shaded_u8[geometry.crop.part])
    pairs = (over.native_layers, anew.native_layers), (over.model_layers, anew.model_layers)
    for layers, expected in pairs:
        for name in (field.name for field in fields(layers) if field.name != "placed"):
            assert np.array_equal(getattr(layers, name), getattr(expected, name)), name
        assert np.array_equal(layers.placed.rgb_u8, expected.placed.rgb_u8)
    del shaded_u8, anew, pairs, layers, expected
    assert last() is None, "a large image is not kept"
