"""Properties of file writing: all or nothing, and hashes that follow the contents."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import ldm.files
from ldm.files import excerpt, file_sha256, first_line, hash_folder, write_all_atomic, write_atomic
from ldm.temporary import machine, own_folder
from tests.conftest import ROOT


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "new" / "folder" / "a.png", b"image")
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "a.png", tmp_path / "new"):
        with pytest.raises(ValueError, match=r"cannot write .*(not a folder|is a directory|is a folder)"):
            write_atomic(target, b"data")
    before = sorted(tmp_path.rglob("*"))
    pair = {tmp_path / "one.png": b"1", tmp_path / "new": b"2"}
    with pytest.raises(ValueError, match="cannot write"):
        write_all_atomic(pair)
    assert sorted(tmp_path.rglob("*")) == before

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomic(tmp_path / "c.png", b"data")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_read_only_folder_gives_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ValueError, match=r"cannot write .*a\.png: permission denied"):
        write_atomic(tmp_path / "a.png", b"image")


def test_hashes_follow_the_contents(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    weights = tmp_path / "unet" / "model.safetensors"
    weights.write_bytes(b"abc")
    assert hash_folder(tmp_path) == {"unet/model.safetensors": file_sha256(weights)}
    assert file_sha256(weights).startswith("ba7816bf")  # the published test vector of SHA-256
    weights.write_bytes(b"abcd")
    assert not file_sha256(weights).startswith("ba7816bf")
    with pytest.raises(ValueError, match="not a folder"):
        hash_folder(tmp_path / "none")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("", "OSError"),
        (" \n", "OSError"),
        ("one\ntwo", "one"),
        ("many words " * 90, ("many words " * 90).strip()),
    ],
)
def test_the_first_line_of_a_message_is_whole(message: str, told: str) -> None:
    assert first_line(OSError(message)) == told


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb", "'a\\nb'"),
        ({"a": [1]}, "{'a': [1]}"),
        ("x" * 118, "'" + "x" * 118 + "'"),
        ("x" * 119, "'" + "x" * 119 + "..."),
    ],
)
def test_an_excerpt_says_that_it_is_one(value: object, shown: str) -> None:
    assert excerpt(value) == shown


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files that were read for their hash, with small files counted as large, in a fresh process."""
    opened: list[str] = []
    original = Path.open

    def open_and_note(path: Path, *args: Any, **options: Any) -> Any:
        if args == ("rb",) and path.suffix != ".json":
            opened.append(path.name)
        return original(path, *args, **options)

    monkeypatch.setattr(ldm.files, "KEPT_SIZE", 1)
    monkeypatch.setattr(ldm.files, "_HASHES", {})
    monkeypatch.setattr(Path, "open", open_and_note)
    return opened


def test_large_weights_are_hashed_once(tmp_path: Path, reads: list[str], monkeypatch) -> None:
    def later() -> dict[str, str]:
        monkeypatch.setattr(ldm.files, "_HASHES", {})  # another process
        return hash_folder(tmp_path)

    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    first = hash_folder(tmp_path)
    assert reads == ["a.safetensors", "b.safetensors"]
    assert later() == first == later()
    assert len(reads) == 2
    (tmp_path / "a.safetensors").write_bytes(b"another")
    assert later()["a.safetensors"] == hashlib.sha256(b"another").hexdigest()
    assert later()["b.safetensors"] == first["b.safetensors"]
    assert reads[2:] == ["a.safetensors"]
    assert file_sha256(tmp_path / "b.safetensors", anew=True) == first["b.safetensors"]
    assert reads[3:] == ["b.safetensors"]
    (tmp_path / ".sha256.json").write_text("{")
    with pytest.raises(ValueError, match=r"\.sha256\.json cannot be read as JSON"):
        later()


def test_a_renamed_file_is_not_read_again(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "w.part").write_bytes(b"abc")
    file_sha256(tmp_path / "w.part")
    (tmp_path / "w.part").rename(tmp_path / "w.ckpt")
    assert file_sha256(tmp_path / "w.ckpt").startswith("ba7816bf")
    assert reads == ["w.part"]


def test_hashes_of_images_leave_no_file(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a.png").startswith("ba7816bf")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert reads == ["a.png"]


def test_hashes_need_no_writable_folder(tmp_path: Path, reads: list[str], monkeypatch) -> None:
    (tmp_path / "w.ckpt").write_bytes(b"abc")
    monkeypatch.setattr("os.replace", Mock(side_effect=PermissionError("read only")))
    assert file_sha256(tmp_path / "w.ckpt").startswith("ba7816bf")
    assert [path.name for path in tmp_path.iterdir()] == ["w.ckpt"]


def test_what_dead_processes_were_writing_goes_with_the_next_write(tmp_path: Path) -> None:
    dead, here = subprocess.Popen([sys.executable, "-c", ""]), machine()
    dead.wait()
    kept = {
        f".a.png.{here}-{os.getpid()}.01234567.tmp",  # of a process that is at work
        f".a.png.elsewhere{here}-{dead.pid}.01234567.tmp",
        ".mine.tmp",
        f"a.png.{here}-{dead.pid}.01234567.tmp",
        f".a.png.{here}-{dead.pid}.notes.tmp",
    }
    for name in (
        *kept,
        f".a.png.{here}-{dead.pid}.01234567.tmp",
        f".{here}-7.b.{here}-{dead.pid}.89abcdef.tmp",
    ):
        (tmp_path / name).touch()
    write_atomic(tmp_path / "b.png", b"image")
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "b.png"}


@pytest.mark.parametrize("start", ["bifrost-images-", "bifrost-jobs-", "bifrost-scenes-"])
def test_temporary_folders_of_dead_processes_go_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, here = subprocess.Popen([sys.executable, "-c", ""]), machine()
    dead.wait()
    user = tmp_path / "images"
    user.mkdir()
    (user / "a.png").touch()
    kept = {
        "images",  # what a link leads to
        f"{start}.{here}-{os.getpid()}.abcdefgh.tmp",  # of a process that is at work
        f"{start}.elsewhere{here}-{dead.pid}.abcdefgh.tmp",
        f"{start}abcdefgh",
        f"{start}.notes.tmp",
        f"other.{here}-{dead.pid}.abcdefgh.tmp",
    }
    left = tmp_path / f"{start}.{here}-{dead.pid}.ab_d3fgh.tmp"
    for path in (*(tmp_path / name for name in kept), left / "deep"):
        path.mkdir(parents=True, exist_ok=True)
    (left / "a.png").touch()
    (left / "link").symlink_to(user)
    (tmp_path / f"{start}.{here}-{dead.pid}.12345678.tmp").symlink_to(user)
    with own_folder(start) as folder:
        assert {path.name for path in tmp_path.iterdir()} == {*kept, Path(folder).name}
        assert list(Path(folder).iterdir()) == []
        assert Path(folder).name.startswith(f"{start}.{here}-{os.getpid()}.")
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert (user / "a.png").is_file()


def test_what_a_killed_process_held_in_memory_goes_with_the_next_process(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; import numpy as np; from ldm.temporary import as_file\n"
        "as_file(np.zeros((2, 2, 3), np.uint8), 'image'); print(len(os.listdir(os.environ['TMPDIR'])))\n"
        "if len(sys.argv) > 1: sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    for more in (["kill"], ["kill"], []):
        done = subprocess.run(
            [sys.executable, "-c", code, *more],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout == "1\n", done.stderr
    assert list(tmp_path.iterdir()) == []
