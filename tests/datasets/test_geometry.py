"""Boxes, crops and depth extents keep their promises for any numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.geometry import (
    Crop,
    bbox_of_mask,
    box_to_01,
    box_to_pixels,
    check_box01,
    depth_at_contact,
    depth_extent,
    expand_box,
    iou,
    square_box,
    square_padding,
)

sizes = st.tuples(st.integers(16, 400), st.integers(16, 400))


@st.composite
def boxes01(draw: st.DrawFn) -> tuple[float, float, float, float]:
    """Any valid box, often at the border."""
    x0, y0 = draw(st.floats(0, 0.98)), draw(st.floats(0, 0.98))
    x1, y1 = draw(st.floats(x0 + 0.01, 1)), draw(st.floats(y0 + 0.01, 1))
    return draw(st.sampled_from([(x0, y0, x1, y1), (0.0, y0, x1, 1.0), (x0, 0.0, 1.0, y1)]))


@settings(deadline=None)
@given(boxes01(), sizes)
def test_a_pixel_box_lies_inside_and_has_area(box01, size):
    x0, y0, x1, y1 = box_to_pixels(check_box01(box01), size)
    assert 0 <= x0 < x1 <= size[1]
    assert 0 <= y0 < y1 <= size[0]


@settings(deadline=None)
@given(sizes, st.data())
def test_pixels_to_fractions_and_back_is_exact(size, data):
    x0, y0 = data.draw(st.integers(0, size[1] - 1)), data.draw(st.integers(0, size[0] - 1))
    box = x0, y0, data.draw(st.integers(x0 + 1, size[1])), data.draw(st.integers(y0 + 1, size[0]))
    assert box_to_pixels(box_to_01(box, size), size) == box


@settings(deadline=None)
@given(boxes01(), sizes, st.floats(1, 4))
def test_an_expanded_box_contains_the_box(box01, size, ratio):
    x0, y0, x1, y1 = box_to_pixels(box01, size)
    left, top, right, bottom = expand_box((x0, y0, x1, y1), ratio, size)
    assert left <= x0
    assert top <= y0
    assert right >= x1
    assert bottom >= y1


@settings(deadline=None)
@given(boxes01(), sizes, st.floats(1, 8))
def test_a_shifted_square_is_inside_and_square_where_the_image_allows(box01, size, ratio):
    wide = expand_box(box_to_pixels(box01, size), ratio, None)
    x0, y0, x1, y1 = square_box(wide, size)
    assert 0 <= x0 < x1 <= size[1]
    assert 0 <= y0 < y1 <= size[0]
    if max(x1 - x0, y1 - y0) <= min(size):
        assert x1 - x0 == y1 - y0
    else:
        assert min(x1 - x0, y1 - y0) == min(size)


@settings(deadline=None)
@given(boxes01(), boxes01())
def test_overlap_is_symmetric_and_one_for_equal_boxes(a, b):
    assert iou(a, b) == pytest.approx(iou(b, a))
    assert 0 <= iou(a, b) <= 1 + 1e-9
    assert iou(a, a) == pytest.approx(1)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((0.5, 0.2, 0.1, 0.4), "inverted"),
        ((0.1, 0.2, 0.1, 0.4), "no area"),
        ((0.5, 0.2, 1.1, 0.4), "leaves"),
        ((-0.1, 0.2, 0.5, 0.4), "leaves"),
        ((0.1, 0.2, float("nan"), 0.4), "not a number"),
        ((0.1, 0.2, 0.3), "3 numbers"),
    ],
)
def test_a_bad_box_is_refused_with_its_reason_and_the_rule(box, reason):
    with pytest.raises(ValueError, match=reason) as error:
        check_box01(box, where="--box")
    assert "--box must be x1,y1,x2,y2" in str(error.value)
    assert "\n" not in str(error.value)


def test_box_of_a_mask_and_its_published_end():
    mask = np.zeros((20, 30), bool)
    mask[3:9, 5:11] = True
    assert bbox_of_mask(mask) == (5, 3, 11, 9)
    assert bbox_of_mask(mask, "legacy") == (5, 3, 10, 8)
    assert bbox_of_mask(np.zeros((20, 30), bool), "legacy") == (0, 0, 30, 20)
    with pytest.raises(ValueError, match="empty"):
        bbox_of_mask(np.zeros((20, 30), bool))


@settings(deadline=None, max_examples=50)
@given(boxes01(), sizes, st.sampled_from([32, 64]))
def test_a_crop_maps_boxes_like_pixels(box01, size, side):
    x0, y0, x1, y1 = square_box(box_to_pixels(box01, size), size)
    crop = Crop((x0, y0, x1, y1), square_padding((y1 - y0, x1 - x0)), (side, side), size)
    assert crop.padded_size[0] == crop.padded_size[1]
    full = np.ones(size, np.float32)
    # The image lies where `inside` says; what is taken apart comes back at its own size.
    assert np.abs(crop.take(full, how="nearest") - crop.inside).mean() <= 4 / side
    assert crop.undo(crop.take(full)).shape == (y1 - y0, x1 - x0)
    assert crop.native.to_frame((x0, y0, x1, y1)) == (0, 0, x1 - x0, y1 - y0)


@settings(deadline=None)
@given(st.floats(0, 1), boxes01())
def test_depth_extent_is_ordered_symmetric_and_grows_with_the_box(d, box01):
    far, near = depth_extent(d, box01)
    assert 0 <= far <= d <= near <= 1
    if far > 0 and near < 1:
        assert near - d == pytest.approx(d - far)
    wider = depth_extent(d, (0.0, 0.0, 1.0, 1.0))
    assert wider[0] <= far
    assert wider[1] >= near


@pytest.mark.parametrize("d", [-0.1, 1.1, float("nan")])
def test_depth_out_of_range_is_refused(d):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        depth_extent(d, (0.1, 0.1, 0.2, 0.2))


def test_depth_at_foot_reads_the_ground_and_not_an_outlier():
    depth = np.repeat(np.linspace(0, 1, 101, dtype=np.float32)[:, None], 80, axis=1)
    depth[:, 40:43] = 0
    depth[:, 24:35] = 1
    assert depth_at_contact(depth, (0.25, 0.2, 0.75, 0.8)) == pytest.approx(0.8, abs=0.02)
    assert depth_at_contact(depth, (0.0, 0.0, 1.0, 1.0)) == pytest.approx(1.0, abs=0.02)
