"""Sheets of composites: from a list of cases, from finished images, and over the real cases."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compose import ComposeSettings, compose, load_models
from compose.contact_sheet import build_app
from compose.sheet import TITLES, read_cases, settings_of_case, sheet_rows
from ldm.images import read_image
from ldm.settings.cli import run_app
from tests.images import Case, room


def entry(**changes: object) -> dict:
    """One case of a list, with paths as the synthetic images have them."""
    plain = {
        "id": "first", "mode": "place", "background": "room.png", "background_depth": "depth.png",
        "object": "thing.png", "object_mask": "mask.png", "box_xyxy": [0.3, 0.2, 0.7, 0.9],
        "depth_range": [0.5, 0.7], "target_mask": "target.png",
    }  # fmt: skip
    return {**plain, **changes}


def write_list(case: Case, *entries: dict) -> Path:
    path = case.folder / "cases.json"
    path.write_text(json.dumps({"cases": entries}))
    return path


def run(case: Case, *argv: object) -> int:
    return run_app(build_app, ["--out", str(case.folder / "sheet.png"), *(str(value) for value in argv)])


def test_a_list_of_cases_gives_a_row_each(case: Case) -> None:
    bare = {"background_depth": None, "object_mask": None, "depth_range": None}
    cases = write_list(case, entry(), entry(id="second", mode="draw", **bare))
    flags = ["--root", case.folder, "--model", case.model, "--depth-model", case.depth_model]
    assert run(case, "--cases", cases, *flags) == 0
    two = read_image(case.folder / "sheet.png").size
    assert run(case, "--cases", write_list(case, entry()), *flags) == 0
    one = read_image(case.folder / "sheet.png").size
    assert two[0] > 1.7 * one[0]
    assert one[1] > 256 * len(TITLES)


def test_finished_images_are_drawn_from_their_recipes(case: Case, caplog) -> None:
    caplog.set_level("INFO")
    assert case.run("--num-samples", "2") == 0
    images = [case.out.with_name(f"a_{index}.png") for index in range(2)]
    assert run(case, *images) == 0
    assert read_image(case.folder / "sheet.png").size[0] > 4 * 256  # two images of two samples
    assert "a_1: " in caplog.text


def test_the_row_shows_what_was_computed(case: Case) -> None:
    settings = settings_of_case(entry(), case.folder, case.model)
    result = compose(settings, load_models(settings), progress=False)
    (row,), _ = sheet_rows(result)
    assert len(row) == len(TITLES)
    boxed, cut, depth, fused, region, painted, final = row
    assert np.array_equal(final, result.images_u8[0])
    assert np.array_equal(painted, result.painted_u8[0])
    assert boxed.shape == room().shape
    assert depth.shape == fused.shape == room().shape[:2]
    assert (boxed != room()).any(axis=2).sum() < 300  # a thin frame
    assert (cut[0, 0] == 255).all()
    raised = fused.astype(int) - depth
    assert (raised > 0).any()
    assert not raised[:, :38].any()  # left of the box nothing is raised
    assert set(np.unique(region)) == {0, 110, 255}


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ({"cases": [{"id": "x", "mode": "place"}]}, "case x lacks background, box_xyxy, object"),
        ({"cases": [entry(mode="plaec")]}, "unknown mode 'plaec'; did you mean 'place'?"),
        ({"cases": [entry(object="gone.png")]}, "first: "),
        ({"cases": [entry(box_xyxy=[0, 0, 2, 1])]}, "leaves the image"),
        ({"cases": []}, "cases.json: the list is empty"),
        ({}, 'expected {"cases": ['),
        ([], 'expected {"cases": ['),
    ],
)
def test_a_bad_list_is_one_line(case: Case, capsys, listed: object, reason: str) -> None:
    path = case.folder / "cases.json"
    path.write_text(json.dumps(listed))
    assert run(case, "--cases", path, "--root", case.folder, "--model", case.model) == 2
    shown = capsys.readouterr().err
    assert reason in shown
    assert shown.count("\n") == 1
    assert not (case.folder / "sheet.png").exists()


def test_what_to_draw_must_be_said_once(case: Case, capsys) -> None:
    assert run(case) == 2
    assert "give either images" in capsys.readouterr().err
    assert run(case, case.folder / "room.png", "--cases", write_list(case, entry())) == 2
    assert run(case, case.folder / "room.png") == 2
    assert "carries no recipe" in capsys.readouterr().err
    (case.folder / "cases.json").write_text("{")
    assert run(case, "--cases", case.folder / "cases.json") == 2
    assert "cases.json" in capsys.readouterr().err


def test_all_real_cases_run_and_none_drifts(
    test_data: Path, small_compositor: Path, small_depth_network: Path
) -> None:
    """With untrained networks: what is checked here does not depend on training."""
    data = test_data / "data"
    cases = read_cases(data / "composite" / "cases.json")
    jobs: list[tuple[str, ComposeSettings]] = [
        (case["id"], settings_of_case(case, data, small_compositor, small_depth_network)) for case in cases
    ]
    # An untrained depth network may hide an object; without a given depth it stands in front of all.
    jobs = [(name, settings if settings.background_depth else nearest(settings)) for name, settings in jobs]
    models = load_models(jobs[0][1])
    assert len(jobs) == 11
    for case, (name, settings) in zip(cases, jobs, strict=True):
        assert load_models(settings, models) is models
        result = compose(settings, models, progress=False)
        (drift,) = result.report["drift"]
        assert drift["changed_outside"] == drift["max_abs_outside"] == 0, name
        assert drift["changed_inside"] > 0, name
        assert 0.2 < result.report["visible_fraction"] <= 1, name
        if case.get("visible_fraction_flat_mid") is not None and case["mode"] == "place":
            # The list's own estimate stretches the object to the box and takes its middle depth.
            assert abs(result.report["visible_fraction"] - case["visible_fraction_flat_mid"]) < 0.35, name


def nearest(settings: ComposeSettings) -> ComposeSettings:
    """The same with the object in front of everything."""
    return replace(settings, depth=(0.9, 1.0))
