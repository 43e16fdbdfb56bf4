"""Worlds of rendered scenes: places that are sampled are valid, and what the rules call wrong is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from unittest.mock import MagicMock

import numpy as np
import pytest

from datasets.relations import ALL_RELATIONS, Place, Places, between_margins, holds, relation_margins
from datasets.scenes.batch import SceneBatch, render
from datasets.scenes.describe import Part, Scene, Solid, extent
from datasets.scenes.layout import sample_scene
from datasets.scenes.settings import SceneOptions
from llava_bifrost.evaluate.measures import LocatorCase, measure_answer, published
from llava_bifrost.evaluate.run import CEILING, DISTRACTOR_BLIND, place_rows
from llava_bifrost.language.instruction import PHRASES, Request
from llava_bifrost.settings import LocatorEvaluation
from llava_bifrost.worlds.questions import (
    place_questions,
    replace_questions,
    standing_places,
    with_safest_answers,
)
from llava_bifrost.worlds.world import SHAPE_NAMES, TYPICAL, World

OPTIONS = SceneOptions(size=(48, 48), reference_size=(16, 16), smooth_edges=False)
SEEDS = range(10)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(seed, OPTIONS) for seed in SEEDS]


@pytest.fixture(scope="module")
def batch(scenes: list[Scene]) -> SceneBatch:
    return render(scenes, OPTIONS)


@pytest.fixture(scope="module")
def worlds(scenes: list[Scene], batch: SceneBatch) -> list[World]:
    whole = [World.of(scene, fact) for scene, fact in zip(scenes, batch.facts, strict=True)]
    return [world.without(world.removed) if i % 2 else world for i, world in enumerate(whole)]


def case_of(world: World, request: Request, truth: Place) -> LocatorCase:
    names = world.solids.names
    anchors = {names[i]: world.place(i) for i in world.anchors}
    return LocatorCase("case", np.zeros((8, 8, 3), np.uint8), request, truth, anchors, world)


def test_every_sampled_answer_is_valid_and_differs_from_what_is_there(worlds: list[World]) -> None:
    asked = 0
    for i, world in enumerate(worlds):
        for question in place_questions(world, np.random.default_rng(i), 6):
            measures = measure_answer(case_of(world, question.request, question.answer), question.answer)
            assert measures["valid"] == 1, (world.seed, question, measures)
            assert question.request.target not in world.solids.names
            named = [world.solids.names[n] for n in question.named]
            assert named == [name for _, name in question.request.relations]
            asked += 1
    assert asked >= 40


def test_safest_answers_are_valid_and_stay_valid_when_they_are_off(worlds: list[World]) -> None:
    shifts = np.random.default_rng(0).normal(0, 0.03, (12, 2))
    kept = Counter[str]()
    for i, world in enumerate(worlds):
        drawn = place_questions(world, np.random.default_rng(i), 6)
        safest = with_safest_answers(world, drawn, np.random.default_rng(i), 320)
        assert [question.request for question in safest] == [question.request for question in drawn]
        for name, questions in {"drawn": drawn, "safest": safest}.items():
            for question in questions:
                case, (x0, y0, x1, y1) = (
                    case_of(world, question.request, question.answer),
                    question.answer.box01_xyxy,
                )
                assert measure_answer(case, question.answer)["valid"] == 1
                for x, d in shifts.tolist():
                    box = tuple(np.clip((x0 + x, y0, x1 + x, y1), 0, 1))
                    where = Place.of(box, float(np.clip(question.answer.d + d, 0, 1)))
                    kept[name] += measure_answer(case, where)["free"]
    assert kept["safest"] > 1.02 * kept["drawn"], kept


def test_every_shape_is_asked_for_about_equally_often(worlds: list[World]) -> None:
    asked = Counter(
        question.request.target.split()[-1]
        for i, world in enumerate(worlds) for seed in range(6)
        for question in place_questions(world, np.random.default_rng((i, seed)), 8)
    )  # fmt: skip
    shares = [asked[shape] / asked.total() for shape in SHAPE_NAMES]
    assert 0.4 / len(SHAPE_NAMES) < min(shares), asked
    assert max(shares) < 2 / len(SHAPE_NAMES), asked


def test_all_relations_are_asked(worlds: list[World]) -> None:
    asked = set()
    for i, world in enumerate(worlds):
        for seed in range(6):
            questions = place_questions(world, np.random.default_rng((i, seed)), 8)
            asked |= {PHRASES[phrase] for q in questions for phrase, _ in q.request.relations}
    assert asked == set(PHRASES.values())


def test_answers_follow_from_the_seed(worlds: list[World]) -> None:
    first, again = (place_questions(worlds[0], np.random.default_rng(5), 4) for _ in range(2))
    assert first == again
    assert first != place_questions(worlds[0], np.random.default_rng(6), 4)


def test_replacing_asks_for_what_is_seen_and_still_there(worlds: list[World]) -> None:
    for i, world in enumerate(worlds):
        questions = replace_questions(world, np.random.default_rng(i), 9)
        assert len(questions) == sum(world.solids.movable[j] for j in world.anchors)
        for question in questions:
            (solid,) = question.named
            assert world.present[solid]
            assert question.answer.box01_xyxy == pytest.approx(world.solids.box[solid], abs=0.011)
            case = case_of(world, question.request, question.answer)
            assert measure_answer(case, question.answer)["iou"] == 1


def test_relation_margins_agree_with_the_rules_for_single_pairs() -> None:
    rng = np.random.default_rng(0)

    def some(count: int) -> tuple[list[Place], Places]:
        corner = rng.uniform(0, 0.7, (count, 2))
        box = np.concatenate([corner, corner + rng.uniform(0.05, 0.3, (count, 2))], 1)
        d = rng.uniform(0.1, 0.9, count)
        far, near = d - rng.uniform(0, 0.1, count), d + rng.uniform(0, 0.1, count)
        rows = zip(box, d, far, near, strict=True)
        return [Place(tuple(b), *map(float, v)) for b, *v in rows], Places(box.T, d, far, near)

    (things, a), (anchors, b) = some(120), some(8)
    margins = relation_margins(a, b)
    for name in ALL_RELATIONS[:-1]:
        truth = np.array([[holds(name, thing, anchor) for anchor in anchors] for thing in things])
        assert ((margins[name] > 0) == truth).all(), name
        assert truth.any(), name
    between = between_margins(margins, a, b) > 0
    for i, j in ((0, 1), (2, 5), (6, 3)):
        assert between[:, i, j].tolist() == [holds("between", t, anchors[i], anchors[j]) for t in things]


def test_a_standing_solid_is_where_the_renderer_draws_it(scenes: list[Scene], worlds: list[World]) -> None:
    """Put the solid of a proposal into the scene, render it, and compare box and depth."""
    options = replace(OPTIONS, size=(96, 96))
    off_box, off_depth = [], []
    for scene, world in list(zip(scenes, worlds, strict=True))[::2][:4]:
        things = standing_places(world, np.random.default_rng(1), 200)
        for k in range(min(3, len(things.d))):
            part = TYPICAL[things.shape[k]]
            size = world.surfaces.size[things.surface[k]]
            right, away = scene.camera.axes[0], np.cross([0, 0, 1.0], scene.camera.axes[0])
            turn = np.stack([right, away, [0, 0, 1.0]])
            middle = np.array([*things.xy[k], things.bottom[k] + size * _down(part)])
            solid = Part(part.kind, middle, part.axes @ turn, part.scale * size, part.param)
            shape, finish = SHAPE_NAMES[things.shape[k]], scene.solids[-1].finish
            added = Solid(shape, "new", (solid,), finish, 0.3, middle, 0, 1)
            fact = render([replace(scene, solids=(*scene.solids, added))], options).facts[0]
            off_box.append(np.abs(np.array(fact.boxes01[-1]) - things.box[k]).max())
            off_depth.append(abs(fact.depths[-1][0] - things.d[k]))
    assert np.max(off_box) < 0.025, off_box
    assert np.mean(off_depth) < 0.012, off_depth


def _down(part: Part) -> float:
    return extent(part)[1]


def broken(case: LocatorCase, rule: str) -> bool:
    """Some change of the right answer breaks this rule."""
    x0, y0, x1, y1 = case.ground_truth.box01_xyxy
    h, w = (y1 - y0) / 2, (x1 - x0) / 2
    changes = {
        "ground": [(x0, max(y0 - 0.1, 0), x1, y1 - 0.1)],
        "size": [(x0 + w / 2, y0 + h, x1 - w / 2, y1)],
        "free": [(i * 0.05, y0, i * 0.05 + 2 * w, y1) for i in range(int((1 - 2 * w) * 20))],
    }
    moved = [case.ground_truth.moved(box) for box in changes[rule]]
    if rule == "free":
        moved = [Place.of(where.box01_xyxy, d / 10) for where in moved for d in range(1, 10)]
    return any(measure_answer(case, one)[rule] == 0 for one in moved)


@pytest.mark.parametrize("rule", ["ground", "size", "free"])
def test_wrong_places_are_called_wrong(worlds: list[World], rule: str) -> None:
    found = [
        broken(case_of(world, question.request, question.answer), rule)
        for i, world in enumerate(worlds[:5])
        for question in place_questions(world, np.random.default_rng(i), 2)
    ]
    assert np.mean(found) > 0.9, found


def test_answers_without_a_model(worlds: list[World]) -> None:
    cases = [
        case_of(world, question.request, question.answer)
        for i, world in enumerate(worlds)
        for question in place_questions(world, np.random.default_rng(i), 3)
    ]
    rows = place_rows(MagicMock(), cases, LocatorEvaluation(candidates=0))
    right, careless = rows[CEILING], rows[DISTRACTOR_BLIND]
    assert len(right) > 15
    assert all(row["valid"] for row in right)
    assert all(row["relations"] for row in careless)
    assert np.mean([row["free"] for row in careless]) < 1  # third objects are in the way


def test_an_unreadable_answer_counts_as_wrong(worlds: list[World]) -> None:
    question = place_questions(worlds[0], np.random.default_rng(0), 1)[0]
    case = case_of(worlds[0], question.request, question.answer)
    measures = measure_answer(case, None)
    assert (measures["valid"], measures["iou"], measures["depth_error"], measures["parsed"]) == (0, 0, 1, 0)
    assert set(measures) == set(measure_answer(case, case.ground_truth))


def test_the_published_numbers_reward_boxes_that_do_not_meet() -> None:
    corner, other = Place.of((0, 0, 0.3, 0.3), 0.5), Place.of((0.2, 0.2, 0.5, 0.5), 0.7)
    assert published(corner, other)["published_iou"] == 1  # true IoU 0.06
    assert published(corner, corner)["published_box_mse"] == 0
    assert published(corner, other)["published_depth_mse"] == pytest.approx(0.04)


def test_only_the_full_view_makes_a_world() -> None:
    options = replace(OPTIONS, window="object")
    scene = sample_scene(0, options)
    with pytest.raises(ValueError, match="full view"):
        World.of(scene, render([scene], options).facts[0])
