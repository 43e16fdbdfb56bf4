"""The conversion scripts with a stub in place of Python: defaults, what is passed on, how to get a file."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

STUB = '#!/bin/sh\nfor word; do printf "%s|" "$word" >>"$STUB_LOG"; done\n'
SHELLS = [shell for shell in ("bash", "dash", "sh") if shutil.which(shell)]


@pytest.fixture(params=SHELLS)
def run(request: pytest.FixtureRequest, tmp_path: Path):
    """Runs a script in a copy with a finished environment; gives exit code, messages and the last call."""
    folder = tmp_path / "a checkout"
    (folder / "scripts").mkdir(parents=True)
    for name in ("setup", "convert_weight", "convert_weight_anydoor"):
        shutil.copy(ROOT / f"scripts/{name}.sh", folder / "scripts")
    shutil.copy(ROOT / "requirements.txt", folder)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").write_text(STUB)
    (folder / ".venv/bin/python").chmod(0o755)
    sums = subprocess.run(
        ["cksum"], input=(folder / "requirements.txt").read_bytes(), capture_output=True, check=True
    )
    (folder / ".venv/.requirements").write_bytes(sums.stdout)

    def start(name: str, *arguments: str, files: tuple[str, ...] = (), **settings: str):
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        log = tmp_path / "log"
        log.write_text("")
        done = subprocess.run(
            [request.param, str(folder / f"scripts/{name}.sh"), *arguments],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "STUB_LOG": str(log), **settings},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stderr, log.read_text().rstrip("|").split("|")

    return start


def test_start_from_stable_diffusion(run) -> None:
    files = (
        "models/released/sd21/v2-1_512-ema-pruned.ckpt",
        "models/released/dinov2/dinov2_vitg14_pretrain.pth",
    )
    code, _, words = run("convert_weight", "--seed", "3", files=files)
    assert code == 0
    assert words[:3] == ["-m", "cldm.convert", "sd21"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given == {
        "--source": files[0], "--dinov2": files[1], "--out": "models/bifrost_start",
        "--report": "models/bifrost_start.json", "--seed": "3",
    }  # fmt: skip


def test_released_bifrost(run) -> None:
    code, _, words = run("convert_weight", "bifrost", files=("models/released/bifrost/b.ckpt",))
    assert code == 0
    assert words[2] == "bifrost"
    assert words[words.index("--out") + 1] == "models/bifrost"
    assert "--dinov2" not in words


def test_anydoor(run) -> None:
    name = "models/released/anydoor/epoch=1-step=8687.ckpt"
    code, _, words = run("convert_weight_anydoor", files=(name,))
    assert code == 0
    assert words[2] == "anydoor"
    assert words[words.index("--source") + 1] == name


def test_own_paths_replace_the_defaults(run) -> None:
    code, _, words = run("convert_weight_anydoor", "--source", "my file.ckpt", "--out=m")
    assert code == 0
    assert words == ["-m", "cldm.convert", "anydoor", "--source", "my file.ckpt", "--out=m"]


def test_models_folder_may_be_elsewhere(run, tmp_path: Path) -> None:
    (tmp_path / "models/released/anydoor").mkdir(parents=True)
    (tmp_path / "models/released/anydoor/a.safetensors").touch()
    words = run("convert_weight_anydoor", BIFROST_MODELS=str(tmp_path / "models"))[2]
    assert words[words.index("--source") + 1] == str(tmp_path / "models/released/anydoor/a.safetensors")


@pytest.mark.parametrize(
    ("script", "model"),
    [("convert_weight", "sd21-checkpoint"), ("convert_weight_anydoor", "anydoor-checkpoint")],
)
def test_missing_file_names_the_command_that_gets_it(run, script: str, model: str) -> None:
    code, message, words = run(script)
    assert code == 2
    assert f"-m ldm.registry pull {model}" in message
    assert words == [""]
