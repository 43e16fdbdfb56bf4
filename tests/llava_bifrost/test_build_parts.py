"""The parts of the builder: depth frames, names, removal, relations by both sets of rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.base import Rejected
from datasets.relations import Place
from ldm.experts.erase import Eraser
from llava_bifrost.build_dataset.objects import (
    Annotated,
    Photograph,
    Removal,
    grow,
    read_instances,
    remove,
    unique_names,
)
from llava_bifrost.build_dataset.published import large_objects, question, relation_phrases
from llava_bifrost.build_dataset.questions import (
    PreparedPhotograph,
    align_depth,
    choose_facts,
    true_facts,
    word_request,
)
from llava_bifrost.language.answer import satisfies
from llava_bifrost.language.instruction import Request
from llava_bifrost.settings import CocoBuild, RelationRules, Thresholds

Box = tuple[float, float, float, float]
SIZE = (60, 80)
OPTIONS = CocoBuild(images=Path(), annotations=Path(), out=Path(), format="maxmedmin")


def thing(category: str, box: Box, crowd: bool = False) -> Annotated:
    """A rectangle of 60 x 80 pixels' fractions."""
    (h, w), (x0, y0, x1, y1) = SIZE, box
    outline = [x0 * w, y0 * h, x1 * w, y0 * h, x1 * w, y1 * h, x0 * w, y1 * h]
    return Annotated(category, [outline], box, crowd, SIZE, "test")


# Depth frames


@given(st.floats(0.2, 3), st.floats(-0.5, 0.5), st.floats(0, 0.25), st.integers(0, 9))
def test_depth_frames_are_found_in_spite_of_outliers(
    scale: float, shift: float, wrong: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    depth = rng.random(SIZE)
    frame = scale * depth + shift + rng.normal(0, 0.002, SIZE)
    frame[rng.random(SIZE) < wrong] += 0.8
    found_scale, found_shift, _ = align_depth(frame, depth, np.ones(SIZE, bool))
    assert found_scale == pytest.approx(scale, abs=0.02)
    assert found_shift == pytest.approx(shift, abs=0.02)
    assert np.allclose(found_scale * depth + found_shift, scale * depth + shift, atol=0.03)


@pytest.mark.parametrize(
    ("frame", "shared", "reason"),
    [
        (np.linspace(0, 1, 4800).reshape(SIZE), np.zeros(SIZE, bool), "only 0 pixels"),
        (np.zeros(SIZE), np.ones(SIZE, bool), "flat in depth"),
        (np.linspace(1, 0, 4800).reshape(SIZE), np.ones(SIZE, bool), "exchanged"),
    ],
)
def test_frames_that_tell_nothing_are_rejected(frame: np.ndarray, shared: np.ndarray, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        align_depth(frame, np.linspace(0, 1, 4800).reshape(SIZE), shared)


# Names and removal


def test_names_pick_out_one_object() -> None:
    dogs = [thing("dog", (0.1, 0.1, 0.3, 0.3)), thing("dog", (0.6, 0.1, 0.8, 0.3))]
    wide = [*dogs, thing("cat", (0, 0, 0.5, 0.5))]
    assert unique_names(wide, 0.01) == {0: "left dog", 1: "right dog", 2: "cat"}
    assert unique_names([*wide, thing("cat", (0.5, 0.5, 0.55, 0.55))], 0.01)[2] == "cat"  # too small a rival
    assert unique_names([*wide, thing("cat", (0.4, 0.5, 0.6, 0.7))], 0.01)[2] == "left cat"
    assert unique_names([*wide, thing("cat", (0.2, 0.5, 0.4, 0.7))], 0.01)[2] == "largest cat"
    assert 2 not in unique_names([*wide, thing("cat", (0, 0.5, 0.5, 1))], 0.01)
    assert 2 not in unique_names([*wide, thing("cat", (0.9, 0.5, 1, 1), crowd=True)], 0.01)
    three = [*wide, thing("dog", (0.35, 0.1, 0.55, 0.3))]
    assert unique_names(three, 0.01) == {0: "left dog", 3: "middle dog", 1: "right dog", 2: "cat"}
    assert unique_names([thing("cup on saucer", (0, 0, 1, 1))], 0.01) == {}  # cannot be said


def test_removal_refuses_what_leaves_a_trace() -> None:
    rng, box = np.random.default_rng(0), (0.25, 0.25, 0.5, 0.5)
    rgb_u8 = rng.integers(0, 40, (*SIZE, 3)).astype(np.uint8)
    rgb_u8[15:30, 20:40] = 220
    done = remove(rgb_u8, 0, thing("cat", box), Thresholds(), Eraser.load(), 0)
    assert done.hole[15:30, 20:40].all()
    assert done.hole[13:32, 18:42].sum() > done.mask.sum()
    assert done.filled_u8[done.mask].max() < 60
    flat = np.full((*SIZE, 3), 90, np.uint8)
    with pytest.raises(Rejected, match="object remains: 100%"):
        remove(flat, 0, thing("cat", box), Thresholds(), Eraser.load(), 0)
    with pytest.raises(Rejected, match="large hole"):
        remove(rgb_u8, 0, thing("cat", box), Thresholds(hole=0.05), Eraser.load(), 0)
    thin = Annotated("cat", [[0, 0, 4, 0, 4, 4, 0, 4]], (0.0, 0.0, 0.9, 0.9), False, SIZE, "test")
    with pytest.raises(Rejected, match="thin target"):
        remove(rgb_u8, 0, thin, Thresholds(), Eraser.load(), 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"annotations": None}, "no entry 'annotations'"),
        ({"images": []}, "lists no images"),
        (
            {"images": [{"id": 1, "file_name": "a.jpg"}]},
            "1 of 1 images .*'height' is missing",
        ),
        ({"images": [{"id": n, "file_name": "a.jpg", "height": 2, "width": 2} for n in (1, 2)]}, "called a"),
    ],
)
def test_incomplete_annotations_are_refused(change: dict[str, Any], reason: str) -> None:
    document = {"images": [], "annotations": [], "categories": [], **change}
    document = {key: value for key, value in document.items() if value is not None}
    with pytest.raises(ValueError, match=reason):
        read_instances(document, Path("instances.json"))


# Depth of the answer


def test_answers_are_in_the_frame_of_the_filled_image() -> None:
    floor = np.tile(np.linspace(1, 2, SIZE[0])[:, None], (1, SIZE[1]))  # inverse depth
    near, side = thing("cat", (0.3, 0.3, 0.6, 0.7)), thing("dog", (0.35, 0.1, 0.55, 0.5))
    scene = floor.copy()
    scene[side.mask()] = 1.2
    behind = scene.copy()
    scene[near.mask()] = 2.1
    original, filled = (scene - 1) / 1.1, behind - 1  # each normalised by itself
    photograph = Photograph("a", "a.jpg", 1, SIZE, (near, side))
    hole = grow(near.mask(), 0.02)
    removal = Removal(0, near.mask(), hole, np.zeros((*SIZE, 3), np.uint8))
    asking = replace(OPTIONS, thresholds=Thresholds(remaining=0.1))
    one = PreparedPhotograph(photograph, np.random.default_rng(0), [], removal.filled_u8, [removal])
    (sample,) = one.samples(original, [filled], asking).samples
    assert sample.location.d == 1  # 1.1 in the filled frame, clipped; 1.0 / 1.1 in its own
    assert sample.request == Request("cat", (("in front of", "dog"),))
    assert sample.anchors["dog"].d == pytest.approx(0.2, abs=0.01)
    far = np.where(near.mask(), 1.7, scene)  # farther than the nearest floor: both frames agree
    (sample,) = one.samples((far - 1) / 1.0, [filled], asking).samples
    assert sample.location.d == pytest.approx(0.7, abs=0.01)
    tall = np.where(near.mask(), 3.0, scene)
    assert "too near" in one.samples((tall - 1) / 2, [filled], asking).dropped[-1]
    rough = filled + np.random.default_rng(0).normal(0, 0.3, SIZE)
    assert "depth frames" in one.samples(original, [rough], asking).dropped[-1]


# Relations


@given(st.integers(0, 200))
def test_what_is_chosen_is_true_and_names_each_anchor_once(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def place() -> Place:
        (x0, y0), (w, h) = rng.random(2) * 0.6, 0.1 + rng.random(2) * 0.3
        far, d, near = np.sort(rng.random(3)) * 0.2 + rng.random() * 0.8
        return Place((x0, y0, x0 + w, y0 + h), d, far, near)

    target, anchors = place(), {name: place() for name in ("sofa", "lamp", "bed", "chair")}
    facts = true_facts([target], anchors, RelationRules(reach=1, depth_step=0, same_depth=1))
    if not facts:
        return
    chosen = choose_facts(facts, 3, rng)
    names = [name for _, pair in chosen for name in pair]
    assert 1 <= len(chosen) <= 3
    assert len(names) == len(set(names))
    request = word_request("cat", chosen, rng)
    assert all(satisfies(target, request, anchors).values())


def test_estimated_depth_needs_a_margin() -> None:
    sofa = {"sofa": Place((0.3, 0.4, 0.7, 0.8), 0.5, 0.45, 0.55)}

    def words(d: float, **rules: Any) -> set[str]:
        target = Place((0.4, 0.2, 0.6, 0.5), d, d - 0.02, d + 0.02)
        return {word for word, _ in true_facts([target], sofa, RelationRules(**rules))}

    assert words(0.41) == set()
    assert words(0.38) == {"behind"}
    assert words(0.41, depth_step=0.06) == {"behind"}
    assert words(0.52) == {"on", "above"}
    assert words(0.56) == set()  # too far apart to be sure that it stands there
    assert words(0.56, same_depth=0.1) == {"on", "above"}
    known = {"sofa": frozenset({"above"})}
    target = Place((0.4, 0.2, 0.6, 0.5), 0.5, 0.48, 0.52)
    assert true_facts([target], sofa, RelationRules(), known) == [("above", ("sofa",))]


@pytest.mark.parametrize(
    ("target", "phrases"),
    [
        ((0.4, 0.705, 0.6, 0.9), {"below", "under", "beneath", "underneath"}),
        ((0.4, 0.75, 0.6, 0.9), {"below", "beneath", "underneath"}),
        ((0.4, 0.1, 0.6, 0.3), {"above", "on top of", "at the top of", "over", "on"}),
        ((0.4, 0.1, 0.6, 0.25), {"above", "over"}),
        ((0.4, 0.5, 0.6, 0.9), {"in front of"}),
        ((0.4, 0.1, 0.6, 0.5), {"behind"}),
        ((0.4, 0.1, 0.6, 0.9), set()),  # taller than the anchor on both sides
        ((0.05, 0.4, 0.295, 0.6), {"next to", "near", "beside", "alongside", "to the left of"}),
        ((0.05, 0.4, 0.25, 0.6), {"to the left of"}),
        ((0.75, 0.4, 0.95, 0.6), {"to the right of"}),
        ((0.0, 0.4, 0.05, 0.6), set()),  # 0.25 aside
        ((0.75, 0.8, 0.9, 0.9), set()),  # aside and 0.1 lower
    ],
)
def test_published_relations(target: Box, phrases: set[str]) -> None:
    anchor = thing("sofa", (0.3, 0.3, 0.7, 0.7))
    assert set(relation_phrases(thing("cat", target), anchor)) == phrases


def test_published_questions_measure_the_whole_box() -> None:
    objects = (thing("cat", (0.3, 0.4, 0.8, 0.9)), thing("sofa", (0.2, 0.1, 0.9, 0.7)),
               thing("sofa", (0, 0, 1, 1)), thing("cup", (0, 0, 0.1, 0.1)),
               thing("bed", (0, 0, 0.9, 0.9), crowd=True))  # fmt: skip
    assert large_objects(objects) == [0, 1]
    depth = np.tile(np.linspace(0, 1, SIZE[0])[:, None], (1, SIZE[1]))
    rng, photograph = np.random.default_rng(0), Photograph("a", "a.jpg", 1, SIZE, objects)
    where, request, anchors = question(photograph, 0, depth, rng)
    assert request == Request("cat", (("in front of", "sofa"),))
    assert (where.far, where.near) == pytest.approx((24 / 59, 53 / 59), abs=1e-4)
    assert where.d == pytest.approx(38.5 / 59, abs=1e-4)
    assert anchors["sofa"].box01_xyxy == (0.2, 0.1, 0.9, 0.7)
    removal = Removal(0, objects[0].mask(), objects[0].mask(), np.zeros((*SIZE, 3), np.uint8))
    one = PreparedPhotograph(photograph, rng, [], removal.filled_u8, [removal], replaced=1)
    options = replace(OPTIONS, published=True)
    asked = one.samples(depth, [depth], options).samples
    assert [sample.request for sample in asked] == [request, Request("sofa", replace=True)]
    assert asked[0].location == where
    assert asked[1].location.box01_xyxy == (0.2, 0.1, 0.9, 0.7)
    with pytest.raises(Rejected, match="no relation"):
        question(Photograph("a", "a.jpg", 1, SIZE, objects[:1]), 0, depth, np.random.default_rng(0))
