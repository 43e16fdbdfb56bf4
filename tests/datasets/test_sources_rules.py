"""What sources share: frame sampling, the published rejection rules, annotations as masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets.base import Rejected
from datasets.sources.coco import segment_mask
from datasets.sources.readers import Rules, read_ids
from datasets.sources.video import VideoConfig
from ldm.images import write_png
from tests.datasets import trees


@pytest.mark.parametrize("count", [1, 2, 4, 11, 36])
@pytest.mark.parametrize("interval", [5, 10, 100])
def test_two_frames_keep_their_distance(count, interval):
    rng = np.random.default_rng(0)
    config = VideoConfig(images=Path(), depth=Path(), interval=interval)
    drawn = [config.two_of(list(range(count)), ("video",), rng) for _ in range(300)]
    assert all(
        0 <= first <= second < count and second - first >= count // interval for first, second in drawn
    )
    assert {first for first, _ in drawn} >= {0}
    if count > 1:
        assert count - 1 in {second for _, second in drawn}


def block(h, w, size=(100, 100)):
    """A mask with a block of h x w in its middle."""
    mask = np.zeros(size, bool)
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    mask[top : top + h, left : left + w] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "rules", "reason"),
    [
        (block(9, 9), Rules(), "reference too small: covers 0.8%"),
        (block(90, 90), Rules(), "reference too large: covers 81.0%"),
        (block(5, 60), Rules(), "reference too small: 60 x 5 pixels of 100 x 100"),
        (block(5, 60), Rules(sides="both"), ""),
        (block(40, 40) & ~block(100, 4), Rules(), "reference in pieces: the largest is 50%"),
        (block(40, 40), Rules(one_piece=True), ""),
        (
            block(40, 40) | block(98, 98) & ~block(96, 100),
            Rules(whole=0.0, one_piece=True),
            "reference in pieces: 3",
        ),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_references_are_judged_by_the_published_rules(mask, rules, reason):
    if not reason:
        rules.check_reference(mask)
        return
    with pytest.raises(Rejected, match=reason):
        rules.check_reference(mask)


def test_targets_are_judged_with_their_margin():
    Rules().check_target(block(72, 40))
    with pytest.raises(Rejected, match="target too large: 44 x 82 pixels"):
        Rules().check_target(block(74, 40))
    Rules(sides="both").check_target(block(74, 40))
    Rules(max_side=1.0).check_target(block(96, 40))


def test_segmentations_agree(tmp_path):
    mask = block(20, 30)
    coded = trees.coded(mask)
    assert np.array_equal(segment_mask(coded, (100, 100), "a"), mask)
    uncompressed = {"size": [100, 100], "counts": [int(n) for n in _runs(mask)]}
    assert np.array_equal(segment_mask(uncompressed, (100, 100), "a"), mask)
    corners = [35.0, 40.0, 65.0, 40.0, 65.0, 60.0, 35.0, 60.0]
    assert np.array_equal(segment_mask([corners], (100, 100), "a"), mask)
    with pytest.raises(ValueError, match=r"a: the segmentation is 100 x 100 pixels, its image is 50 x 40"):
        segment_mask(coded, (40, 50), "a")
    with pytest.raises(ValueError, match="a: the segmentation cannot be decoded"):
        segment_mask({"counts": 3}, (40, 50), "a")
    for damaged in ([], [3.0, 4.0], [["x"]], [[1.0, 2.0]], None, "abc"):
        with pytest.raises(ValueError, match="a: the segmentation cannot be decoded"):
            segment_mask(damaged, (40, 50), "a")


def _runs(mask):
    """Lengths of runs of a mask column by column, starting with the unset ones."""
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *edges, mask.size])


def test_ids_of_coloured_and_palette_images(tmp_path):
    write_png(tmp_path / "a.png", np.full((3, 4, 3), (1, 2, 3), np.uint8))
    trees.save_ids(tmp_path / "b.png", np.full((3, 4), 7, np.uint8))
    assert (read_ids(tmp_path / "a.png") == 1 + 2 * 256 + 3 * 65536).all()
    assert (read_ids(tmp_path / "b.png") == 7).all()
