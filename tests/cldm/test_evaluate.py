"""Measures of a compositor: each one can fail, and the evaluation as a whole orders what it must."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cldm.config import EvaluateSettings
from cldm.evaluate import cases
from cldm.evaluate.cases import (
    Neighbour,
    SceneCase,
    find_cases,
    inference_inputs,
    nearest_candidate,
    neighbours,
    other_objects,
    pixel_order,
    rendered_candidates,
    scene_image,
)
from cldm.evaluate.run import (
    CEILING,
    CUTOUT,
    DEFAULT,
    FLIPPED,
    POOLED,
    TITLES,
    TRUTH,
    Measurer,
    SceneScores,
    evaluate,
    ranked,
    text_tables,
)
from datasets.inputs import Inputs, PairOptions
from datasets.pairs import Pair
from datasets.scenes import sample_scene
from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import read_options, read_shard, render_shards
from datasets.sources.rendered import RenderedScenes, shard_files
from ldm.metrics.numbers import mean_interval, psnr_over, ssim_over

EVERY = np.ones((16, 16), bool)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes, some with a solid beside the placed one."""
    out = tmp_path_factory.mktemp("held_out")
    render_shards(StoreSettings(out=out, count=10, split="eval", size=(64, 64), reference_size=(32, 32),
                                window="object", occluded=1.0))  # fmt: skip
    return out


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8)


def test_likeness_is_measured_over_the_mask_only() -> None:
    one, other = noise(0), noise(1)
    half = EVERY.copy()
    half[:, 8:] = False
    mixed = np.where(half[..., None], one, other)
    assert psnr_over(mixed, one, half) == psnr_over(one, one, half) > 60
    assert psnr_over(mixed, one, ~half) < 12
    assert psnr_over(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8), EVERY[:2, :2]) == 0
    assert ssim_over(one, one, EVERY) == pytest.approx(1)
    assert ssim_over(other, one, EVERY) < 0.3
    inner = np.zeros_like(half)
    inner[:, :2] = True  # farther from the change than the window of the similarity
    assert ssim_over(mixed, one, inner) > ssim_over(mixed, one, ~half) + 0.3


def test_nearest_candidate_looks_inside_the_mask() -> None:
    first, second = noise(0), noise(1)
    top = np.arange(16)[:, None] < 8
    result = np.where(top[..., None], second, first)
    assert nearest_candidate(result, [first, second], top & EVERY) == 1
    assert nearest_candidate(result, [first, second], ~top & EVERY) == 0


def test_pixel_order_of_a_right_a_wrong_and_a_random_map() -> None:
    truth = np.linspace(0, 1, 400).reshape(20, 20)
    rng = np.random.default_rng(0)
    assert pixel_order(truth**2, truth, rng) == 1
    assert pixel_order(1 - truth, truth, rng) == 0
    assert 0.4 < pixel_order(rng.random((20, 20)), truth, rng) < 0.6


def test_summary_holds_the_mean_and_narrows() -> None:
    rng = np.random.default_rng(0)
    few, many = mean_interval(rng.normal(5, 1, 20)), mean_interval(rng.normal(5, 1, 2000))
    for found in (few, many):
        assert found["low"] < 5 < found["high"]
    assert many["high"] - many["low"] < 0.2 * (few["high"] - few["low"])
    assert mean_interval([2.0]) == {"n": 1, "mean": 2.0}
    assert mean_interval([]) == {"n": 0}


def test_a_user_gives_one_depth_in_the_frame_of_the_background(held_out: Path) -> None:
    shown = RenderedScenes(held_out, augment=False).inputs(0)
    whole = replace(shown, background_depth_01=0.25 + 0.5 * shown.background_depth_01, depth_range=(0.4, 0.5))
    low, high = whole.background_depth_01.min(), whole.background_depth_01.max()
    estimated = np.linspace(0, 1, shown.background_depth_01.size, dtype=np.float32)
    given = inference_inputs(whole, estimated.reshape(shown.background_depth_01.shape))
    assert sum(given.depth_range) / 2 == pytest.approx((0.45 - low) / (high - low), abs=1e-3)
    assert given.reference_depth_01 is None
    assert given.background_depth_01.max() == 1


def test_candidates_share_shape_or_colour_and_stand_in_the_same_place(held_out: Path) -> None:
    source, options = RenderedScenes(held_out, augment=False), read_options(shard_files(held_out)[0])
    seed, truth = source.facts(0).seed, source.array("image_u8", 0)
    scene = sample_scene(seed, options)
    right, others = scene.solids[scene.removed], other_objects(scene)
    assert [solid.shape == right.shape for solid in others] == [True] * 3 + [False] * 4
    assert [solid.finish.colour == right.finish.colour for solid in others] == [False] * 3 + [True] * 3 + [
        False
    ]
    for solid in others:
        np.testing.assert_allclose(solid.parts[0].centre[:2], right.centre[:2])
    shown = rendered_candidates(seed, options, truth)
    assert len(shown) == 8
    assert np.abs(scene_image(scene, 0, scene.solids[0], options).astype(int) - truth).mean() < 1
    seen = source.silhouette(0)
    assert nearest_candidate(truth, shown, seen) == 0
    assert nearest_candidate(shown[4], shown, seen) == 4


def test_a_flipped_render_shows_the_wrong_one_in_front(held_out: Path) -> None:
    options = read_options(shard_files(held_out)[0])
    shard, found = read_shard(held_out / "shard-00000.safetensors"), 0
    for row, facts in enumerate(shard.facts):
        beside: list[Neighbour] = neighbours(facts, shard.instances_u8[row], shard.amodal[row])
        for one in beside[:1]:
            truth = shard.image_u8[row]
            wrong = one.flipped_image(facts.seed, options, truth, shard.without_u8[row])
            assert np.array_equal(wrong[~one.overlap], truth[~one.overlap])
            both = one.overlap & (one.placed | one.other)
            assert np.abs(wrong[both].astype(int) - truth[both]).mean() > 3
            swapped = one.flipped()
            assert (swapped.placed | swapped.other).sum() == (one.placed | one.other).sum()
            assert (swapped.placed.sum() < one.placed.sum()) == one.placed_is_nearer
            found += 1
    assert found >= 2


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ([], "- n = 0"),
        ([0.5], "0.500"),
        ([0.5, 0.5], "0.500     [0.500, 0.500]"),
        ([1, 0], "0.500     [0.000, 1.000]"),
    ],
)
def test_the_table_shows_what_few_values_allow(values: list[float], cell: str) -> None:
    tables = {title: {"row": mean_interval(values)} if title in POOLED else {} for title in TITLES}
    lines = text_tables({**tables, "changed_outside": 0}).splitlines()
    assert {line.removeprefix("row").strip() for line in lines if line.startswith("row")} == {cell}


def test_ranking_by_gain() -> None:
    rows = [SceneScores(psnr={CUTOUT: 10.0, DEFAULT: 10.0 + gain}) for gain in (1, -2, 5, 0, 3)]
    assert ranked(rows, 2) == {"best": [2, 4], "median": [4, 0], "worst": [3, 1]}


def test_evaluation_orders_the_baselines(
    held_out: Path, small_compositor: Path, small_depth_network: Path, tmp_path: Path
) -> None:
    settings = EvaluateSettings(
        model=small_compositor, data=held_out, depth_model=small_depth_network, given_depth=True, scenes=4,
        strengths=(0.5,), steps=2, noise_steps=(4,), ablations=2, out=tmp_path / "result.json",
    )  # fmt: skip
    evaluate(settings)
    result = json.loads((tmp_path / "result.json").read_text())
    table = {name: groups["all"]["mean"] for name, groups in result["psnr_visible_db"].items()}
    assert result["changed_outside"] == 0
    assert table[CUTOUT] > table["background left alone"]
    assert table["noise, 4 steps, guidance 1, detail 1"] > table["noise, 4 steps, guidance 1, detail 0"]
    assert result["wins_against_cutout"][CUTOUT]["all"]["mean"] == 0
    assert result["identity_1_of_8"][CUTOUT]["all"]["mean"] > 0.5
    assert result["occlusion_order"][TRUTH]["mean"] == 1
    assert result["occlusion_order"][FLIPPED]["mean"] == 0
    assert set(result["depth_order"]) >= {TRUTH, FLIPPED, CEILING, DEFAULT}
    parts = result["ablations_psnr_db"]
    assert {"everything", "no depth branch", "no detail branch", "no identity tokens"} < parts.keys()
    assert len({groups["all"]["mean"] for groups in parts.values()}) > 3
    assert 0 <= result["depth_network"]["order"]["mean"] <= 1
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"result.txt", "result_best.png", "result_median.png", "result_worst.png"}
    assert CUTOUT in (tmp_path / "result.txt").read_text()


HIDDEN = "nothing to paint: at this box and depth nearer things hide the object completely"


class FlatDepth:
    """Estimates the same depth everywhere."""

    def estimate(self, image_u8: np.ndarray) -> np.ndarray:
        return np.full(image_u8.shape[:2], 0.5, np.float32)


@pytest.mark.parametrize("hidden", [[0], [3], [0, 1, 2], list(range(10))])
def test_a_scene_with_a_hidden_object_fails_alone(
    held_out: Path, monkeypatch: pytest.MonkeyPatch, hidden: list[int]
) -> None:
    source, made = RenderedScenes(held_out, augment=False), cases.build_pair
    seeds, tried = [source.facts(index).seed for index in range(len(source))], itertools.count()

    def build(inputs: Inputs, options: PairOptions) -> Pair:
        if next(tried) in hidden:
            raise ValueError(HIDDEN)
        return made(inputs, options)

    before, small = find_cases(source, PairOptions(), 10, FlatDepth(), True)  # type: ignore[arg-type]
    monkeypatch.setattr(cases, "build_pair", build)
    after, failed = find_cases(source, PairOptions(), 10, FlatDepth(), True)  # type: ignore[arg-type]
    gone = {seeds[index] for index in hidden}
    assert {seed for seed, reason in failed.items() if reason == HIDDEN} == gone
    assert [case.seed for case in after] == [case.seed for case in before if case.seed not in gone]
    assert failed.keys() == gone | small.keys()


def test_an_object_of_few_pixels_fails_with_their_number(
    held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = RenderedScenes(held_out, augment=False)
    monkeypatch.setattr(cases, "MIN_PIXELS", 64 * 64 + 1)
    found, failed = find_cases(source, PairOptions(), 10, FlatDepth(), True)  # type: ignore[arg-type]
    assert found == []
    assert len(failed) == 10
    assert all(
        reason.endswith(" pixels of the object are visible, fewer than 4097") for reason in failed.values()
    )


@pytest.mark.parametrize("ends", ["measure", "ablate"])
def test_the_report_names_failed_scenes_and_measures_the_others(
    held_out: Path, small_compositor: Path, small_depth_network: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, ends: str,
) -> None:  # fmt: skip
    def settings(name: str) -> EvaluateSettings:
        return EvaluateSettings(
            model=small_compositor, data=held_out, depth_model=small_depth_network, given_depth=True,
            scenes=3, strengths=(), steps=1, noise_steps=(1,), details=(0.0,), guidance=(1.0,), ablations=3,
            identity=False, out=tmp_path / name,
        )  # fmt: skip

    made = getattr(Measurer, ends)

    def fail(self: Measurer, case: SceneCase, seed: int) -> Any:
        if seed in broken:
            raise ValueError(f"scene {case.seed}: no candidate found for a cone")
        return made(self, case, seed)

    broken = {1}
    monkeypatch.setattr(Measurer, ends, fail)
    evaluate(settings("some.json"))
    result = json.loads((tmp_path / "some.json").read_text())
    ((scene, reason),) = ((s, r) for s, r in result["failed"].items() if r.endswith("a cone"))
    assert reason == f"scene {scene}: no candidate found for a cone"
    assert result["scenes"] == 2
    assert result["psnr_visible_db"][CUTOUT]["all"]["n"] == 2
    assert result["ablations_psnr_db"]["everything"]["all"]["n"] == 2
    broken = {0, 1}
    with pytest.raises(ValueError, match="only 1 scenes can be measured; failed: .*no candidate found"):
        evaluate(settings("none.json"))
    assert not (tmp_path / "none.json").exists()
