"""The preview of a place: the masks of the composite, without a network, at once."""

import dataclasses
import time

import numpy as np
import pytest

from compose import compose, load_models
from compose.recipe import sampling_of
from compose.sources import SIDE, occlusion, read_sources, shrink
from ldm.images import read_image, write_depth, write_png
from tests.compose.test_pipeline import settings_of
from tests.images import Case, forbid_loading, room, room_depth, thing


def previewed(settings):
    models = load_models(settings)
    sources = read_sources(settings)
    return occlusion(settings, *shrink(sources, sources.depth_01), sampling_of(settings, models)[1])


PLACES = [
    {},
    {"depth": (0.1,)},  # behind the post
    {"depth": (0.2, 0.3)},
    {"depth": None},
    {"box": (0.0, 0.0, 0.3, 1.0), "depth": (0.5,)},
    {"mode": "replace"},
    {"mode": "replace", "target_mask": "target.png"},
    {"mode": "id-transfer", "target_mask": "target.png"},
    {"mode": "inpaint", "target_mask": "target.png", "box": None},
]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_preview_shows_what_the_composite_shows(case: Case, place: dict) -> None:
    place = {name: case.folder / value if name == "target_mask" else value for name, value in place.items()}
    settings = settings_of(case, **place)
    preview, result = previewed(settings), compose(settings, load_models(settings), progress=False)
    geometry = result.geometry
    assert preview.image_u8.shape == (96, 128, 3)
    assert np.array_equal(preview.visible, geometry.window.embed(geometry.native_layers.visible))
    assert preview.visible_fraction == result.report["visible_fraction"]
    depth = result.report["depth"]
    assert preview.depth_range == (depth["far"], depth["near"])


def test_what_is_not_visible_is_only_outlined(case: Case) -> None:
    preview = previewed(settings_of(case, box=(0.0, 0.2, 0.5, 0.9), depth=(0.3,)))
    changed = (preview.image_u8 != room()).any(axis=2)
    white = (preview.image_u8 == 255).all(axis=2)
    assert 0 < preview.visible_fraction < 1
    assert not (changed & ~preview.visible & ~white)[:, :30].any()  # the post in front
    assert white[:, :32].any(), "the outline of the hidden part is drawn"


@pytest.mark.parametrize("size", [(900, 1600), (1600, 900), (30, 40)])
def test_large_files_are_previewed_small_with_the_same_fraction(case: Case, size: tuple[int, int]) -> None:
    write_png(case.folder / "large.png", room(*size))
    write_depth(case.folder / "large_depth.png", room_depth(*size))
    rgb_u8, _ = thing(900)
    write_png(case.folder / "large_thing.png", rgb_u8)
    settings = settings_of(case, background=case.folder / "large.png", object=case.folder / "large_thing.png",
                           background_depth=case.folder / "large_depth.png", object_mask=None,
                           box=(0.1, 0.2, 0.6, 0.9), depth=(0.5,))  # fmt: skip
    sources = read_sources(settings)
    small, depth_01 = shrink(sources, sources.depth_01)
    assert max(small.background.size) == min(max(size), SIDE)
    assert depth_01.shape == small.background.size
    options = sampling_of(settings, load_models(settings))[1]
    full = occlusion(settings, sources, sources.depth_01, options)
    preview = occlusion(settings, small, depth_01, options)
    assert preview.visible_fraction == pytest.approx(full.visible_fraction, abs=0.02)


def test_preview_runs_no_network_and_answers_within_150_ms(case: Case, monkeypatch) -> None:
    forbid_loading(monkeypatch)
    background, depth_01 = room(1500, 2000), room_depth(1500, 2000)
    settings = settings_of(case, background=background, background_depth=depth_01)
    small, options = shrink(read_sources(settings), depth_01), load_models(settings).config.pair
    seconds = []
    for d in np.linspace(0.1, 0.9, 9):
        start = time.process_time()  # holds on a busy machine too
        occlusion(dataclasses.replace(settings, depth=(float(d),)), *small, options)
        seconds.append(time.process_time() - start)
    assert np.median(seconds) < 0.15, f"{1000 * np.median(seconds):.0f} ms"


def test_the_smaller_object_keeps_its_edge(case: Case) -> None:
    rgb_u8, mask = thing(64)
    sources = read_sources(settings_of(case, edge="hard"))
    small, _ = shrink(sources, room_depth())
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    tight = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert np.array_equal(small.cut, mask[tight])
    assert np.array_equal(small.item.rgb_u8, rgb_u8[tight])
    assert np.array_equal(read_image(case.folder / "room.png").rgb_u8, small.background.rgb_u8)
