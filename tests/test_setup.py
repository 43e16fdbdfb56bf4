"""The scripts that make the environment, with a stub in place of Python: what they check and install."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

STUB = """#!/bin/sh
echo "$*" >>"$STUB_LOG"
for last; do :; done
case "$*" in
*version_info*) echo "${STUB_VERSION:-3.11}" ;;
*"import venv"*) exit "${STUB_NO_VENV:-0}" ;;
"-m venv"*)
    case "$*" in *--clear*) rm -rf "$last" ;; esac
    mkdir -p "$last/bin" && cp "$0" "$last/bin/python"
    ;;
"-m pip --version") ;;
"-m pip"*)
    if [ -n "${STUB_KILL:-}" ]; then kill -9 $PPID; fi
    case "$*" in *torch==*) : >"$STUB_LOG.torch" ;; esac
    exit "${STUB_PIP:-0}"
    ;;
*"import torch"*) [ -n "${STUB_TORCH:-}" ] || [ -e "$STUB_LOG.torch" ] ;;
*importlib.metadata*) echo torch==2.13.0 ;;
"-m ruff"*) exit "${STUB_RUFF:-0}" ;;
"-m pytest"*"-m slow"*) exit "${STUB_SLOW:-0}" ;;
-) cat >/dev/null && echo "${STUB_TORCH:-}" ;;
esac
"""


@dataclass
class Checkout:
    """A copy of the scripts, whose Python is a stub that notes how it was called."""

    folder: Path
    shell: str

    def run(self, script: str = "scripts/demo.sh", *arguments: str, **settings: str) -> tuple[int, str]:
        """Exit code and output of a script, started from another folder."""
        stub = str(self.folder / "stub")
        environment = {"PATH": os.environ["PATH"], "PYTHON": stub, "STUB_LOG": str(self.log)}
        done = subprocess.run(
            [self.shell, str(self.folder / script), *arguments],
            cwd=self.folder.parent, env=environment | settings, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    @property
    def log(self) -> Path:
        return self.folder / "calls.log"

    @property
    def venv(self) -> Path:
        return self.folder / ".venv"

    def calls(self, part: str) -> list[str]:
        """The calls noted since the last call of this function, those that start with `part`."""
        found = [line for line in self.log.read_text().splitlines() if line.startswith(part)]
        self.log.write_text("")
        return found


@pytest.fixture(params=["bash", "sh"])
def checkout(request, root, tmp_path) -> Checkout:
    folder = tmp_path / "a checkout"
    for name in ["scripts/setup.sh", "scripts/demo.sh", "scripts/test.sh", ".ci/run", "requirements.txt"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, folder / name)
    (folder / "stub").write_text(STUB)
    (folder / "stub").chmod(0o755)
    (folder / "calls.log").write_text("")
    return Checkout(folder, request.param)


@pytest.mark.parametrize("version", ["3.9", "3.14", "2.7"])
def test_unsupported_python_is_named_and_nothing_is_made(checkout, version):
    code, output = checkout.run(STUB_VERSION=version)
    assert code != 0
    for part in [f"Python {version}", "3.10 to 3.13", "PYTHON="]:
        assert part in output
    assert not checkout.venv.exists()


def test_missing_python_is_named(checkout):
    code, output = checkout.run(PYTHON="no-such-python")
    assert code != 0
    assert "no-such-python" in output
    assert "3.10 to 3.13" in output


def test_missing_venv_module_names_the_package_to_install(checkout):
    code, output = checkout.run(STUB_NO_VENV="1", STUB_VERSION="3.12")
    assert code != 0
    assert "apt-get install python3.12-venv" in output
    assert not checkout.venv.exists()


def test_first_run_installs_and_the_second_does_not(checkout):
    assert checkout.run()[0] == 0
    assert len(checkout.calls("-m pip install")) == 2
    code, output = checkout.run()
    assert code == 0
    assert [call for call in checkout.calls("-m") if "ldm.registry" not in call] == []
    assert "[setup]" not in output


def test_changed_requirements_are_installed_into_the_same_environment(checkout):
    checkout.run()
    checkout.calls("")
    with (checkout.folder / "requirements.txt").open("a") as file:
        file.write("another==1\n")
    assert checkout.run()[0] == 0
    calls = checkout.calls("-m")
    assert not [call for call in calls if "-m venv" in call]
    assert [call for call in calls if "-m pip install" in call]
    assert "another==1" in (checkout.venv / "requirements.txt").read_text()


def test_killed_installation_is_not_trusted(checkout):
    assert checkout.run(STUB_KILL="1")[0] != 0
    assert (checkout.venv / ".installing").exists()
    assert not (checkout.venv / ".requirements").exists()
    checkout.calls("")
    code, output = checkout.run()
    assert code == 0
    assert "did not finish" in output
    assert any("-m venv --clear" in call for call in checkout.calls("-m venv"))
    assert not (checkout.venv / ".installing").exists()


def test_refused_installation_fails_and_is_tried_again_without_a_rebuild(checkout):
    code, output = checkout.run(STUB_PIP="1")
    assert code != 0
    assert "installation failed" in output
    assert not (checkout.venv / ".requirements").exists()
    checkout.calls("")
    assert checkout.run()[0] == 0
    assert not checkout.calls("-m venv")


def test_torch_comes_from_the_named_index_and_the_rest_does_not(checkout):
    checkout.run(TORCH_INDEX_URL="https://example.org/cpu")
    torch, rest = checkout.calls("-m pip install")
    assert "--index-url https://example.org/cpu torch==" in torch
    assert "example.org" not in rest
    assert "torch==" not in (checkout.venv / "requirements.txt").read_text()


def test_a_torch_that_python_has_is_kept(checkout):
    code, output = checkout.run(STUB_TORCH="2.7.0 /somewhere")
    assert code == 0
    assert "keeping torch 2.7.0" in output
    calls = checkout.calls("-m")
    assert any("--system-site-packages" in call for call in calls)
    assert not [call for call in calls if "pip install" in call and "torch==" in call]


def test_test_script_runs_the_checks_and_passes_arguments_on(checkout):
    assert checkout.run("scripts/test.sh", "-k", "two words")[0] == 0
    checks = ["-m ruff check .", "-m ruff format --check --quiet .", "-m mypy"]
    assert checkout.calls("")[-4:] == [*checks, "-m pytest -q -k two words"]
    assert checkout.run("scripts/test.sh", STUB_RUFF="1")[0] == 1
    assert checkout.run("scripts/test.sh")[0] == 0
    assert checkout.calls("")[-1] == "-m pytest -q -n auto --dist loadfile"


@pytest.mark.parametrize("code", [0, 1])
def test_ci_runs_the_checks_once_and_both_suites(checkout, code):
    assert checkout.run(".ci/run", STUB_SLOW=str(code))[0] == code
    calls = checkout.calls("-m")
    assert [call for call in calls if call.startswith("-m pytest")] == [
        "-m pytest -q -n auto --dist loadfile",
        "-m pytest -q -m slow -n auto --dist loadfile",
    ]
    assert calls.count("-m mypy") == calls.count("-m ruff check .") == 1


def test_pins_leave_torchvision_to_the_extras(root):
    core = (root / "requirements.txt").read_text()
    extras = (root / "requirements-extras.txt").read_text()
    for name in ["torchvision", "timm", "lpips", "torch-fidelity", "open_clip_torch"]:
        assert f"\n{name}" not in core
        assert f"\n{name}" in extras
    pins = [line for line in core.splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in pins)
