"""Best of several samples: what the scores say on known images, which samples stay, what is written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compose import ComposeSettings, compose, compose_layers, load_models
from ldm.decode import LoadedImage
from ldm.images import read_image
from tests.images import Case, refusal


@pytest.fixture
def settings(room) -> ComposeSettings:
    layer = {key: value for key, value in room.capsule().items() if key not in ("name", "box", "depth")}
    place = {"box": tuple(room.capsule()["box"]), "depth": tuple(room.capsule()["depth"])}
    files = {
        "background": Path(room.file("without.png")),
        "background_depth": Path(room.file("without_depth.png")),
    }
    layer["object"] = Path(layer["object"])
    return ComposeSettings(**files, **layer, **place, model=room.model, num_samples=4, seed=5)


class ExactDepth:
    """Says what is known of a few images."""

    def __init__(self, known: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.known = known

    def estimate(self, image: LoadedImage) -> np.ndarray:
        return next(depth for known_u8, depth in self.known if np.array_equal(known_u8, image.rgb_u8))


class Networks:
    def __init__(self, depth: Any) -> None:
        self.depth = depth


def test_geometry_prefers_the_sample_that_shows_the_object_at_its_depth(room, settings):
    result = compose(settings, load_models(settings), progress=False)
    right, wrong = room.with_u8, room.without_u8
    known = [(right, 0.5 * room.depth_01 + 0.1), (wrong, 0.5 * room.without_depth_01 + 0.1)]
    two = replace(result, images=[LoadedImage(wrong), LoadedImage(right)], seeds=[5, 6])
    bad, good = two.geometry_scores(Networks(ExactDepth(known)))
    assert good["depth_error"] < 0.05 < bad["depth_error"]
    assert good["score"] > bad["score"]
    assert bad["seam"] == 0
    pair = replace(two, painted_u8=result.painted_u8[:2])
    kept = pair.best(replace(settings, best=1), Networks(ExactDepth(known)))
    assert kept.seeds == [6]
    assert np.array_equal(kept.images_u8[0], right)
    assert [score["seed"] for score in kept.report["ranking"]["samples"]] == [5, 6]
    assert len(kept.report["drift"]) == len(kept.painted_u8) == 1


def test_geometry_sees_a_colour_shift_at_the_edge_and_a_wrong_order(room, settings):
    x0, y0, x1, y1 = room.places["dotted black torus"].box01_xyxy
    behind = replace(settings, depth=(0.3, 0.5), box=(x0, y0 - 0.15, x1, y1 - 0.15))
    result = compose(behind, load_models(behind), progress=False)
    fused, shifted = result.fused_depth_01, room.without_u8.copy()
    shifted[result.edit_mask] = np.clip(shifted[result.edit_mask].astype(int) + 40, 0, 255)
    flipped = np.where(result.geometry.window.embed(result.geometry.native_layers.visible), 1.0, fused)
    images = [room.without_u8, shifted, room.with_u8]
    two = replace(result, images=[LoadedImage(image) for image in images])
    known = list(zip(images, [fused, fused, flipped], strict=True))
    plain, shift, order = two.geometry_scores(Networks(ExactDepth(known)))
    assert plain["seam"] == 0
    assert 30 < shift["seam"] <= 40
    assert (plain["order"], order["order"]) == (True, False)
    assert plain["score"] > shift["score"] > order["score"]


def test_identity_prefers_the_sample_that_shows_the_object(room, settings, monkeypatch):
    class Mean:
        def images(self, images_u8):
            rows = np.stack([image.reshape(-1, 3).mean(0) - 200 for image in images_u8])
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    monkeypatch.setattr("compose.pipeline.similarity_network", lambda models: Mean())
    result = compose(settings, load_models(settings), progress=False)
    blue = room.with_u8[..., ::-1].copy()
    two = replace(result, images=[LoadedImage(blue), LoadedImage(room.with_u8)])
    bad, good = two.identity_scores(None)
    assert good["similarity"] == good["score"] > bad["score"]


def test_the_best_are_those_of_their_seeds_and_all_scores_are_told(settings):
    models = load_models(settings)
    every = compose(settings, models, progress=False)
    for count in (1, 3):
        best = compose(replace(settings, best=count), models, progress=False)
        ranked = sorted(best.report["ranking"]["samples"], key=lambda score: -score["score"])
        assert best.seeds == [score["seed"] for score in ranked[:count]]
        assert len(ranked) == 4
        for seed, image in zip(best.seeds, best.images_u8, strict=True):
            assert np.array_equal(image, every.images_u8[seed - 5])


def test_the_command_writes_the_best_under_the_plain_name_and_replays_it(case: Case):
    assert case.run("--num-samples", "3", "--best", "1", "--depth-model", case.depth_model) == 0
    assert sorted(path.name for path in case.out.parent.iterdir()) == ["a.json", "a.png"]
    report = case.report()
    scores = report["ranking"]["samples"]
    assert report["seed"] == max(scores, key=lambda score: score["score"])["seed"]
    assert report["recipe"]["seed"] == report["seed"]
    from ldm.settings.cli import run_app
    from run_inference import build_app

    again = case.out.with_name("b.png")
    assert run_app(build_app, ["replay", str(case.out), "--out", str(again)]) == 0
    assert again.read_bytes() == case.out.read_bytes()
    assert case.run("--num-samples", "3", "--best", "2", "--depth-model", case.depth_model) == 0
    assert {"a_0.png", "a_1.png"} <= {path.name for path in case.out.parent.iterdir()}


WRONG = {
    "more than samples": (["--best", "2"], "--best 2 needs --num-samples 2 or more, got 1"),
    "none": (["--best", "0", "--num-samples", "2"], "--best must be in [1, 64], got 0"),
    "measure": (["--best", "1", "--rank-by", "beauty"], "unknown --rank-by 'beauty'"),
    "no network": (
        ["--best", "1", "--rank-by", "identity"],
        "--rank-by identity needs an image network: python -m",
    ),
}


@pytest.mark.parametrize("case_", WRONG)
def test_what_cannot_be_ranked_is_refused(case: Case, case_, capsys):
    words, message = WRONG[case_]
    assert message in refusal(case, lambda: case.run(*words), capsys)


def test_a_layer_of_several_samples_is_the_best(room, tmp_path):
    result = compose_layers(room.job(room.capsule(num_samples=3), empty=True))
    samples = result.report["layers"][0]["ranking"]["samples"]
    best = max(samples, key=lambda score: score["score"])["seed"]
    assert result.report["layers"][0]["seed"] == best
    alone = compose_layers(room.job(room.capsule(seed=best), empty=True))
    assert np.array_equal(result.image_u8, alone.image_u8)
    result.save(tmp_path / "a.png")
    assert json.loads((tmp_path / "a.json").read_text())["layers"][0]["ranking"]["by"] == "geometry"
    assert read_image(tmp_path / "a.png").size == (96, 96)
