"""`--compat` place by place: crop, masks, hints and depth are those of the published steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cldm.config import CompositorConfig
from compose import ComposeSettings, compose, load_models
from compose.pipeline import ignored_options
from compose.sources import make_inputs, read_sources, uses_depth_network
from datasets.augment import square_view, squared
from datasets.fusion import high_frequency
from datasets.geometry import truncated_box
from datasets.masks import dilate
from datasets.pairs import Geometry, pair_of
from ldm.denoise import Known
from tests.datasets import published_steps as steps
from tests.images import Case


def seed_of(ratio: float, name: str = "bifrost") -> int:
    """The smallest seed with this crop ratio."""
    return next(
        seed for seed in range(999) if CompositorConfig().with_compat(name, seed).pair.crop_ratio == ratio
    )


def geometry_of(settings: ComposeSettings, ratio: float, **options) -> Geometry:
    assert settings.compat is not None
    pair = CompositorConfig().with_compat(settings.compat, seed_of(ratio)).pair
    sources = read_sources(settings)
    inputs, _ = make_inputs(settings, sources, sources.depth_01)
    return Geometry.of(inputs, replace(pair, size=(128, 128), **options))


def made(**more) -> ComposeSettings:
    """A disc with a tilted relief in a floor with a wall that is nearer on its right."""
    rows, columns = np.mgrid[:180, :240].astype(np.float32)
    room_u8 = np.dstack([rows, columns, (rows + columns) / 2]).astype(np.uint8)
    depth_01 = np.where(columns > 150, 0.93, rows / 179).astype(np.float32)
    disc = np.hypot(rows[:80, :100] - 40, (columns[:80, :100] - 50) * 0.8) < 36
    thing_u8 = np.kron(np.random.default_rng(0).integers(0, 256, (16, 20, 3)), np.ones((5, 5, 1)))
    relief_01 = (0.2 + 0.5 * columns[:80, :100] / 99).astype(np.float32)
    values = {
        "background": room_u8,
        "object": thing_u8.astype(np.uint8),
        "object_mask": disc,
        "background_depth": depth_01,
    }
    return ComposeSettings(**{**values, "object_depth": relief_01, "compat": "bifrost", **more})


def check_place(geometry: Geometry, expected: steps.Published) -> None:
    (y1, y2, x1, x2), layers = expected.crop, geometry.native_layers
    assert geometry.crop.box_xyxy == (x1, y1, x2, y2)
    assert geometry.region_xyxy == tuple(expected.region[i] for i in (2, 0, 3, 1))
    assert np.array_equal(layers.visible, expected.visible[y1:y2, x1:x2])
    assert np.array_equal(layers.edit, steps.grown(expected.visible, expected.crop))
    assert np.abs(geometry.file_depth_u8.astype(int) - expected.depth_u8).max() <= 1


@pytest.mark.parametrize(
    ("box_xywh", "extent", "ratio"),
    [
        ((0.25, 0.3, 0.25, 0.3), (0.9, 1.0), 2.0),  # in front of everything
        ((0.45, 0.3, 0.37, 0.47), (0.6, 0.8), 2.0),  # behind the wall on its right: the crop moves left
        ((0.1, 0.513, 0.333, 0.419), (0.55, 0.7), 1.5),  # sunk into the ground, fractions of pixels
        ((0.0, 0.0, 0.3, 0.4), (0.3, 0.5), 2.9),  # in a corner, where the crop is cut and padded
        ((0.62, 0.55, 0.38, 0.45), (0.85, 1.0), 2.4),
    ],
)
def test_a_place_is_the_published_one(
    box_xywh: tuple[float, float, float, float], extent: tuple[float, float], ratio: float
) -> None:
    x, y, w, h = box_xywh
    settings = made(box=(x, y, x + w, y + h), depth=extent, seed=seed_of(ratio))
    geometry = geometry_of(settings, ratio)
    inputs = geometry.inputs
    assert inputs.reference_depth_01 is not None
    expected = steps.place(
        inputs.background_depth_01, inputs.reference_depth_01, inputs.reference_mask, box_xywh, extent, ratio
    )
    check_place(geometry, expected)
    detail = pair_of(geometry).detail_pm1
    shown = detail[3] == 0
    background = geometry.crop.fit(geometry.native_layers.background_u8, how="linear")
    inner = cv2.erode(shown.numpy().astype(np.uint8), np.ones((9, 9))) > 0
    hint_u8 = (detail[:3].permute(1, 2, 0).numpy() * 127.5 + 127.5).round()
    assert np.abs(hint_u8 - background)[inner].max() <= 1, "the background where the mask is 0"
    hidden = cv2.erode((detail[3] == 1).numpy().astype(np.uint8), np.ones((9, 9))) > 0
    hidden &= geometry.crop.inside
    assert hidden.any()
    assert (hint_u8[hidden] == 0).all(), "black where it paints"


def test_the_published_example(test_data: Path) -> None:
    """Box, depth range and growth of the released script; its object mask came through a JPEG file."""
    data = test_data / "data"
    case = json.loads((data / "composite/cases.json").read_text())["cases"][0]
    files = {name: data / case[name] for name in ("background", "object", "object_mask", "object_depth")}
    place = {"box": tuple(case["box_xyxy"]), "depth": tuple(case["depth_range"]), "compat": "bifrost"}
    settings = ComposeSettings(**files, background_depth=data / case["background_depth"], **place)
    geometry = geometry_of(settings, 2.0)
    assert geometry.crop.box_xyxy == (129, 170, 471, 512)
    fused_u8, mask_u8 = (
        cv2.imread(str(data / case["upstream_outputs"][name]), cv2.IMREAD_UNCHANGED)
        for name in ("fused_depth", "fused_mask")
    )
    visible, theirs = geometry.window.embed(geometry.native_layers.visible), mask_u8 > 128
    assert (visible & theirs).sum() / (visible | theirs).sum() >= 0.98
    outline = [
        cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3)))
        for mask in (visible, theirs)
    ]
    rim = cv2.dilate(outline[0] | outline[1] | (visible ^ theirs).astype(np.uint8), np.ones((3, 3))) > 0
    stretched_u8 = steps.minmax(fused_u8, 0, 255).astype(np.uint8)
    off = np.abs(geometry.file_depth_u8.astype(int) - stretched_u8)
    assert off[~rim].max() <= 1
    assert rim.mean() < 0.01
    assert (off > 1).mean() < 0.001, "and on the outline, where the masks differ, nearly everywhere"


def test_replace_paints_the_box_and_shows_nothing_of_the_object() -> None:
    settings = made(mode="replace", box=(0.25, 0.3, 0.5, 0.7), depth=(0.6, 0.9))
    geometry = geometry_of(settings, 2.0)
    box = np.zeros((180, 240), bool)
    box[54:126, 60:120] = True
    region, (y1, y2, x1, x2) = steps.crop_of(box, 2.0)
    assert geometry.crop.box_xyxy == (x1, y1, x2, y2)
    assert geometry.region_xyxy == tuple(region[i] for i in (2, 0, 3, 1))
    assert np.array_equal(geometry.native_layers.edit, steps.grown(box, (y1, y2, x1, x2)))


@pytest.mark.parametrize("depth", [None, (0.0,), (0.1, 0.2), (1.0,)])
def test_anydoor_stands_in_front_of_everything_with_its_whole_detail_map(
    depth: tuple[float, ...] | None,
) -> None:
    near = np.full((180, 240), 0.97, np.float32)
    near[0, :2] = 0, 1
    radius = np.hypot(*np.mgrid[-40:40, -40:60])
    ring = (radius < 38) & (radius > 16)  # its map, smaller by the margin of the view, reaches into the hole
    settings = made(
        background_depth=near,
        object_depth=None,
        object_mask=ring,
        box=(0.2, 0.2, 0.6, 0.6),
        depth=depth,
        compat="anydoor",
    )
    geometry = geometry_of(settings, 2.0)
    layers, (x0, y0, x1, y1) = geometry.native_layers, geometry.region_xyxy
    assert layers.visible_fraction == pytest.approx(1)
    assert np.array_equal(layers.edit, layers.region)
    assert not layers.keep.any()
    view_u8 = square_view(geometry.cutout, 1.2, geometry.options)
    mask_u8 = squared(geometry.cutout.mask.astype(np.uint8) * 255, 1.2, geometry.options, 0)
    map_u8 = high_frequency(view_u8, mask_u8 > 127, "color")
    hint_u8 = geometry.inputs.background_u8.copy()
    hint_u8[y0:y1, x0:x1] = cv2.resize(map_u8, (x1 - x0, y1 - y0))
    expected_u8 = geometry.crop.fit(hint_u8[geometry.crop.part], how="linear")
    detail_u8 = pair_of(geometry).detail_pm1[:3].permute(1, 2, 0).numpy() * 127.5 + 127.5
    assert np.abs(detail_u8.round() - expected_u8).max() <= 1
    beside = layers.region & ~(layers.placed.alpha_01 > 0)
    assert (geometry.crop.native.take(hint_u8)[beside] > 20).any(), "also beside the placed silhouette"
    told = [note for note in ignored_options(settings, CompositorConfig().sampling) if "--depth" in note]
    assert bool(told) == (depth is not None)


@pytest.mark.parametrize(
    ("box01", "size", "expected"),
    [
        ((0.338, 0.521, 0.538, 0.841), (512, 683), (230, 266, 366, 429)),
        ((0.1, 0.1, 0.4, 0.4), (10, 10), (1, 1, 4, 4)),  # 0.4 - 0.1 falls short of 0.3
        ((0.7, 0.2, 1.0, 0.9), (100, 100), (70, 20, 100, 90)),
        ((1 / 3, 0, 2 / 3, 1), (3, 3), (1, 0, 2, 3)),
        ((0.99, 0.99, 0.999, 0.999), (50, 50), (49, 49, 50, 50)),  # at least a pixel
        ((0.55, 0.5, 0.95, 0.75), (101, 99), (54, 50, 93, 75)),
    ],
)
def test_corner_and_size_of_a_box_are_truncated(
    box01: tuple[float, ...], size: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert truncated_box(box01, size) == expected


@pytest.mark.parametrize(
    ("changes", "source"),
    [
        ({"compat": "bifrost"}, "estimated"),
        ({"compat": "bifrost", "object_depth": "given"}, "file"),
        ({"compat": "anydoor"}, "rounded body"),
        ({}, "rounded body"),
        ({"object_depth": "given"}, "file"),
    ],
)
def test_the_relief_is_estimated_where_the_published_system_does(
    case: Case, changes: dict, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "object_depth" in changes:
        changes = changes | {"object_depth": np.tile(np.linspace(0, 1, 40, dtype=np.float32), (40, 1))}
        changes["object_depth"] = cv2.resize(
            changes["object_depth"], cv2.imread(str(case.folder / "thing.png")).shape[1::-1]
        )
    settings = ComposeSettings(
        background=case.folder / "room.png", background_depth=case.folder / "depth.png",
        object=case.folder / "thing.png", object_mask=case.folder / "mask.png", box=(0.3, 0.2, 0.7, 0.9),
        depth=(0.9, 1.0), model=case.model, depth_model=case.depth_model, steps=1, **changes,
    )  # fmt: skip
    models, imposed = load_models(settings), []
    monkeypatch.setattr("cldm.pipeline.Known", lambda *given: imposed.append(1) or Known(*given))
    result = compose(settings, models, progress=False)
    assert result.report["object_depth"] == source
    assert (
        ("depth_model" in result.recipe["weights"]) == uses_depth_network(settings) == (source == "estimated")
    )
    assert bool(imposed) == (settings.compat is None), "the background's latents stay out of it as published"
    relief = result.geometry.inputs.reference_depth_01
    assert (relief is None) == (source == "rounded body")
    if source == "estimated":
        assert np.array_equal(relief, models.depth.estimate(result.geometry.inputs.reference_u8))


@pytest.mark.parametrize("occlusion", ["near", "pixel", "published", "none"])
def test_only_the_published_test_paints_over_what_is_nearer(occlusion: str) -> None:
    settings = made(box=(0.45, 0.3, 0.8, 0.8), depth=(0.6, 0.8))
    layers = geometry_of(settings, 2.0, occlusion=occlusion).native_layers
    hidden = layers.placed.alpha_01 > 0.5
    assert (layers.edit & layers.keep).any() == (occlusion == "published")
    assert layers.keep.any() == (occlusion != "none")
    assert layers.visible[hidden].all() == (occlusion == "none")
    assert torch.tensor(layers.visible).any()
    grown = dilate(layers.visible, 0.02, shape="legacy-rect")
    assert np.array_equal(layers.edit, grown if occlusion in ("published", "none") else grown & ~layers.keep)
