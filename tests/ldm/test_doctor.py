"""The doctor: first what works now, then what each command would gain by which pull, then the machine."""

import json
import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from ldm.doctor import EXTRAS, build_app, lacks_mcp, print_report, report_sections
from ldm.registry.models import load_registry
from ldm.settings.cli import run_app
from tests.conftest import ROOT


def test_it_starts_with_what_works_now(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    report = print_report()
    assert list(report) == ["works now", "would be gained", "machine", "models"]
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "works now"
    assert shown[1] == "  run_inference.py image, replay, batch, dreambooth: with assets/tiny/compositor"
    assert "inpainting.dream: with assets/tiny/prompter" in report["works now"]
    assert report["machine"][0].startswith("python ")
    assert "cpu (" in report["machine"][2]


def test_what_would_be_gained_is_named_with_its_command(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    before = print_report()
    gain = (
        "run_inference.py image --sam: SAM ViT-H, cuts objects out (2.6 GB): python -m ldm.registry pull sam"
    )
    assert gain in before["would be gained"]
    for name, model in load_registry().items():
        assert any(line.endswith(f"pull {name}") for line in before["would be gained"]) == bool(model.used_by)
        assert any(line.startswith(f"{name}: ") for line in before["models"])
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "sam").mkdir(exist_ok=True)
        (tmp_path / "sam" / file).write_text("{}")
    after = print_report()
    assert gain not in after["would be gained"]
    assert f"run_inference.py image --sam: with {tmp_path / 'sam'}" in after["works now"]


def test_a_bundle_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.doctor.SMALL_NETWORKS", tmp_path)
    lacks = "lacks compositor, depth, inpainter, locator, prompter, shadow: git checkout -- assets/tiny"
    assert f"{tmp_path} {lacks}" in print_report()["works now"]
    for part in ("depth", "compositor"):
        (tmp_path / part).mkdir()
        (tmp_path / part / f"{part}.json").write_text("{}")
    works = print_report()["works now"]
    assert f"run_inference.py image, replay, batch, dreambooth: with {tmp_path / 'compositor'}" in works
    assert f"{tmp_path} lacks inpainter, locator, prompter, shadow: git checkout -- assets/tiny" in works


def test_every_extra_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [ROOT / name for name in ("requirements-extras.txt", "requirements.txt")]
    lines = [line.partition(";")[0].strip() for file in files for line in file.read_text().splitlines()]
    pins = {re.split("[=<>]", line)[0]: line for line in lines if line and not line.startswith("#")}
    extras = {
        re.split("[=<>]", line)[0] for line in files[0].read_text().splitlines() if line[:1] not in "#-"
    }
    assert extras <= {*EXTRAS, "mcp"} <= pins.keys()

    def version(name: str) -> str:
        if name in ("lvis", "pypatchmatch"):
            return "1.2.3"
        raise PackageNotFoundError(name)

    monkeypatch.setattr("ldm.doctor.version", version)
    report = report_sections()
    for name, use in EXTRAS.items():
        there = name in ("lvis", "pypatchmatch")
        assert (f"{use}: with {name} 1.2.3" in report["works now"]) == there
        assert (f"{use}: pip install '{pins[name]}'" in report["would be gained"]) == (not there)
    assert pins["mcp"] in lacks_mcp()
    assert any(line.endswith("ldm.registry pull u2netp") for line in report["would be gained"])


def test_it_answers_in_json(capsys) -> None:
    assert run_app(build_app, ["--json"]) == 0
    assert "works now" in json.loads(capsys.readouterr().out)
