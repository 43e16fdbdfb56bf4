"""2.5D fusion: published numbers, and depth tests that behave like solid things."""

import numpy as np
import pytest

from datasets.fusion import (
    Cutout,
    collage,
    fill_colour,
    fill_depth,
    occluders,
    own_depth,
    place_cutout,
    tight_cutout,
    warp_into,
)
from datasets.geometry import Box, depth_at_contact, depth_extent, mask_of_box
from ldm.images import depth_ends
from tests.datasets.preprocess_golden import Golden, load_golden

FRAME = (120, 160)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden()


def floor() -> np.ndarray:
    """A ground that comes nearer towards the bottom, (h, w) in [0, 1]."""
    return np.repeat(np.linspace(0, 1, FRAME[0], dtype=np.float32)[:, None], FRAME[1], axis=1)


def block(size: tuple[int, int] = (40, 30)) -> Cutout:
    """A solid rectangle, uniformly gray, as near on its left as on its right."""
    mask = np.ones(size, bool)
    return Cutout(np.full((*size, 3), 90, np.uint8), mask, np.full(size, 0.5, np.float32))


def fuse(
    background: np.ndarray,
    cutout: Cutout,
    box: Box,
    extent: tuple[float, float],
    legacy: bool = False,
    occlusion: str = "near",
) -> tuple[np.ndarray, np.ndarray]:
    """Fused depth and visible object, (h, w)."""
    frame = background.shape
    placed = place_cutout(cutout, box, extent, frame, legacy)
    hidden = background >= placed.depth_01 if occlusion == "pixel" else occluders(background, extent[1])
    visible = (placed.alpha_01 > 0.5) & ~hidden
    return np.where(visible, placed.depth_01, background), visible


@pytest.mark.parametrize("index", range(3))
def test_fusion_equals_the_published_one(golden, index):
    x, y, w, h = golden[f"fuse{index}_box"]
    height, width = golden["in_depth"].shape
    left, top = int(width * x), int(height * y)
    depth = (golden["in_depth"] / 65535.0).astype(np.float32)
    cutout = tight_cutout(golden["in_img"], golden["in_mask"] > 0, depth, norm="legacy")
    box = (left, top, left + int(width * w), top + int(height * h))
    extent = tuple(golden[f"fuse{index}_range"])
    fused, visible = fuse(depth, cutout, box, extent, occlusion="pixel", legacy=True)
    assert golden.error(f"fuse{index}_depth", fused * 255) < 1e-3
    assert golden.error(f"fuse{index}_mask", visible) == 0
    assert golden.error(f"fuse{index}_occ", visible[box[1] : box[3], box[0] : box[2]]) == 0


def test_an_object_on_the_floor_keeps_its_foot():
    box01 = (0.3, 0.25, 0.6, 0.75)
    extent = depth_extent(depth_at_contact(floor(), box01), box01)
    box = (48, 30, 96, 90)
    _, visible = fuse(floor(), block(), box, extent)
    assert np.array_equal(visible, mask_of_box(box, FRAME))
    # The published test eats the foot of the same object when only one depth is known for it.
    _, eaten = fuse(floor(), block(), box, (extent[0], extent[0]), occlusion="pixel")
    assert eaten.sum() < 0.95 * visible.sum()


@pytest.mark.parametrize("occlusion", ["near", "pixel"])
def test_a_nearer_thing_hides_and_a_farther_one_does_not(occlusion):
    background = np.full(FRAME, 0.2, np.float32)
    front, back = mask_of_box((60, 0, 80, 120), FRAME), mask_of_box((90, 0, 100, 120), FRAME)
    background[front], background[back] = 0.9, 0.3
    fused, visible = fuse(background, block(), (50, 30, 110, 90), (0.5, 0.6), occlusion=occlusion)
    whole = mask_of_box((50, 30, 110, 90), FRAME)
    assert np.array_equal(visible, whole & ~front)
    assert np.array_equal(fused[~visible], background[~visible])
    assert fused[visible] == pytest.approx(0.55, abs=1e-6)


def test_visibility_only_grows_when_the_object_comes_nearer():
    background = np.random.default_rng(0).random(FRAME).astype(np.float32)
    before = np.zeros(FRAME, bool)
    for near in np.linspace(0.1, 1, 8):
        _, visible = fuse(background, block(), (20, 20, 90, 100), (near - 0.1, near))
        assert (visible | ~before).all()
        before = visible
    assert np.array_equal(before, mask_of_box((20, 20, 90, 100), FRAME))


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5, 0.75])
def test_placement_is_exact_to_fractions_of_a_pixel(shift):
    placed = place_cutout(block(), (20 + shift, 30, 60 + shift, 80.5), (0.2, 0.6), FRAME)
    assert placed.alpha_01.sum() == pytest.approx(40 * 50.5, rel=0.01)
    columns = np.arange(FRAME[1]) + 0.5
    centre = (placed.alpha_01 * columns).sum() / placed.alpha_01.sum()
    assert centre == pytest.approx(40 + shift, abs=1 / 32)  # OpenCV's step
    assert (placed.rgb_u8[placed.alpha_01 > 0.01] == 90).all()
    assert placed.depth_01[placed.alpha_01 > 0.5] == pytest.approx(0.4, abs=1e-6)


def test_a_box_over_the_border_shows_the_part_inside():
    image = np.ones((10, 10), np.float32)
    shown, part = warp_into(image, (-20, -20, 20, 20), FRAME)
    assert part == np.s_[0:21, 0:21]
    assert shown[:20, :20].min() == 1
    shown, part = warp_into(image, (-50, -50, -10, -10), FRAME)
    assert shown.size == np.zeros(FRAME)[part].size == 0


def test_own_depth_spans_the_range_over_the_object_only():
    depth = np.tile(np.linspace(0.4, 0.6, 100, dtype=np.float32), (50, 1))
    mask = mask_of_box((20, 10, 80, 40), (50, 100))
    scaled = own_depth(depth, mask)
    assert (scaled[mask].min(), scaled[mask].max()) == (0, 1)
    assert own_depth(depth, mask, "legacy")[mask].min() > 0.5
    assert np.isfinite(own_depth(np.zeros((50, 100), np.float32), mask)).all()


@pytest.mark.parametrize("count", [1, 2, 3, 50, 51, 100, 101, 997, 5000])
@pytest.mark.parametrize("levels", [3, 250, 65535])
def test_the_ends_of_depth_are_the_percentiles_of_numpy(count, levels):
    values = np.random.default_rng(count).integers(0, levels + 1, count).astype(np.float32) / levels
    assert depth_ends(values) == np.percentile(values, (1, 99)).tolist()


@pytest.mark.parametrize("coverage", [0.0, 1.0, "hard", "soft", "edges"])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_collage_is_the_rounded_mixture_of_every_pixel(coverage, hidden):
    rng = np.random.default_rng(4)
    below, detail = rng.integers(0, 256, (2, *FRAME, 3), np.uint8)
    cover = np.zeros(FRAME, np.float32)
    inner = cover[10:90, 20:130]
    soft = rng.random(inner.shape, np.float32)
    kinds = {"hard": soft > 0.4, "soft": soft, "edges": np.clip(4 * soft - 1, 0, 1)}
    inner[:] = kinds[coverage] if isinstance(coverage, str) else coverage
    hide = mask_of_box((15, 5, 100, 95), FRAME)
    under = np.where(hide[..., None] & hidden, 0, below).astype(np.float32)
    expected = np.rint(under + cover[..., None] * (detail - under)).astype(np.uint8)
    assert np.array_equal(collage(below, detail, cover, hide if hidden else None), expected)


def test_a_bulge_is_near_in_the_middle():
    solid = np.ones((31, 31), bool)
    depth = tight_cutout(np.zeros((31, 31, 3), np.uint8), solid, None).depth_01
    assert depth[15, 15] == pytest.approx(1)
    assert depth[15, 15] > depth[15, 5] > depth[15, 0] >= 0


def test_filling_takes_a_thing_out_of_the_depth_map():
    background = floor()
    region = mask_of_box((40, 20, 90, 110), FRAME) | mask_of_box((0, 50, 20, 70), FRAME)
    with_thing = np.where(region, 0.95, background).astype(np.float32)
    assert fill_depth(with_thing, region) == pytest.approx(background, abs=1e-5)
    assert fill_depth(background, np.zeros(FRAME, bool)) is background


@pytest.mark.parametrize(
    ("gaps", "filled"),
    [
        (["....", "..##"], [[0, 1, 2, 3], [4, 5, 5, 5]]),  # at the right border of the last row
        (["##..", "...."], [[2, 2, 2, 3], [4, 5, 6, 7]]),
        (["#.#.", ".##."], [[1, 1, 2, 3], [4, 5, 6, 7]]),
        (["..##", "####"], [[0, 1, 1, 1], [1, 1, 1, 1]]),
        (["####", ".###"], [[4, 4, 4, 4], [4, 4, 4, 4]]),
        (["####", "####"], [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ],
)
def test_a_gap_takes_the_sides_that_it_has(gaps: list[str], filled: list[list[int]]) -> None:
    depth = np.arange(8, dtype=np.float32).reshape(2, 4)
    region = np.array([[letter == "#" for letter in row] for row in gaps])
    assert fill_depth(depth, region).tolist() == filled


@pytest.mark.parametrize("place", [(0, 0), (0, 7), (5, 0), (5, 7), (11, 16)])
def test_a_hole_is_filled_alike_wherever_it_lies(place):
    """Row by row with NumPy's own interpolation, in a map of which the hole is a small part."""
    depth = np.random.default_rng(0).random((17, 25)).astype(np.float32)
    region = np.zeros(depth.shape, bool)
    region[place[0] : place[0] + 6, place[1] : place[1] + 9] = np.random.default_rng(1).random((6, 9)) < 0.7
    columns = np.arange(25)
    rows = [np.interp(columns, columns[~gap], row[~gap]) for row, gap in zip(depth, region, strict=True)]
    assert fill_depth(depth, region) == pytest.approx(np.array(rows), abs=1e-6)


def test_painting_over_continues_the_surroundings():
    ramp = np.repeat(np.linspace(0, 255, FRAME[1])[None, :], FRAME[0], axis=0)
    image = np.repeat(np.rint(ramp).astype(np.uint8)[..., None], 3, axis=-1)
    hole = mask_of_box((40, 30, 90, 100), FRAME)
    other = np.where(hole[..., None], 255 - image, image).astype(np.uint8)
    filled = fill_colour(other, hole)
    assert np.array_equal(filled[~hole], image[~hole])
    assert np.array_equal(filled, fill_colour(image, hole))
    assert np.abs(filled.astype(int) - image).max() < 40
    assert fill_colour(image, np.ones(FRAME, bool)) is image
