"""The geometric placer on what photographs have and rendered rooms do not: steep grounds, hidden feet, seats,
tables from border to border, objects that the border cuts off. Depth maps are made here; the photographs of
the test data are answered as well where they are.
"""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from benchmarks.placer_photographs import PARTS, SENTENCES, agrees, answer, judge
from datasets.relations import Place, Places, holds, relation_margins
from ldm.images import read_depth
from llava_bifrost.language.reading import parse_instruction
from llava_bifrost.placement.ground import fit_ground
from llava_bifrost.placement.placer import Item, NoPlace, place_object
from llava_bifrost.placement.sizes import is_level, usual_size
from llava_bifrost.propose import propose, read_anchors
from llava_bifrost.settings import GEOMETRIC

H, W = 120, 160
Y, X = (np.mgrid[0:H, 0:W] + 0.5) / np.array([H, W])[:, None, None]


def hall(slope: float = 1.2, edge: float = 0.6) -> np.ndarray:
    """A wall that rises a little to the right and to the viewer, and a floor below `edge` of the height."""
    wall = 0.08 + 0.2 * Y + 0.05 * X
    floor = wall[int(edge * H) - 1] + slope * (Y - edge)
    return np.where(edge > Y, wall, np.minimum(floor, 1.0)).astype(np.float32)


def shown(depth_01: np.ndarray, *things: tuple[tuple[float, float, float, float], float]) -> np.ndarray:
    """The map with boxes at depths in it."""
    depth_01 = depth_01.copy()
    for (x0, y0, x1, y1), d in things:
        depth_01[(y0 <= Y) & (y1 > Y) & (x0 <= X) & (x1 > X)] = d
    return depth_01


def place(text: str, anchors: dict, depth_01: np.ndarray, aspect: float = 1.0) -> Place:
    places = read_anchors({name: {"box": list(box)} for name, box in anchors.items()}, depth_01)
    return place_object(parse_instruction(text), places, depth_01, item=Item(aspect))[0].location


CHAIR = (0.4, 0.5, 0.55, 0.75)


@pytest.mark.parametrize("slope", [0.6, 1.2, 3.0])
@pytest.mark.parametrize("edge", [0.6, 0.7])
def test_a_large_wall_that_rises_is_not_the_ground_where_objects_stand(slope: float, edge: float) -> None:
    depth_01 = hall(slope, edge)
    boxes = [(0.2, 0.4, 0.3, edge + 0.1), (0.6, 0.5, 0.7, edge + 0.15)]
    ground = fit_ground(depth_01, boxes)
    assert ground.measured
    for x, y in ((0.1, 0.95), (0.5, 0.9), (0.9, 0.8)):
        true = float(depth_01[int(y * H), int(x * W)])
        assert ground.plane.at(x, y) == pytest.approx(true, abs=0.03 * max(1, slope)) or true == 1
    assert not ground.reach[: int(0.4 * ground.reach.shape[0])].any()


@pytest.mark.parametrize(
    "depth_01",
    [np.zeros((H, W), np.float32), np.ones((H, W), np.float32) * 0.3, (1 - Y).astype(np.float32),
     X.astype(np.float32)],
)  # fmt: skip
def test_level_ground_is_assumed_and_said_where_none_is_seen(
    depth_01: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    ground = fit_ground(depth_01)
    assert not ground.measured
    assert (ground.plane.a, ground.plane.b > 0) == (0.0, True)
    assert not ground.reach[0].any()
    with caplog.at_level(logging.WARNING):
        place("Put the cat to the left of the chair", {"chair": CHAIR}, shown(depth_01, (CHAIR, 0.6)))
    assert "level ground under the camera is assumed" in caplog.text


def test_assumed_ground_passes_under_the_feet_that_are_seen() -> None:
    depth_01 = shown(np.full((H, W), 0.02, np.float32), ((0.4, 0.74, 0.55, 0.8), 0.2))
    ground = fit_ground(depth_01, [CHAIR])
    assert not ground.measured
    assert ground.plane.at(0.5, 0.77) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    ("box", "shows", "d"),
    [
        (CHAIR, None, "foot"),  # one sees wall and floor through a chair
        ((0.4, 0.5, 0.55, 0.66), 0.15, "foot"),  # and something far behind its back
        (CHAIR, 0.95, "box"),  # nearer than the floor at its lower edge: it stands on something
    ],
)
def test_the_depth_of_an_anchor_is_that_of_its_foot(box: tuple, shows: float | None, d: str) -> None:
    depth_01 = hall() if shows is None else shown(hall(), (box, shows))
    foot = float(hall()[int(0.75 * H), int(0.47 * W)])
    found = read_anchors({"chair": {"box": list(CHAIR)}}, depth_01)["chair"]
    assert found.d == pytest.approx(foot if d == "foot" else shows, abs=0.04)
    given = read_anchors({"chair": {"box": list(CHAIR), "depth": 0.2}}, depth_01)["chair"]
    assert given.d == 0.2  # what the user says stays


def test_an_anchor_behind_another_has_the_depth_of_its_own_foot() -> None:
    """A bench of which another object hides the middle: half of its box shows what stands before it."""
    bench = (0.1, 0.4, 0.5, 0.7)
    depth_01 = shown(hall(), (bench, 0.3), ((0.2, 0.4, 0.6, 0.7), 0.9))
    foot = float(hall()[int(0.71 * H), 48])
    assert read_anchors({"bench": {"box": list(bench)}}, depth_01)["bench"].d == pytest.approx(foot, abs=0.04)


TABLE = (0.3, 0.45, 0.7, 0.85)


def table(depth_01: np.ndarray) -> np.ndarray:
    """A top and two legs at the depth of the table's foot."""
    foot = float(depth_01[int(0.85 * H), W // 2])
    top, left, right = (0.3, 0.45, 0.7, 0.52), (0.3, 0.45, 0.33, 0.85), (0.67, 0.45, 0.7, 0.85)
    return shown(depth_01, (top, foot), (left, foot), (right, foot))


@pytest.mark.parametrize("aspect", [0.6, 1.0, 1.6])
def test_under_is_between_the_legs_where_one_sees_through(aspect: float) -> None:
    found = place("Put the basket under the table", {"table": TABLE}, table(hall()), aspect)
    x0, y0, x1, y1 = found.box01_xyxy
    assert 0.3 < x0 < x1 < 0.7
    assert y0 > 0.5
    assert 0.65 < y1 < 0.87


@pytest.mark.parametrize("name", ["table", "nightstand", "crate", "piano"])
@pytest.mark.parametrize("phrase", ["under", "below", "beneath"])
def test_nothing_is_put_under_what_stands_on_the_ground_without_space(name: str, phrase: str) -> None:
    depth_01 = shown(hall(), (TABLE, float(hall()[int(0.85 * H), W // 2])))
    with pytest.raises(NoPlace, match=f"no space to be seen under the {name}"):
        place(f"Put the basket {phrase} the {name}", {name: TABLE}, depth_01)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("chair", 0.49, 0.63), ("park bench", 0.45, 0.61), ("red motorcycle", 0.23, 0.37), ("bed", 0.24, 0.61),
     ("piano", 0.0, 0.21)],
)  # fmt: skip
def test_on_is_the_seat_or_the_upper_side(name: str, low: float, high: float) -> None:
    box = (0.3, 0.4, 0.7, 0.8)
    depth_01 = shown(hall(), (box, float(hall()[int(0.8 * H), W // 2])))
    found = place(f"Put the cat on the {name}", {name: box}, depth_01)
    assert low <= (found.y1 - 0.4) / 0.4 <= high
    assert 0.3 < found.middle < 0.7


@pytest.mark.parametrize(
    ("name", "box", "level"),
    [
        ("table", (0.0, 0.6, 1.0, 1.0), True),  # from border to border
        ("table", (0.1, 0.6, 0.9, 1.0), False),
        ("rug", (0.2, 0.7, 0.8, 0.9), True),
        ("wooden floor", (0.0, 0.6, 0.9, 1.0), True),
        ("sofa", (0.2, 0.4, 0.8, 0.9), False),
    ],
)
def test_what_others_stand_on_is_no_obstacle(name: str, box: tuple, level: bool) -> None:
    assert is_level(name, Place.of(box, 0.5)) is level
    if level:
        anchors = {name: box, "mug": (0.45, 0.7, 0.5, 0.78)}
        found = place(f"Put the cup on the {name}, to the left of the mug", anchors, hall())
        assert found.y1 > 0.6
        assert found.middle < 0.47


@pytest.mark.parametrize("side", [(0.0, 0.6, 0.5, 1.0), (0.3, 0.62, 1.0, 1.0), (0.2, 0.75, 0.8, 1.0)])
def test_what_the_border_cuts_off_does_not_forbid_a_place_in_front(side: tuple) -> None:
    found = place("Put the suitcase in front of the chair", {"chair": CHAIR, "bed": side}, hall())
    assert found.y1 > 0.75
    assert found.x0 < 0.55
    assert found.x1 > 0.4


@pytest.mark.parametrize("name", ["floor", "ground", "grass", "street"])
@pytest.mark.parametrize("anchors", [None, {"chair": {"box": list(CHAIR)}}])
def test_the_ground_needs_no_box(name: str, anchors: dict | None) -> None:
    options = SimpleNamespace(locator_name=GEOMETRIC, detector=None, candidates=3)
    depth_01, text = hall(), f"Put the dog on the {name}"
    rgb_u8 = np.zeros((H, W, 3), np.uint8)
    request, places, found = propose(options, text, rgb_u8, depth_01, anchors, Item(1.0), None)
    assert request is not None
    assert name in places
    assert found
    for each in found:
        assert each.location.y1 > 0.6
        assert each.location.d == pytest.approx(float(depth_01[int(each.location.y1 * H) - 1, 0]), abs=0.1)
    given = {name: {"box": [0.5, 0.7, 1, 1], "depth": 0.5}}  # what the user says stays
    (best, *_) = propose(options, text, rgb_u8, depth_01, given, Item(1.0), None)[2]
    assert best.location.middle > 0.5


A_BED = Place((0.1, 0.4, 0.9, 0.95), 0.5, 0.3, 0.8)


@pytest.mark.parametrize(
    ("box", "d", "on"),
    [
        ((0.4, 0.5, 0.5, 0.65), 0.5, True),  # within its box, as a bed is seen from above
        ((0.4, 0.3, 0.5, 0.6), 0.5, True),  # sticks out
        ((0.4, 0.8, 0.5, 0.93), 0.5, False),  # before it
        ((0.4, 0.42, 0.5, 0.7), 0.5, False),  # more than half as high
        ((0.4, 0.5, 0.5, 0.65), 0.99, False),  # far before it
        ((0.05, 0.5, 0.2, 0.65), 0.5, False),  # over its side
    ],
)
def test_on_a_surface_seen_from_above(box: tuple, d: float, on: bool) -> None:
    thing = Place.of(box, d)
    assert holds("on", thing, A_BED) is on
    assert not holds("on", A_BED, thing)
    one, bed = (Places(np.array([each.box01_xyxy]).T, *(np.array([v]) for v in (each.d, each.far, each.near)))
                for each in (thing, A_BED))  # fmt: skip
    assert bool(relation_margins(one, bed, surfaces=True)["on"][0, 0] > 0) is on
    plain = relation_margins(one, bed)["on"][0, 0] > 0
    assert bool(plain) is (box[1] < 0.4 and on)  # the questions about rendered rooms do not change


@pytest.mark.parametrize(
    ("name", "same"),
    [("bus", 4.5), ("buses", None), ("blue bus", 4.5), ("wine glass", 0.1), ("glasses", None),
     ("toy truck", 0.25), ("toy robot", 0.25), ("small plant", 0.36), ("big dogs", 0.77),
     ("rubber duck", 0.1), ("trash can", 0.7),
     ("man in the brown jacket", 0.95), ("dog with a small toy", 0.55), ("girl holding a ball", 0.6),
     ("dog playing with a ball", 0.55), ("small cat facing the window", 0.21), ("watering can", 0.35),
     ("chair next to the bed", 0.65), ("cup of tea", 0.1), ("pair of shoes", 0.2), ("pile of rubble", None)],
)  # fmt: skip
def test_sizes_of_names(name: str, same: float | None) -> None:
    assert usual_size(name) == (same if same is None else pytest.approx(same))


@pytest.mark.parametrize(
    ("name", "level"),
    [("football field", True), ("rugs", True), ("patch of grass", True), ("stage of the theatre", True),
     ("man in the field", False), ("player on the grass", False), ("lamp near the rug", False),
     ("boy sitting on the floor", False)],
)  # fmt: skip
def test_a_person_in_a_field_is_no_ground(name: str, level: bool) -> None:
    assert is_level(name, Place.of((0.4, 0.4, 0.5, 0.8), 0.5)) is level


def test_answers_are_judged_by_region_and_plain_meaning() -> None:
    places = {"chair": Place.of(CHAIR, 0.5)}
    asked = {"region": [[0, 0.6], [0.4, 0.6], [0.4, 1], [0, 1]], "at": [["left of", "chair"]], "height": 0.2}
    right, high, wrong = ((0.1, 0.5, 0.2, 0.7), (0.1, 0.1, 0.2, 0.3), (0.6, 0.5, 0.7, 0.7))
    verdicts = [judge(asked, Place.of(box, 0.5), places) for box in (right, high, wrong)]
    assert [verdict["region"] for verdict in verdicts] == [True, False, False]
    assert [verdict["relations"] for verdict in verdicts] == [True, True, False]
    assert all(verdict["size"] for verdict in verdicts)
    near, far = (Place.of(right, d) for d in (0.9, 0.1))
    assert agrees("in front of", near, [places["chair"]])
    assert agrees("behind", far, [places["chair"]])
    assert not agrees("behind", near, [places["chair"]])


def given_depth(test_data: Path, names: set[str]) -> list[dict]:
    asked = yaml.safe_load(SENTENCES.read_text(encoding="utf-8"))
    answers = []
    for name, photograph in asked["photographs"].items():
        if name in names and "depth" in photograph:
            depth_01 = read_depth(test_data / "data" / photograph["depth"])
            boxes = {anchor: {"box": box} for anchor, box in photograph["anchors"].items()}
            places = read_anchors(boxes, depth_01)
            sentences = [each for part in PARTS for each in asked[part]]
            answers += [answer(each, places, depth_01) for each in sentences if each["photograph"] == name]
    return answers


@pytest.mark.parametrize(("name", "least"), [("stage", 8), ("garage", 10), ("bedroom", 9), ("desk", 6)])
def test_photographs_with_given_depth_are_answered(test_data: Path, name: str, least: int) -> None:
    answers = given_depth(test_data, {name})
    assert not [each["error"] for each in answers if "error" in each]
    assert sum(each["region"] and each["relations"] for each in answers) >= least


@pytest.mark.parametrize("others", [("left bed", "chair", "nightstand"), ("chair", "nightstand"), ()])
def test_behind_the_bed_is_behind_it_whatever_else_is_known(test_data: Path, others: tuple) -> None:
    """A steep plane through one foot is a step in depth, from the floor to the bed."""
    photograph = yaml.safe_load(SENTENCES.read_text(encoding="utf-8"))["photographs"]["bedroom"]
    depth_01 = read_depth(test_data / "data" / photograph["depth"])
    anchors = {name: photograph["anchors"][name] for name in ("right bed", *others)}
    found = place("Place the backpack behind the right bed", anchors, depth_01, 0.8)
    assert found.d < 0.5  # the tubes of the bed are at 0.5 and nearer
