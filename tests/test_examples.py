"""The committed examples, and the command that renders them: whole or not at all."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from ldm.images import read_depth, read_image
from ldm.settings.cli import run_app
from scripts.docs import make_examples

EXAMPLES_MB = 1.5


def test_examples_are_complete_and_small():
    files = [path for path in make_examples.FOLDER.rglob("*") if path.is_file()]
    assert len(files) == 5 * len(make_examples.EXAMPLES) + 4  # the list of cases, two jobs of layers, a mask
    assert sum(path.stat().st_size for path in files) < EXAMPLES_MB * 2**20


@pytest.mark.parametrize("ended_at", ["cone/room.png", "cone/object.png", "cone/anchors.json", "cases.json"])
@pytest.mark.parametrize("beside", [False, True])
def test_examples_that_were_interrupted_start_again(tmp_path, monkeypatch, ended_at, beside):
    """A kill leaves a hidden folder, which the next run removes; the final name comes last."""
    names = ["cone/room.png", "cone/object.png", "cone/anchors.json", "cases.json"]
    out, kill = tmp_path / "mine", [True]

    def write(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(name)
            if kill[0] and name == ended_at:
                shutil.copytree(folder, tmp_path / "killed")  # as a kill leaves it
                raise KeyboardInterrupt

    monkeypatch.setattr(make_examples, "write_examples", write)
    assert run_app(make_examples.build_app, ["--out", str(out)]) == 130
    assert not out.exists()
    if beside:
        (tmp_path / "killed").rename(tmp_path / ".mine.partial")
    kill[0] = False
    assert run_app(make_examples.build_app, ["--out", str(out)]) == 0
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.*")) == sorted(names)
    assert {path.name for path in tmp_path.iterdir()} <= {"mine", "killed"}


@pytest.mark.parametrize("name", ["notes.txt", "cone/room.png", ".hidden"])
def test_examples_overwrite_nothing(tmp_path, capsys, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    assert run_app(make_examples.build_app, ["--out", str(tmp_path)]) == 2
    assert "holds files, which would be overwritten; name a new folder" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"


def test_an_example_is_rendered_again_as_it_was_committed(tmp_path, monkeypatch):
    """Other processors may round the last bit of a few pixels differently, hence the small allowance."""
    monkeypatch.setattr(make_examples, "EXAMPLES", {"cone": make_examples.EXAMPLES["cone"]})
    assert run_app(make_examples.build_app, ["--out", str(tmp_path)]) == 0
    for name in ["room.png", "truth.png", "object.png"]:
        new, old = (read_image(folder / "cone" / name) for folder in (tmp_path, make_examples.FOLDER))
        far = np.abs(new.rgb_u8.astype(int) - old.rgb_u8).max(axis=2) > 1
        assert far.mean() < 1e-3
    depths = [read_depth(folder / "cone/room_depth.png") for folder in (tmp_path, make_examples.FOLDER)]
    assert np.abs(depths[0] - depths[1]).mean() < 1e-3
