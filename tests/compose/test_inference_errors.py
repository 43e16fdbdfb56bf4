"""Bad input to `run_inference.py image`: one line, exit code 2, nothing written, and before slow work."""

import os
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from ldm.images import write_depth, write_mask, write_png
from ldm.settings.cli import run_app
from run_inference import build_app
from tests.images import Case, forbid_loading, refusal, room, thing


@pytest.fixture
def bad(case: Case, monkeypatch: pytest.MonkeyPatch) -> Case:
    """A case with unusable files beside the good ones; loading weights fails the test."""
    folder = case.folder
    rgb_u8, mask = thing()
    (folder / "text.jpg").write_text("not a photograph")
    (folder / "zero.png").touch()
    Image.fromarray(room()).save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:900])
    write_mask(folder / "black.png", np.zeros((64, 64), bool))
    write_mask(folder / "black_target.png", np.zeros((96, 128), bool))
    write_mask(folder / "wide.png", np.ones((64, 65), bool))
    tiny = np.zeros((64, 64), bool)
    tiny[10:30, 10:17] = True
    write_mask(folder / "tiny.png", tiny)
    write_png(folder / "tiny_alpha.png", rgb_u8, alpha_u8=tiny.astype(np.uint8) * 255)
    write_png(folder / "flat.png", np.full((64, 64, 3), 128, np.uint8))
    write_depth(folder / "square_depth.png", np.eye(64, dtype=np.float32))
    write_png(folder / "colours.png", room())
    (folder / "folder.png").mkdir()
    (folder / "bad.yaml").write_text("stepz: 3\n")
    (folder / "range.yaml").write_text("strength: 3\n")
    forbid_loading(monkeypatch)
    return case


FILES = [
    ("--background gone.png", "gone.png does not exist"),
    ("--background .", "is a folder, expected an image"),
    ("--background text.jpg", "text.jpg is not an image"),
    ("--background cut.jpg", "cut.jpg is truncated or damaged"),
    ("--background zero.png", "zero.png is empty (zero bytes)"),
    ("--object gone.png", "gone.png does not exist"),
    ("--object text.jpg", "text.jpg is not an image"),
    ("--object cut.jpg", "cut.jpg is truncated"),
    ("--object-mask gone.png", "gone.png does not exist"),
    ("--object-mask black.png", "black.png is empty: no pixel"),
    ("--object-mask wide.png", "wide.png is 65 x 64 pixels, its image is 64 x 64"),
    ("--object-mask tiny.png", "tiny.png: the object is 7 x 20 pixels; at least 8"),
    ("--target-mask black_target.png", "black_target.png is empty"),
    ("--target-mask mask.png", "mask.png is 64 x 64 pixels, its image is 128 x 96"),
    ("--background-depth gone.png", "gone.png does not exist"),
    ("--background-depth square_depth.png", "square_depth.png is 64 x 64 pixels, its image is 128 x 96"),
    ("--background-depth colours.png", "colours.png is coloured"),
    ("--object-depth depth.png", "depth.png is 128 x 96 pixels, its image is 64 x 64"),
    ("--config gone.yaml", "gone.yaml: cannot read this YAML file: does not exist"),
    ("--config bad.yaml", "bad.yaml: unknown key 'stepz'; did you mean 'steps'?"),
    ("--config range.yaml", "range.yaml: strength must be in [0, 1], got 3"),
]


@pytest.mark.parametrize(("flags", "reason"), FILES, ids=[flags for flags, _ in FILES])
def test_a_bad_file_is_named(bad: Case, capsys, monkeypatch, flags: str, reason: str) -> None:
    monkeypatch.chdir(bad.folder)
    assert reason in refusal(bad, lambda: bad.run(*flags.split()), capsys)


VALUES = [
    ("--box 0.5,0.5,1.2,0.9", "--box must be x1,y1,x2,y2", "leaves the image"),
    ("--box -0.1,0.2,0.5,0.9", "--box must be", "got -0.1,0.2,0.5,0.9: it leaves"),
    ("--box=-0.1,0.2,0.5,0.9", "--box must be", "leaves the image"),
    ("--box 100,200,300,400", "in fractions of the image", "leaves the image"),
    ("--box 0.7,0.2,0.3,0.9", "--box must be", "inverted"),
    ("--box 0.3,0.2,0.3,0.9", "--box must be", "no area"),
    ("--box 0.3,0.2,0.7", "--box must be float,float,float,float", "got 0.3,0.2,0.7"),
    ("--box 0.3,0.2,0.7,0.9,1", "--box must be float,float,float,float", "0.9,1"),
    ("--box left,top,right,bottom", "--box must be float", "left,top,right,bottom"),
    ("--box nan,0.2,0.7,0.9", "--box must be", "not a number"),
    ("--box inf,0.2,0.7,0.9", "--box must be", "not a number"),
    ("--depth 1.5", "--depth must be d or far,near", "got 1.5"),
    ("--depth -0.5", "--depth must be d or far,near", "got -0.5"),
    ("--depth nan", "--depth must be d or far,near", "got nan"),
    ("--depth 0.6,0.4", "0 <= far <= near <= 1", "got 0.6,0.4"),
    ("--depth 0.2,0.3,0.4", "--depth must be d or far,near", "got 0.2,0.3,0.4"),
    ("--depth near", "--depth must be float", "near"),
    ("--depth=", "--depth must be d or far,near", "got nothing"),
    ("--mode palce", "unknown --mode 'palce'", "did you mean 'place'?"),
    ("--mode inpaint", "--mode inpaint needs --target-mask", "region"),
    ("--mode draw", "--mode draw needs --target-mask", "region"),
    ("--mode id-transfer", "--mode id-transfer needs --target-mask", "region"),
    ("--scheduler unipcc", "unknown scheduler 'unipcc'", "did you mean 'unipc'?"),
    ("--scheduler NoSuchScheduler", "unknown scheduler 'NoSuchScheduler'", "allowed: ddim"),
    ("--scheduler VQDiffusionScheduler", "scheduler VQDiffusionScheduler is for other models", "one of ddim"),
    ("--stepz 3", "--stepz", "--steps"),
    ("--steps 0", "--steps must be in [1, 1000]", "got 0"),
    ("--steps 2.5", "--steps must be int", "2.5"),
    ("--guidance -1", "--guidance must be in [0, 30]", "got -1"),
    ("--strength 2", "--strength must be in [0, 1]", "got 2"),
    ("--detail nan", "--detail must be in [0, 1]", "got nan"),
    ("--detail-weight 3", "--detail-weight must be in [0, 2]", "got 3"),
    ("--num-samples 0", "--num-samples must be in [1, 64]", "got 0"),
    ("--seed -1", "--seed must be in [0, 4294967295]", "got -1"),
    ("--seed 99999999999999999999", "--seed must be", "99999999999999999999"),
    ("--save-steps -1", "--save-steps must be at least 0", "got -1"),
    ("--init middle", "unknown --init 'middle'", "noise, paste"),
    ("--device tpu", "unknown device 'tpu'", "auto, cuda, mps, cpu"),
    ("--dtype fp23", "unknown --dtype 'fp23'", "did you mean 'fp32'?"),
    ("--out a.bmp", "written as .png, .webp, .jpg, .jpeg", "a.bmp"),
    ("--out folder.png", "--out folder.png is a folder", ".png, .webp"),
    ("--out room.png", "--out room.png", "is one of the inputs and would be overwritten"),
    ("--out ./out/../room.png", "is one of the inputs", "overwritten"),
    ("--out room.png/a.png", "--out room.png/a.png cannot be written", "not a writable folder"),
    ("extra", "extra", ""),
]


@pytest.mark.parametrize(("flags", "reason", "more"), VALUES, ids=[value[0] for value in VALUES])
def test_a_bad_value_is_named_as_typed(bad: Case, capsys, monkeypatch, flags, reason, more) -> None:
    monkeypatch.chdir(bad.folder)
    message = refusal(bad, lambda: bad.run(*flags.split()), capsys)
    assert reason in message
    assert more in message


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("--background", "missing --background"),
        ("--object", "missing --object"),
        ("--box", "--box x1,y1,x2,y2 (fractions of the background) or --target-mask FILE is needed"),
    ],
)
def test_what_is_needed_is_named(bad: Case, capsys, missing: str, reason: str) -> None:
    assert reason in refusal(bad, lambda: bad.run(without=[missing]), capsys)


def test_the_absent_accelerator_is_named(bad: Case, capsys, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "device cuda is not available" in refusal(bad, lambda: bad.run("--device", "cuda"), capsys)


def test_an_object_that_cannot_be_found_asks_for_its_mask(bad: Case, capsys) -> None:
    for name, reason in (
        ("flat.png", "flat.png: the object was not found in its image"),
        ("tiny_alpha.png", "tiny_alpha.png: the object is 7 x 20 pixels"),
    ):
        path = bad.folder / name
        message = refusal(bad, lambda path=path: bad.run("--object", path, without=["--object-mask"]), capsys)
        assert reason in message
    assert "pass --object-mask" in refusal(
        bad, lambda: bad.run("--object", bad.folder / "flat.png", without=["--object-mask"]), capsys
    )
    message = refusal(
        bad, lambda: bad.run("--sam", bad.folder / "no" / "sam", without=["--object-mask"]), capsys
    )
    assert "SAM folder" in message
    assert str(bad.folder / "no" / "sam") in message


@pytest.mark.parametrize("box", ["0.02,0.3,0.2,0.8", "0.05,0,0.2,0.1"])
def test_a_completely_hidden_object_names_box_and_depth(bad: Case, capsys, box: str) -> None:
    message = refusal(bad, lambda: bad.run("--box", box, "--depth", "0.1,0.2"), capsys)
    assert "nearer objects hide the object completely" in message
    assert f"--box {box}" in message
    assert "0.100 to 0.200" in message
    assert "1.000 to 1.000" in message


def test_a_box_below_a_pixel_is_named(bad: Case, capsys) -> None:
    message = refusal(bad, lambda: bad.run("--box", "0.5,0.5,0.501,0.501", "--depth", "1"), capsys)
    assert "--box 0.5,0.5,0.501,0.501 is too small" in message


def test_a_box_beside_the_target_mask_is_named(bad: Case, capsys) -> None:
    flags = ["--mode", "inpaint", "--target-mask", bad.folder / "target.png", "--box", "0.8,0.1,0.95,0.3"]
    message = refusal(bad, lambda: bad.run(*flags, without=["--depth"]), capsys)
    assert "--box 0.8,0.1,0.95,0.3 does not meet the target mask" in message


def test_an_unreadable_file_and_folder_are_named(bad: Case, capsys, monkeypatch) -> None:
    if os.geteuid() == 0:  # the super-user may read and write everything
        real_open = Path.open

        def denied(path: Path, *rest, **more):
            if path.name == "room.png":
                raise PermissionError(13, "Permission denied", str(path))
            return real_open(path, *rest, **more)

        monkeypatch.setattr(Path, "open", denied)
    else:
        (bad.folder / "room.png").chmod(0)
    assert "room.png: permission denied" in refusal(bad, bad.run, capsys)
    if os.geteuid() == 0:
        reason = PermissionError(13, "Permission denied")
        monkeypatch.setattr("ldm.settings.resources.tempfile.TemporaryFile", MagicMock(side_effect=reason))
    else:
        bad.folder.chmod(0o500)
    assert f"{bad.folder} is not a writable folder" in refusal(bad, bad.run, capsys)
    bad.folder.chmod(0o700)


def test_an_unknown_verb_names_the_nearest(bad: Case, capsys) -> None:
    assert "image" in refusal(bad, lambda: run_app(build_app, ["imagee"]), capsys)
