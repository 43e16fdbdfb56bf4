"""Inputs that moved or were never files, boxes in pixels, and samples that hardly differ."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compose import ComposeSettings, compose, load_models
from compose.batch import read_jobs
from compose.recipe import settings_of_recipe
from ldm.files import file_sha256
from ldm.images import read_depth, read_image, read_mask, write_png
from ldm.result import read_recipe, warn_if_alike
from ldm.settings.cli import run_app
from ldm.temporary import as_file
from run_inference import build_app
from tests.batches import job, write
from tests.images import Case, forbid_loading, room, room_depth, thing

FILES = {"background": "room.png", "object": "thing.png", "object_mask": "mask.png"}
FILES |= {"background_depth": "depth.png"}


def replay(case: Case, *flags: str | Path) -> int:
    return run_app(build_app, ["replay", str(case.out), *map(str, flags)])


@pytest.mark.parametrize("name", FILES)
def test_a_moved_input_is_named_and_found_under_its_new_name(case: Case, capsys, name: str) -> None:
    assert case.run() == 0
    new = (case.folder / FILES[name]).rename(case.folder / "moved.png")
    flag = "--" + name.replace("_", "-")
    assert replay(case) == 2
    shown = capsys.readouterr().err
    assert f"{FILES[name]} is not there; {flag} FILE names a file with the same contents" in shown
    capsys.readouterr()
    assert replay(case, flag, new, "--json") == 0
    assert json.loads(capsys.readouterr().out)["files"] == [case.out.with_name("a_replay.png").as_posix()]
    again = case.out.with_name("a_replay.png")
    assert np.array_equal(read_image(again).rgb_u8, read_image(case.out).rgb_u8)
    assert read_recipe(again)["settings"][name] == new.as_posix()
    assert run_app(build_app, ["replay", str(again), "--out", str(case.out.with_name("r.png"))]) == 0


def test_another_file_another_model_and_a_use_without_effect_are_refused(case: Case, capsys) -> None:
    assert case.run() == 0
    write_png(case.folder / "other.png", np.flip(room(), 1))
    assert replay(case, "--background", case.folder / "other.png") == 2
    assert "other.png (--background) has changed since the image was made" in capsys.readouterr().err
    assert replay(case, "--target-mask", case.folder / "target.png") == 2
    assert "was made without --target-mask" in capsys.readouterr().err
    model = Path(shutil.copytree(case.model, case.folder / "model"))
    assert replay(case, "--model", model) == 0
    card = json.loads((model / "compositor.json").read_text())
    card["sampling"]["detail"] = 0.123
    (model / "compositor.json").write_text(json.dumps(card))
    assert replay(case, "--model", model) == 2
    assert "has changed since" in capsys.readouterr().err


def in_memory(case: Case, kind: str) -> dict[str, Any]:
    """The inputs of a case as PIL images or as arrays."""
    if kind == "paths":
        return {name: str(case.folder / file) for name, file in FILES.items()}
    if kind == "PIL":
        return {name: Image.open(case.folder / file) for name, file in FILES.items()}
    rgb_u8, mask = thing()
    arrays = {"background": room(), "object": rgb_u8, "object_mask": mask}
    return {**arrays, "background_depth": read_depth(case.folder / "depth.png")}


@pytest.mark.parametrize("kind", ["paths", "PIL", "arrays"])
def test_python_takes_paths_images_and_arrays(case: Case, kind: str, capsys, monkeypatch) -> None:
    assert case.run() == 0
    place: dict[str, Any] = {"box": (0.3, 0.2, 0.7, 0.9), "depth": (0.6,), "model": case.model}
    settings = ComposeSettings(**in_memory(case, kind), **place)
    result = compose(settings, load_models(settings), progress=False)
    expected_u8 = read_image(case.out).rgb_u8
    assert np.array_equal(result.images_u8[0], expected_u8)
    result.save(0, case.folder / "out" / "m.png")
    argv = ["replay", str(case.folder / "out" / "m.png"), "--out", str(case.folder / "out" / "r.png")]
    if kind != "paths":
        stored = read_recipe(case.folder / "out" / "m.png")["settings"]["background"]
        assert re.fullmatch(r"memory:[0-9a-f]{64}\.png", stored)
        assert run_app(build_app, argv) == 2
        assert "an image in memory was used; --background FILE names" in capsys.readouterr().err
        if kind == "PIL":
            for name, file in FILES.items():
                argv += ["--" + name.replace("_", "-"), str(case.folder / file)]
        else:
            Image.fromarray(in_memory(case, kind)["background_depth"]).save(case.folder / "depth.tif")
            Image.fromarray(thing()[1]).save(case.folder / "m.png")
            argv += [
                "--background",
                str(case.folder / "room.png"),
                "--object",
                str(case.folder / "thing.png"),
            ]
            argv += ["--object-mask", str(case.folder / "m.png")]
            argv += ["--background-depth", str(case.folder / "depth.tif")]
    assert run_app(build_app, argv) == 0
    assert np.array_equal(read_image(case.folder / "out" / "r.png").rgb_u8, expected_u8)


@pytest.mark.parametrize(
    ("image", "read", "expected"),
    [
        (room(), lambda path: read_image(path).rgb_u8, room()),
        (Image.fromarray(room()).convert("RGBA"), lambda path: read_image(path).rgb_u8, room()),
        (Image.fromarray(room()).convert("L"), lambda path: read_image(path).size, (96, 128)),
        (thing()[1], read_mask, thing()[1]),
        (room_depth().astype(np.float64), lambda path: read_depth(path).shape, (96, 128)),
        (Image.fromarray(room()).convert("CMYK"), lambda path: read_image(path).size, (96, 128)),
        (np.zeros((5, 6, 4), np.uint8), lambda path: read_image(path).alpha_u8, np.zeros((5, 6))),
    ],
)
def test_images_in_memory_are_what_their_file_would_be(image, read, expected) -> None:
    path = as_file(image, "background")
    assert np.array_equal(read(path), expected)
    assert as_file(image, "background") == path


@pytest.mark.parametrize(
    ("image", "part"),
    [
        (room().astype(np.float32), "got ndarray float32 (96, 128, 3)"),
        (np.zeros((4, 4, 5), np.uint8), "got ndarray uint8 (4, 4, 5)"),
        (np.zeros(4, np.uint8), "got ndarray uint8 (4,)"),
        (np.zeros((4, 4, 3), bool), "got ndarray bool (4, 4, 3)"),
        (b"png", "got bytes"),
        ([1], "got list"),
    ],
)
def test_what_is_no_image_is_refused_by_name(image, part: str) -> None:
    with pytest.raises(ValueError, match=re.escape(part)):
        ComposeSettings(background=image, object=Path("a.png"), box=(0, 0, 1, 1))


@pytest.mark.parametrize("typed", [["38px,19px,90px,86px"], ["38px", "19px", "90px", "86px"]])
def test_a_box_in_pixels_is_the_same_box(case: Case, typed: list[str]) -> None:
    assert case.run("--box", *typed) == 0
    box = [38 / 128, 19 / 96, 90 / 128, 86 / 96]
    assert case.report()["box"] == box
    settings = read_recipe(case.out)["settings"]
    assert (settings["box"], settings["box_px"]) == (box, None)
    assert replay(case) == 0
    assert case.out.with_name("a_replay.png").read_bytes() == case.out.read_bytes()


def test_pixels_are_read_in_jobs_files_and_python_too(case: Case) -> None:
    pixels = ["38px", "19px", "90px", "86px"]
    numbers = [38, 19, 90, 86]
    lines = [{"box": pixels}, {"box": None, "box_px": numbers}, {"box_px": pixels, "box": None}]
    path = write(case, *({**job(case), **line} for line in lines))
    below = case.folder / "below.yaml"
    below.write_text("box: [0, 0, 1, 1]\n")
    for item in read_jobs(path, below, case.folder):
        assert (item.settings.box, item.settings.box_px) == (None, tuple(numbers))
    config = case.folder / "c.yaml"
    config.write_text("box: [38px, 19px, 90px, 86px]\n")
    assert case.run("--config", config, without=["--box"]) == 0
    assert case.report()["box"][0] == 38 / 128
    assert case.run("--config", config, "--box", "0.3,0.2,0.7,0.9") == 0  # the flag is above the file
    assert case.report()["box"] == [0.3, 0.2, 0.7, 0.9]


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        ("38px,19px,129px,86px", "--box 38px,19px,129px,86px must lie in the background, 128 x 96 pixels"),
        ("38px,19px,38px,86px", "0 <= x1 < x2 <= 128"),
        ("38px,19px,0.5,0.9", "--box must be float,float,float,float, got 38px,19px,0.5,0.9"),
        ("38px,19px,90px", "must be float,float,float,float"),
        ("0.3 0.5 0.5 0.2", "it is inverted"),
    ],
)
def test_a_wrong_box_in_pixels_is_named(case: Case, capsys, monkeypatch, typed: str, part: str) -> None:
    forbid_loading(monkeypatch)
    assert case.run("--box", *typed.split()) == 2
    assert part in capsys.readouterr().err


def test_a_sentence_and_a_box_in_pixels_exclude_each_other(case: Case, capsys) -> None:
    assert case.run("--box", "1px,1px,9px,9px", "--instruction", "Place the cup left of the bed") == 2
    assert "--instruction and --box-px both say where to paint" in capsys.readouterr().err
    with pytest.raises(ValueError, match="give one of them"):
        ComposeSettings(background=room(), object=room(), box=(0, 0, 1, 1), box_px=(0, 0, 9, 9))


@pytest.mark.parametrize(("change", "said"), [(0, True), (1, True), (3, False)])
def test_samples_that_hardly_differ_are_said(caplog, change: int, said: bool) -> None:
    first, mask = np.full((8, 8, 3), 100, np.uint8), np.ones((8, 8), bool)
    warn_if_alike([first, first + np.uint8(change)], mask, 1)
    assert ("the samples hardly differ, by" in caplog.text) == said
    assert ("--steps 4" in caplog.text) == said


def test_one_sample_has_nothing_to_differ_from(caplog) -> None:
    warn_if_alike([room()], np.ones((96, 128), bool), 1)
    assert caplog.text == ""


def test_the_recipe_holds_what_cut_the_object_out(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    models = case.folder / "models"
    (models / "u2netp").mkdir(parents=True)
    network = models / "u2netp" / "u2netp.onnx"
    network.write_bytes(b"weights")
    monkeypatch.setenv("BIFROST_MODELS", str(models))
    mask = read_mask(case.folder / "mask.png")
    monkeypatch.setattr("ldm.experts.segment.u2netp_mask", lambda rgb_u8, path: mask)
    assert case.run(without=["--object-mask"]) == 0
    recipe = read_recipe(case.out)
    assert recipe["settings"]["cutout"] == "u2netp"
    assert recipe["weights"]["cutout"] == {"u2netp.onnx": file_sha256(network)}
    assert replay(case, "--out", case.out.with_name("again.png")) == 0
    network.write_bytes(b"other weights")
    assert replay(case) == 2
    assert "u2netp is not what the image was made with: u2netp.onnx differs" in capsys.readouterr().err
    network.unlink()
    assert replay(case) == 2
    assert "ldm.registry pull u2netp" in capsys.readouterr().err


def test_a_recipe_of_the_first_version_is_cut_out_as_it_was(root: Path) -> None:
    settings, recipe = settings_of_recipe(root / "tests" / "fixtures" / "before" / "case" / "place.png")
    assert "cutout" not in recipe["settings"]
    assert settings.cutout == "grabcut"
