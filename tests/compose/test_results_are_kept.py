"""What an earlier run left is kept under a new name when another result takes its own."""

import os
from pathlib import Path

import numpy as np
import pytest

import compose.contact_sheet
import inpainting.paint
import llava_bifrost.predict.__main__
from ldm.files import set_aside
from ldm.images import encode_png
from ldm.result import save_result, write_result
from ldm.settings.cli import run_app
from ldm.settings.resources import check_writable
from run_inference import build_app
from tests.images import Case


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_another_image_keeps_the_one_that_is_there_with_its_sheet_and_report(case: Case) -> None:
    out = case.out.parent
    assert case.run("--sheet") == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert case.run("--sheet", "--box", "0.2,0.2,0.7,0.9") == 0
    assert names(out) == {*first, "a.old1.png", "a.old1.json", "a_sheet.old1.png"}
    for name, data in first.items():
        stem, dot, ending = name.partition(".")
        assert (out / f"{stem}.old1.{ending}").read_bytes() == data
        assert (out / name).read_bytes() != data
    second = case.out.read_bytes()
    assert case.run("--sheet", "--box", "0.4,0.2,0.7,0.9") == 0
    assert (out / "a.old2.png").read_bytes() == second
    assert (out / "a.old1.png").read_bytes() == first["a.png"]


def test_the_same_image_again_needs_no_other_name_and_overwrite_replaces(case: Case) -> None:
    assert case.run("--sheet") == case.run("--sheet") == 0
    assert names(case.out.parent) == {"a.png", "a.json", "a_sheet.png"}
    first = case.out.read_bytes()
    assert case.run("--sheet", "--box", "0.2,0.2,0.7,0.9", "--overwrite") == 0
    assert names(case.out.parent) == {"a.png", "a.json", "a_sheet.png"}
    assert case.out.read_bytes() != first


def test_files_of_others_under_the_names_of_a_result_stay(case: Case) -> None:
    case.out.parent.mkdir()
    case.out.with_suffix(".json").write_text("my notes")
    case.out.with_name("a_sheet.png").write_text("my sheet")
    assert case.run("--sheet") == 0
    assert case.out.with_name("a.old1.json").read_text() == "my notes"
    assert case.out.with_name("a_sheet.old1.png").read_text() == "my sheet"


def test_samples_previews_and_replays_are_kept_too(case: Case) -> None:
    two = ["--num-samples", "2", "--steps", "3", "--strength", "1", "--save-steps", "3"]
    assert case.run(*two) == case.run(*two, "--box", "0.2,0.2,0.7,0.9") == 0
    assert {"a_0.old1.png", "a_1.old1.json", "a_steps.old1/step_003.png"} <= names(case.out.parent)
    replay = case.out.with_name("r.png")
    replay.write_text("another")
    argv = ["replay", str(case.out.with_name("a_0.png")), "--out", str(replay)]
    assert run_app(build_app, argv) == run_app(build_app, argv) == 0
    assert replay.with_name("r.old1.png").read_text() == "another"
    assert not replay.with_name("r.old2.png").exists()


@pytest.mark.parametrize("left", ["whole", "step_001.png", "nothing", "temporary"])
def test_previews_of_the_same_run_are_no_other_result(case: Case, left: str) -> None:
    two = ["--steps", "2", "--strength", "1", "--save-steps", "1"]
    folder = case.out.with_name("a_steps")
    assert case.run(*two) == 0
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(first) == {"step_001.png", "step_002.png"}
    for path in folder.iterdir() if left != "whole" else ():
        if path.name != left:
            path.unlink()
    if left == "temporary":
        (folder / ".step_001.png.tmp").touch()
    assert case.run(*two) == 0
    assert {name for name in names(case.out.parent) if ".old" in name} == set()
    assert {name: (folder / name).read_bytes() for name in first} == first


@pytest.mark.parametrize("flags", [["--seed", "7"], ["--steps", "3"], ["--box", "0.2,0.2,0.7,0.9"]])
def test_previews_of_another_run_are_kept(case: Case, flags: list[str]) -> None:
    two = ["--steps", "2", "--strength", "1", "--save-steps", "1"]
    assert case.run(*two) == case.run(*two, *flags) == 0
    assert {"a_steps.old1/step_001.png", "a_steps.old1/step_002.png"} <= names(case.out.parent)
    assert len(names(case.out.with_name("a_steps"))) == (3 if "3" in flags else 2)
    if flags[0] == "--seed":
        assert case.run(*two, "--save-steps", "2", "--overwrite") == 0
        assert names(case.out.with_name("a_steps")) == {"step_002.png"}


def test_the_first_number_that_is_free_for_all_is_taken(tmp_path: Path) -> None:
    for name in ("a.png", "a.json", "a.old1.json", "a.old2.png"):
        (tmp_path / name).write_text(name)
    (tmp_path / "a.old3.png").symlink_to("nowhere")
    set_aside([tmp_path / "a.png", tmp_path / "a.json", tmp_path / "gone.png"])
    assert (tmp_path / "a.old4.png").read_text() == "a.png"
    assert (tmp_path / "a.old4.json").read_text() == "a.json"
    assert (tmp_path / "a.old1.json").read_text() == "a.old1.json"


def test_a_result_and_its_report_move_together(tmp_path: Path) -> None:
    image_u8 = np.zeros((4, 4, 3), np.uint8)
    save_result(tmp_path / "a.png", image_u8, {"seed": 1}, {"seconds": 1})
    save_result(tmp_path / "a.png", image_u8, {"seed": 1}, {"seconds": 2})
    assert names(tmp_path) == {"a.png", "a.json"}
    save_result(tmp_path / "a.png", image_u8, {"seed": 2}, {"seconds": 3})
    assert '"recipe": {\n    "seed": 1' in (tmp_path / "a.old1.json").read_text()
    save_result(tmp_path / "a.png", image_u8, {"seed": 3}, {}, overwrite=True)
    assert names(tmp_path) == {"a.png", "a.json", "a.old1.png", "a.old1.json"}
    write_result({tmp_path / "a.png": encode_png(image_u8)})
    assert "a.old2.png" in names(tmp_path)
    assert "a.old2.json" not in names(tmp_path)


@pytest.mark.parametrize("out", ["/proc/nowhere/a.png", "file/a.png", "file/deep/a.png"])
def test_a_place_that_cannot_be_written_is_found_before_work(tmp_path, monkeypatch, out) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(ValueError, match=f"--out {out} cannot be written: .*not a writable folder"):
        check_writable(Path(out))
    assert os.listdir() == ["file"]


@pytest.mark.parametrize(
    "argv",
    [
        ["compose", "--cases", "c.json"],
        ["paint", "--image", "i.png", "--masks", "m.png", "--prompts", "a"],
        ["predict", "image", "--image", "i.png", "--instruction", "Place the cup left of the bowl"],
    ],
)
def test_commands_look_at_out_first(monkeypatch, tmp_path, capsys, argv) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    build = {
        "compose": compose.contact_sheet.build_app,
        "paint": inpainting.paint.build_app,
        "predict": llava_bifrost.predict.__main__.build_app,
    }[argv[0]]
    assert run_app(build, [*argv[1:], "--out", "file/a.png"]) == 2
    assert "--out file/a.png cannot be written" in capsys.readouterr().err
