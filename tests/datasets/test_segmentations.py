"""Segmentations of COCO as masks: polygons, run lengths as lists, texts and bytes, damaged ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as run_lengths

from datasets.benchmark import Instances
from datasets.sources.coco import segment_mask
from tests.datasets.coco_files import SIZE, SQUARE, runs_of, square


@pytest.mark.parametrize(
    "stray", [[], [200.0], [20.0, 10.0], [20.0, 10.0, 21.0, 10.0], [20.0, 10.0, 21.0, 10.0, 3.0], [None], "x"]
)
@pytest.mark.parametrize("as_arrays", [False, True])
def test_stray_polygons_are_dropped(stray, as_arrays):
    polygons: Any = [stray, SQUARE[0], stray]
    if as_arrays:
        polygons = tuple(map(np.asarray, polygons))
    assert np.array_equal(segment_mask(polygons, SIZE, "a"), square())
    with pytest.raises(
        ValueError, match="a: the segmentation cannot be decoded: no polygon has three points"
    ):
        segment_mask([stray], SIZE, "a")


@pytest.mark.parametrize(
    ("polygon", "reason"),
    [
        ([1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 3.0], "numbers in pairs"),
        ([1.0, 1.0, float("nan"), 1.0, 9.0, 9.0], "not finite, or beyond 300"),
        ([1.0, 1.0, float("inf"), 1.0, 9.0, 9.0], "not finite, or beyond 300"),
        ([0.0, 0.0, 1e9, 0.0, 1e9, 1e9], "not finite, or beyond 300"),
        (["1", "2", "3", "4", "5", "6"], "numbers in pairs"),
        ([[1, 1], [9, 1], [9, 9]], "numbers in pairs"),
        ([1, 1, 9, 1, None, 9], "numbers in pairs"),
    ],
)
def test_polygons_hold_finite_numbers_in_pairs(polygon, reason):
    with pytest.raises(ValueError, match=f"a: the segmentation cannot be decoded: .*{reason}"):
        segment_mask([SQUARE[0], polygon], SIZE, "a")


def test_run_lengths_are_lists_texts_or_bytes():
    rng = np.random.default_rng(0)
    for mask in (square(), ~square(), np.ones(SIZE, bool), rng.random(SIZE) < 0.5, square(0, 0, 20)):
        coded = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))
        for counts in (
            coded["counts"],
            coded["counts"].decode(),
            runs_of(mask),
            [*map(float, runs_of(mask))],
        ):
            assert np.array_equal(segment_mask({"size": [*SIZE], "counts": counts}, SIZE, "a"), mask)
    assert np.array_equal(segment_mask({"counts": runs_of(square())}, SIZE, "a"), square())


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([300, 299], "do not fill 20 x 30 = 600 pixels"),
        ([300, 301], "do not fill"),
        ([], "do not fill"),
        ("", "do not fill"),
        ([300, 400, -100], "do not fill"),
        ([300.5, 299.5], "do not fill"),
        ([0, 2**62, 2**62, 2**62, 2**62, 600], "do not fill"),
        ([300, None], "do not fill"),
        (["300", "300"], "do not fill"),
        ([[300], [300]], "do not fill"),
        (7, "do not fill"),
        (None, "do not fill"),
        ("\u00e9", "no character of run lengths"),
        ("00 00", "' ' is no character of run lengths"),
        (run_lengths.encode(np.asfortranarray(np.ones((20, 29), np.uint8)))["counts"], "do not fill"),
    ],
)
def test_run_lengths_that_do_not_fill_the_image_are_refused(counts, reason):
    with pytest.raises(ValueError, match=f"a: the segmentation cannot be decoded: .*{reason}"):
        segment_mask({"size": [*SIZE], "counts": counts}, SIZE, "a")


def test_a_huge_size_is_refused_before_anything_is_decoded():
    with pytest.raises(
        ValueError, match="a: the segmentation is 1000000 x 1000000 pixels, its image is 30 x 20"
    ):
        segment_mask({"size": [10**6, 10**6], "counts": [10**12]}, SIZE, "a")


def test_real_slices_read_as_before(test_data):
    coco = test_data / "data/coco"
    known = Instances(coco / "annotations/instances_val2017.json")
    entries = json.loads((coco / "annotations/instances_val2017.json").read_text())
    sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in entries["images"]}
    for entry in entries["annotations"][::5]:
        shape, (h, w) = entry["segmentation"], sizes[entry["image_id"]]
        coded = shape if isinstance(shape, dict) and isinstance(shape["counts"], str) else None
        parts = run_lengths.frPyObjects(shape, h, w)
        expected = run_lengths.decode(
            coded or (run_lengths.merge(parts) if isinstance(parts, list) else parts)
        )
        assert np.array_equal(known.mask(entry["id"]), expected.astype(bool))
