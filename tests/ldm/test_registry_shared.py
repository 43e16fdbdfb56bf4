"""Registering a model twice at once, and after a kill at any moment."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from ldm.locks import one_writer
from ldm.registry.__main__ import build_app
from ldm.registry.models import load_registry
from ldm.settings.cli import run_app


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/models.yaml").write_text(
        "models:\n  thing:\n    about: a test\n    folder: thing\n    needs: [w.pth]\n"
        "    licence: none\n    size_gb: 0.1\n    sources:\n      - manual: http://127.0.0.1:9/page\n"
    )
    monkeypatch.setattr(
        "ldm.registry.__main__.load_registry", lambda: load_registry(tmp_path / "configs/models.yaml")
    )
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path / "models"))
    for name in ("old", "new"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("w.pth", name)
    return tmp_path / "models"


def register(root: Path, name: str) -> int:
    return run_app(build_app, ["register", "thing", str(root.parent / f"{name}.zip")])


def test_a_second_process_is_refused_in_one_line(root: Path, capsys: pytest.CaptureFixture) -> None:
    with one_writer(root / "thing", inside=False):
        for argv in (["register", "thing", str(root.parent / "old.zip")], ["pull", "thing"]):
            assert run_app(build_app, argv) == 2
            assert capsys.readouterr().err.endswith(
                f"{root}/thing: another process is writing it; wait for its end, or name another\n"
            )
        assert not (root / "thing").exists()
    assert register(root, "old") == 0
    with one_writer(root / "thing", inside=False):
        assert run_app(build_app, ["pull", "thing"]) == 0  # nothing to do


@pytest.mark.parametrize("count", [1, 2])
def test_a_kill_before_any_rename_leaves_nothing_for_ever(root: Path, monkeypatch, count: int) -> None:
    assert register(root, "old") == 0
    child = os.fork()
    if not child:
        seen = []

        def killed(source: Path, target: Path, rename=Path.rename) -> Path:
            seen.append(target)
            if len(seen) == count:
                os._exit(9)
            return rename(source, target)

        monkeypatch.setattr(Path, "rename", killed)
        register(root, "new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert run_app(build_app, ["pull", "thing"]) == 0  # the old one is there, or there again
    assert (root / "thing/w.pth").read_text() == "old"
    assert register(root, "new") == 0
    assert (root / "thing/w.pth").read_text() == "new"
    assert [path.name for path in root.iterdir()] == ["thing"]
    assert sorted(path.name for path in (root / "thing").iterdir()) == ["hashes.json", "w.pth"]
