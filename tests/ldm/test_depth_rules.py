"""Depth of photographs by rules: the image row, things as near as their foot, small images by the network."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ldm.decode import LoadedImage
from ldm.experts import depth
from ldm.experts.depth import DepthEstimator, weights_of_depth
from ldm.files import located
from ldm.images import encode_image, read_depth, read_image, read_mask
from ldm.registry.models import BUILTIN_DEPTH

TOP, BOTTOM, LEFT, RIGHT = 60, 180, 96, 160  # of the thing, in an image of 240 x 256


@pytest.fixture
def thing(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """An image with a red thing, which the replaced network finds in every view."""
    monkeypatch.setattr(
        depth,
        "u2netp_scores",
        lambda images_u8, network: [(rgb_u8[..., 0] > 127) * 1.0 for rgb_u8 in images_u8],
    )
    rgb_u8 = np.zeros((240, 256, 3), np.uint8)
    rgb_u8[TOP:BOTTOM, LEFT:RIGHT, 0] = 255
    return rgb_u8


def test_without_the_network_lower_rows_are_nearer(thing: np.ndarray):
    depth_01 = depth.depth_by_rules(thing, None)
    assert depth_01.shape == (240, 256)
    assert depth_01.dtype == np.float32
    np.testing.assert_array_equal(depth_01, np.repeat(depth_01[:, :1], 256, axis=1))
    # Above the horizon a tenth of the range, below it the rest; both even.
    np.testing.assert_allclose(depth_01[[0, 48, 96, 168, 239], 0], (0, 0.05, 0.1, 0.55, 1), atol=0.006)


def test_a_thing_is_as_near_as_the_ground_at_its_foot(thing: np.ndarray):
    depth_01 = depth.depth_by_rules(thing, Path("u2netp.onnx"))
    ground = depth.depth_by_rules(thing, None)
    foot = BOTTOM - 1
    assert depth_01[foot - 1, 128] == pytest.approx(ground[foot, 128], abs=0.02)
    # The top is a little farther than the foot, by 0.02 of its height, and nearer than what is beside it.
    below = ground[foot, 128] - depth_01[TOP + 4, 128]
    assert below == pytest.approx(0.02 * (foot - TOP) / 240 * 0.9 / 0.6, abs=0.01)
    assert depth_01[TOP + 4, 128] > ground[foot - 20, 60]
    beside = np.ones((240, 256), bool)
    beside[TOP - 2 : BOTTOM + 2, LEFT - 2 : RIGHT + 2] = False
    np.testing.assert_array_equal(depth_01[beside], ground[beside])


def test_specks_are_no_things(thing: np.ndarray):
    thing[:], thing[50:54, 100:104, 0] = 0, 255
    np.testing.assert_array_equal(
        depth.depth_by_rules(thing, Path("u2netp.onnx")), depth.depth_by_rules(thing, None)
    )


@pytest.mark.parametrize(("size", "by_rules"), [((192, 128), False), ((128, 193), True), ((600, 20), True)])
def test_the_size_decides_between_network_and_rules(size: tuple[int, int], by_rules: bool):
    rgb_u8 = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    network, rules = (DepthEstimator.load(located(name)) for name in ("assets/tiny/depth", BUILTIN_DEPTH))
    network_01, rules_01 = network.estimate(rgb_u8), rules.estimate_many([rgb_u8[:64, :64], rgb_u8])[1]
    assert rules_01.shape == size
    assert rules_01.dtype == np.float32
    assert (rules_01.min(), rules_01.max()) == (0, 1)
    assert np.array_equal(network_01, rules_01) != by_rules
    if by_rules:
        assert (np.diff(rules_01[1:-1], axis=0) > 0).mean() > 0.999


@pytest.mark.parametrize(
    ("side", "suffix", "mark", "by_rules"),
    [
        (193, ".png", None, True),
        (193, ".png", False, False),
        (64, ".png", None, False),
        (64, ".jpg", None, True),
        (64, ".webp", None, False),
        (193, ".webp", False, True),  # only PNG says that it was rendered
    ],
)
def test_a_file_says_what_it_is(tmp_path: Path, side: int, suffix: str, mark: bool | None, by_rules: bool):
    rgb_u8 = np.random.default_rng(0).integers(0, 256, (48, side, 3)).astype(np.uint8)
    (path := tmp_path / f"room{suffix}").write_bytes(
        encode_image(LoadedImage(rgb_u8, photograph=mark), suffix)
    )
    image = read_image(path)
    assert image.is_photograph == by_rules
    assert replace(image, rgb_u8=rgb_u8).is_photograph == by_rules  # of an image under work too
    rules = DepthEstimator.load(located(BUILTIN_DEPTH))
    by_file, network = rules.estimate(path), DepthEstimator.load(located("assets/tiny/depth"))
    assert np.array_equal(by_file, rules.estimate(image))
    assert np.array_equal(by_file, network.estimate(image)) != by_rules


def test_a_scene_stays_one_when_it_is_written_again(tmp_path: Path):
    room = read_image(located("assets/examples/tent/room.png"))
    assert max(room.size) > 192
    assert not room.is_photograph
    (path := tmp_path / "again.png").write_bytes(encode_image(room, ".png", {"recipe": "{}"}))
    assert not read_image(path).is_photograph


def test_what_decides_a_map_is_known_by_its_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rules = weights_of_depth(located(BUILTIN_DEPTH))
    network = weights_of_depth(located("assets/tiny/depth"))
    assert rules.items() >= network.items()
    assert rules.keys() - network.keys() == {"depth.json"}
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    (tmp_path / "u2netp").mkdir()
    (tmp_path / "u2netp/u2netp.onnx").write_bytes(b"network")
    with_u2netp = weights_of_depth(located(BUILTIN_DEPTH))
    assert with_u2netp.keys() - rules.keys() == {"u2netp.onnx"}
    assert weights_of_depth(Path("Intel/dpt-large")) == {}


def test_loading_says_what_photographs_get(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    DepthEstimator.load(located(BUILTIN_DEPTH))
    (message,) = (record.getMessage() for record in caplog.records)
    assert "python -m ldm.registry pull depth" in message
    assert "192 pixels" in message


def test_a_motorcycle_in_a_garage(test_data: Path, u2netp: Path):
    folder = test_data / "data/composite"
    valid = read_mask(folder / "depth/garage_motorcycle_valid.png")
    truth_01 = read_depth(folder / "depth/garage_motorcycle.png", size=valid.shape)[valid]
    image = read_image(folder / "backgrounds/garage_motorcycle.jpg").rgb_u8
    estimated_01 = DepthEstimator.load(located(BUILTIN_DEPTH)).estimate(image)[valid]
    first, second = np.random.default_rng(0).integers(truth_01.size, size=(2, 100_000))
    sure = np.abs(truth_01[first] - truth_01[second]) > 0.1
    right = np.sign(estimated_01[first] - estimated_01[second]) == np.sign(truth_01[first] - truth_01[second])
    assert right[sure].mean() >= 0.90
