"""The doctor: names versions and devices, and for every command the pull that it still needs."""

from pathlib import Path

import pytest

from ldm.doctor import print_report
from ldm.registry.models import load_registry


def test_what_is_missing_is_named_with_its_command(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    print_report()
    before = capsys.readouterr().out
    assert "torch " in before
    assert "cpu (" in before
    assert "run_inference.py image --sam: lacks sam -> python -m ldm.registry pull sam" in before
    for name in load_registry():
        assert name in before
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "sam").mkdir(exist_ok=True)
        (tmp_path / "sam" / file).write_text("{}")
    print_report()
    assert "run_inference.py image --sam: ready" in capsys.readouterr().out


def test_a_bundle_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("ldm.doctor.SMALL_NETWORKS", tmp_path)
    print_report()
    assert f"{tmp_path}: missing; git checkout" in capsys.readouterr().out
    for part in ("depth", "compositor"):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{part}.json").write_text("{}")
    print_report()
    assert f"{tmp_path}: compositor, depth" in capsys.readouterr().out
