"""Relations between objects: converses agree, and plain arrangements get their plain names."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.relations import RELATIONS, Place, holds, order_is_right, relation

CONVERSE = {
    "left of": "right of",
    "right of": "left of",
    "in front of": "behind",
    "behind": "in front of",
    "next to": "next to",
}


@st.composite
def places(draw: st.DrawFn) -> Place:
    x0, y0 = draw(st.floats(0, 0.9)), draw(st.floats(0, 0.9))
    x1, y1 = (min(low + draw(st.floats(0.02, 0.5)), 1.0) for low in (x0, y0))
    box = (x0, y0, x1, y1)
    far, d, near = sorted(draw(st.floats(0, 1)) for _ in range(3))
    return Place(box, d, far, near)


@given(places(), places())
def test_relations_have_their_converse(a: Place, b: Place) -> None:
    there, back = relation(a, b, on=False), relation(b, a, on=False)
    assert there <= set(RELATIONS)
    assert {CONVERSE[word] for word in there} == back


@given(places(), places())
def test_two_objects_do_not_stand_on_each_other(a: Place, b: Place) -> None:
    assert not ("on" in relation(a, b) and "on" in relation(b, a))


@given(places())
def test_nothing_stands_in_relation_to_itself(a: Place) -> None:
    assert relation(a, a) == frozenset()


def test_plain_arrangements() -> None:
    table = Place((0.3, 0.5, 0.7, 0.9), 0.6, 0.5, 0.7)
    assert relation(Place((0.4, 0.3, 0.5, 0.6), 0.6, 0.57, 0.63), table) == {"on"}
    assert relation(Place((0.4, 0.6, 0.6, 1.0), 0.8, 0.75, 0.85), table) == {"in front of"}
    assert relation(Place((0.45, 0.3, 0.6, 0.5), 0.3, 0.25, 0.35), table) == {"behind"}
    assert relation(Place((0.1, 0.6, 0.27, 0.9), 0.6, 0.55, 0.65), table) == {"left of", "next to"}
    assert relation(Place((0.9, 0.6, 1.0, 0.9), 0.6, 0.55, 0.65), table) == {"right of"}


@pytest.mark.parametrize(
    ("box", "depths"),
    [
        ((0.5, 0.1, 0.4, 0.2), (0.5, 0.4, 0.6)),
        ((0, 0, 1, 1), (0.7, 0.4, 0.6)),
        ((0, 0, 1, 1), (0.5, 0.4, 1.2)),
    ],
)
def test_impossible_places_are_refused(box: tuple, depths: tuple) -> None:
    with pytest.raises(ValueError, match="must"):
        Place(box, *depths)


@given(places(), places())
def test_above_has_its_converse_and_includes_on(a: Place, b: Place) -> None:
    assert not (holds("above", a, b) and holds("above", b, a))
    assert holds("under", a, b) == holds("above", b, a)
    lies_within = a.y0 > b.y0  # on a surface seen from above, as on a bed: not above it
    assert holds("above", a, b) or lies_within or not holds("on", a, b)


TABLE = Place((0.2, 0.5, 0.8, 0.9), 0.6, 0.5, 0.75)


@pytest.mark.parametrize(
    ("box", "d", "on", "above"),
    [
        ((0.4, 0.4, 0.5, 0.6), 0.6, True, True),  # a vase that sticks out above the far edge
        ((0.4, 0.52, 0.5, 0.65), 0.6, True, False),  # a cup in the middle of the table, seen from above
        ((0.25, 0.55, 0.3, 0.7), 0.7, True, False),  # a cup at its near side
        ((0.4, 0.1, 0.6, 0.3), 0.6, False, True),  # a lamp over the table
        ((0.4, 0.1, 0.6, 0.3), 0.2, False, False),  # a picture on the wall far behind it
        ((0.4, 0.72, 0.5, 0.88), 0.6, False, False),  # a dog below it
    ],
)
def test_on_is_above_where_it_sticks_out(box: tuple, d: float, on: bool, above: bool) -> None:
    """What lies within the outline of a surface seen from above is on it, and no place above it."""
    thing = Place(box, d, d - 0.03, d + 0.03)
    assert holds("on", thing, TABLE) is on
    assert holds("above", thing, TABLE) is holds("under", TABLE, thing) is above


@given(places(), places(), places())
def test_between_does_not_mind_the_order(a: Place, b: Place, c: Place) -> None:
    assert holds("between", a, b, c) == holds("between", a, c, b)


@given(places(), places())
def test_deciding_agrees_with_finding(a: Place, b: Place) -> None:
    assert {word for word in RELATIONS if holds(word, a, b)} == relation(a, b)


def test_a_dog_lies_under_a_table() -> None:
    table, dog = Place((0.2, 0.4, 0.8, 0.9), 0.6, 0.5, 0.7), Place((0.4, 0.65, 0.6, 0.88), 0.6, 0.55, 0.62)
    assert holds("under", dog, table)
    assert holds("above", table, dog)
    assert not holds("under", Place(dog.box01_xyxy, 0.9, 0.87, 0.95), table)


def test_depth_order_beside_the_border_and_a_swapped_depth_fails() -> None:
    placed, other = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    placed[10:30, 5:20], other[10:30, 20:39] = True, True
    depth = np.where(placed, 0.7, 0.2)
    depth[:, 5:7] = 0.0  # far from the border
    assert order_is_right(depth, placed, other, nearer=True)
    assert not order_is_right(depth, placed, other, nearer=False)
    assert not order_is_right(1 - depth, placed, other, nearer=True)
    assert not order_is_right(np.zeros_like(depth), placed, other, nearer=True)
    assert order_is_right(depth, np.zeros_like(placed), other, nearer=True) is None
