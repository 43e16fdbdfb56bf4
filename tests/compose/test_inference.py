"""The contract of a composite: nothing drifts, the file says how it was made and can be made again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from compose import painters
from datasets.fusion import MARGIN
from ldm.images import encode_png, read_image, write_png
from ldm.result import read_recipe
from ldm.settings.cli import run_app
from run_inference import build_app
from tests.images import Case, room, room_depth


def test_what_stands_before_the_shadow_keeps_every_byte(case: Case) -> None:
    assert case.run("--box", "0.1,0.2,0.6,0.9") == 0
    changed = (case.unchanged_outside(room()) != room()).any(axis=2)
    assert case.report()["shadow"]["pixels"] > 0
    assert not changed[room_depth() == 1].any()  # the post; the floor before the object may be darker


def test_occluders_and_surroundings_keep_every_byte(case: Case) -> None:
    assert case.run("--box", "0.1,0.2,0.6,0.9", "--shadow", "off") == 0
    result_u8, background_u8 = case.unchanged_outside(room()), room()
    changed = (result_u8 != background_u8).any(axis=2)
    nearer = room_depth() > case.report()["depth"]["near"] + MARGIN
    assert nearer[20:86, 13:32].all()  # the post hides the left part of the box
    assert not changed[nearer].any()
    x0, x1, y0, y1 = 0.1 * 128, 0.6 * 128, 0.2 * 96, 0.9 * 96
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    margin = 0.1 * 96
    assert x0 - margin <= columns[0] < columns[-1] <= x1 + margin
    assert y0 - margin <= rows[0] < rows[-1] <= y1 + margin
    assert 0 < case.report()["visible_fraction"] < 0.95


def test_drift_is_measured_on_the_result(case: Case, monkeypatch) -> None:
    real = painters.stitch

    def leaking(*args, **kwargs):
        one = real(*args, **kwargs)
        one.result_u8[0, -3:] ^= 7
        return one

    monkeypatch.setattr(painters, "stitch", leaking)
    assert case.run() == 0
    drift = case.report()["drift"]
    assert (drift["changed_outside"], drift["max_abs_outside"]) == (3, 7)


def test_the_report_and_the_recipe_say_what_was_done(case: Case) -> None:
    assert case.run("--seed", "5", "--steps", "3") == 0
    report, recipe = case.report(), read_recipe(case.out)
    assert report["recipe"] == recipe
    assert report["box"] == [0.3, 0.2, 0.7, 0.9]
    assert report["depth"]["source"] == "centre"
    assert report["depth"]["far"] < 0.6 < report["depth"]["near"]
    assert (report["background_depth"], report["object_mask"], report["mode"]) == ("file", "file", "place")
    assert 0 < report["visible_fraction"] <= 1
    assert set(report["seconds"]) == {"read", "depth", "prepare", "load", "paint", "paste back", "total"}
    assert report["seed"] == recipe["seed"] == 5
    assert (recipe["sampling"]["steps"], recipe["sampling"]["scheduler"]) == (3, "ddim")
    assert set(recipe["inputs"]) == {"background", "object", "object_mask", "background_depth"}
    assert set(recipe["weights"]) == {"model"}
    assert any(name.endswith(".safetensors") for name in recipe["weights"]["model"])


def test_the_same_seed_gives_the_same_file_and_another_seed_does_not(case: Case) -> None:
    other = case.folder / "out" / "b.png"
    assert case.run() == case.run("--out", other) == 0
    assert case.out.read_bytes() == other.read_bytes()
    assert case.run("--seed", "1", "--out", other) == 0
    assert not np.array_equal(read_image(case.out).rgb_u8, read_image(other).rgb_u8)


def test_samples_have_seeds_of_their_own(case: Case) -> None:
    """Sample i of seed s is seed s + i painted alone, up to the rounding of a batch."""
    assert case.run("--seed", "3", "--num-samples", "3") == 0
    assert sorted(path.name for path in case.out.parent.iterdir()) == sorted(
        f"a_{index}.{kind}" for index in range(3) for kind in ("png", "json")
    )
    several = [case.out.with_name(f"a_{index}.png") for index in range(3)]
    assert [case.report(path)["seed"] for path in several] == [3, 4, 5]
    images = [case.unchanged_outside(room(), path).astype(int) for path in several]
    assert np.abs(images[0] - images[1]).max() > 1
    assert case.run("--seed", "4") == 0
    assert np.abs(read_image(case.out).rgb_u8 - images[1]).max() <= 1


@pytest.mark.parametrize("estimated", [False, True])
def test_replay_makes_the_same_file(case: Case, estimated: bool) -> None:
    flags = ["--num-samples", "2", "--seed", "9", "--scheduler", "euler-a", "--detail", "0.2"]
    if estimated:
        without = ["--background-depth", "--depth", "--object-mask"]
        assert case.run(*flags, "--depth-model", case.depth_model, without=without) == 0
    else:
        assert case.run(*flags) == 0
    for index in range(2):
        image = case.out.with_name(f"a_{index}.png")
        again = case.folder / f"again_{index}.png"
        assert run_app(build_app, ["replay", str(image), "--out", str(again)]) == 0
        assert again.read_bytes() == image.read_bytes()
        assert case.report(again)["recipe"] == case.report(image)["recipe"]
    assert run_app(build_app, ["replay", str(again)]) == 0
    assert again.with_name("again_1_replay.png").read_bytes() == again.read_bytes()


def refused_replay(case: Case, image: Path, capsys) -> str:
    before = case.files()
    capsys.readouterr()
    assert run_app(build_app, ["replay", str(image)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert case.files() == before
    return shown.err


def test_replay_refuses_what_has_changed(case: Case, capsys) -> None:
    model = Path(shutil.copytree(case.model, case.folder / "model"))
    depth_model = Path(shutil.copytree(case.depth_model, case.folder / "depth"))
    flags = ["--model", model, "--depth-model", depth_model]
    assert case.run(*flags, without=["--background-depth"]) == 0
    for name, option in (("room.png", "--background"), ("mask.png", "--object-mask")):
        path = case.folder / name
        kept = path.read_bytes()
        write_png(path, np.flip(read_image(path).rgb_u8, 1))
        assert f"{path} ({option}) has changed" in refused_replay(case, case.out, capsys)
        path.write_bytes(kept)
    for folder in (model, depth_model):
        weights = sorted(folder.rglob("*.safetensors"))[0]
        kept = weights.read_bytes()
        weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        message = refused_replay(case, case.out, capsys)
        assert f"{folder} is not what the image was made with: {weights.relative_to(folder)}" in message
        weights.write_bytes(kept)
    card = model / "compositor.json"
    card.write_text(card.read_text().replace('"box_ratio": 1.1', '"box_ratio": 1.3'))
    assert "has changed since: pair.box_ratio" in refused_replay(case, case.out, capsys)
    (case.folder / "mask.png").unlink()
    assert "mask.png" in refused_replay(case, case.out, capsys)


def test_replay_refuses_a_image_without_a_recipe(case: Case, capsys) -> None:
    assert "room.png carries no recipe" in refused_replay(case, case.folder / "room.png", capsys)
    assert "gone.png does not exist" in refused_replay(case, case.folder / "gone.png", capsys)
    assert case.run() == 0
    whole = read_recipe(case.out)
    for recipe, reason in (
        ({**whole, "weights": None}, "its recipe is damaged: weights"),
        ({**whole, "sample": 3}, "its recipe is damaged: sample"),
        ({**whole, "settings": {**whole["settings"], "stepz": 1}}, "recipe: unknown key 'stepz'"),
        ({"command": "other"}, "not written by the image verb"),
        ({"command": "image"}, "its recipe lacks settings"),
    ):
        (case.folder / "b.png").write_bytes(encode_png(room(), text={"bifrost": json.dumps(recipe)}))
        assert reason in refused_replay(case, case.folder / "b.png", capsys)


def test_another_machine_is_a_warning_only(case: Case, caplog) -> None:
    assert case.run() == 0
    recipe = {**read_recipe(case.out), "versions": {"torch": "2.6.0"}}
    old = case.folder / "old.png"
    old.write_bytes(encode_png(read_image(case.out).rgb_u8, text={"bifrost": json.dumps(recipe)}))
    assert run_app(build_app, ["replay", str(old)]) == 0
    assert "versions differ from the recipe's" in caplog.text


def test_offload_gives_the_same_pixels(case: Case) -> None:
    assert case.run("--save-steps", "1") == 0
    image = read_image(case.out).rgb_u8
    assert case.run("--save-steps", "1", "--offload") == 0
    assert np.array_equal(read_image(case.out).rgb_u8, image)


@pytest.mark.parametrize("flags", [("--dtype", "bf16"), ("--guidance", "1"), ("--strength", "0")])
def test_other_ways_to_paint(case: Case, flags: tuple[str, str]) -> None:
    assert case.run(*flags) == 0
    case.unchanged_outside(room())
