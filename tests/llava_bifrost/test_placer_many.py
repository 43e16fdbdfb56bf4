"""What the placer computes grows no faster than the number of known objects: counted, not timed."""

import tracemalloc

import numpy as np
import pytest

from ldm.experts.detect import INNER, OUTLIER_TAIL, depth_in_box
from llava_bifrost.language.reading import parse_instruction
from llava_bifrost.placement import ground, search
from llava_bifrost.placement.placer import Item, place_object
from llava_bifrost.propose import propose, read_anchors
from llava_bifrost.settings import GEOMETRIC, LocatorOptions

H, W = 120, 160
Y, X = (np.mgrid[0:H, 0:W] + 0.5) / np.array([H, W])[:, None, None]
ROOM = np.where(Y > 0.4, 0.1 + 1.2 * (Y - 0.4), 0.1 + 0.05 * X).astype(np.float32)


def boxes_on_the_floor(count: int) -> list[tuple[float, float, float, float]]:
    corners = np.random.default_rng(0).uniform((0.0, 0.42), (0.95, 0.9), (count, 2))
    return [(x, y, x + 0.02, y + 0.03) for x, y in corners.tolist()]


def numbers_computed(monkeypatch: pytest.MonkeyPatch, count: int) -> int:
    """How many depths above planes one fit looks at."""
    seen, residuals = [], ground._residuals
    with monkeypatch.context() as patched:
        patched.setattr(
            ground, "_residuals", lambda planes, points: seen.append(len(planes) * len(points)) or
            residuals(planes, points))  # fmt: skip
        ground.fit_ground(ROOM, boxes_on_the_floor(count))
    return sum(seen)


@pytest.mark.parametrize("count", [100, 400])
def test_twice_the_objects_are_at_most_twice_the_planes_held_against_them(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    least, twice = numbers_computed(monkeypatch, count), numbers_computed(monkeypatch, 2 * count)
    assert twice <= 2.1 * least


def test_every_foot_counts_up_to_the_most_that_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, most = [], ground.MOST_FEET
    planes_of = ground._hypotheses
    monkeypatch.setattr(ground, "_hypotheses", lambda points, size, feet: counts.append(len(feet)) or
                        planes_of(points, size, feet))  # fmt: skip
    for count in (0, most, most + 1, 4 * most):
        ground.fit_ground(ROOM, boxes_on_the_floor(count))
    assert counts == [0, most, most, most]


def test_the_floor_of_many_objects_is_the_floor() -> None:
    found = ground.fit_ground(ROOM, boxes_on_the_floor(500))
    assert found.measured
    for x, y in ((0.1, 0.95), (0.5, 0.7), (0.9, 0.5)):
        assert found.plane.at(x, y) == pytest.approx(0.1 + 1.2 * (y - 0.4), abs=0.01)


def test_an_object_finds_its_place_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Footprints are computed for each known object in each look, and for no pair of them."""
    calls, footprint = [], search.footprint
    monkeypatch.setattr(search, "footprint", lambda *given: calls.append(given) or footprint(*given))
    known = {"table": {"box": [0.4, 0.5, 0.6, 0.7]}}
    per_object = []
    for count in (10, 40):
        calls.clear()
        boxes = [(x, 0.93, x + 0.01, 0.95) for x in np.linspace(0.0, 0.9, count)]
        known |= {f"thing {number}": {"box": list(box)} for number, box in enumerate(boxes)}
        places = read_anchors(known, ROOM)
        assert place_object(parse_instruction("Place the cup next to the table"), places, ROOM)
        per_object.append(len(calls) / len(known))
    assert per_object[1] <= 1.1 * per_object[0]
    options = LocatorOptions(locator=GEOMETRIC)
    image_u8 = np.zeros((H, W, 3), np.uint8)
    assert propose(options, "Place the cup next to the table", image_u8, ROOM, known, Item(), None)[2]


@pytest.mark.parametrize(
    "box",
    [(0.3, 0.2, 0.7, 0.9), (0.0, 0.0, 1.0, 1.0), (0.5, 0.5, 0.501, 0.502), (0.99, 0.98, 1.0, 1.0),
     (0.0, 0.3, 0.004, 0.9)],
)  # fmt: skip
@pytest.mark.parametrize("masked", [False, True])
def test_the_depth_of_a_box_is_that_of_its_ellipse_or_mask(box: tuple, masked: bool) -> None:
    rng = np.random.default_rng(1)
    depth_01, mask = rng.random((H, W)), rng.random((H, W)) > 0.6
    x0, y0, x1, y1 = box
    half = max((x1 - x0) / 2, 1 / W), max((y1 - y0) / 2, 1 / H)
    across, along = (X - (x0 + x1) / 2) / half[0], (Y - (y0 + y1) / 2) / half[1]
    whole = (np.abs(across) <= 1) & (np.abs(along) <= 1)
    chosen = whole & mask if masked else across**2 + along**2 <= INNER**2
    values = depth_01[chosen] if chosen.any() else depth_01[whole]
    far, d, near = np.quantile(values, [OUTLIER_TAIL, 0.5, 1 - OUTLIER_TAIL])
    assert depth_in_box(depth_01, box, mask if masked else None) == pytest.approx((d, far, near), abs=1e-12)


def test_the_depth_of_a_small_box_does_not_look_at_a_large_image() -> None:
    depth_01 = np.zeros((1500, 2000), np.float32)
    tracemalloc.start()
    depth_in_box(depth_01, (0.5, 0.5, 0.52, 0.52))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < depth_01.nbytes / 20
