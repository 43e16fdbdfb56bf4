"""The authors' annotation files: from a server, by Git LFS pointers, by hand; checked before they count."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.campaign_state import count_renames, wait
from inpainting.data import downloader as fetch
from inpainting.data.downloader import HASHES, REVISION, FetchSettings, build_app, fetch_annotations
from ldm.settings.cli import run_app
from tests.loopback import COLUMNS, Server, pointer, serving

TABLE = COLUMNS + "a.jpg,http://127.0.0.1:9/a.jpg,Large,train\n"
ANNOTATIONS = {"a.jpg": {"description": "Question: ? Answer: x", "entities": {}}}
CAPTIONS = {"a": {"mask_0": "The image shows a dog."}}


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("annotations.json", json.dumps(ANNOTATIONS))
        file.writestr("llava.json", json.dumps(CAPTIONS))
        file.writestr("__MACOSX/._llava.json", b"\0\1")
    return buffer.getvalue()


ARCHIVE = archive()


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from serving(monkeypatch)


def annotations(address: str, out: Path, **more: object) -> FetchSettings:
    where = {
        "raw_url": address + "/raw/{repository}/{revision}/{path}",
        "repository": "o/n",
        "revision": "abc",
    }
    return FetchSettings(out, lfs_url=address + "/lfs/{path}", **where, **more)  # type: ignore[arg-type]


def serve(zipped: bytes = ARCHIVE, listed: bytes = TABLE.encode()) -> None:
    Server.files["/raw/o/n/abc/data/annotations.zip"] = zipped
    Server.files["/raw/o/n/abc/data/wikiart_images.csv"] = listed


def check(out: Path) -> None:
    assert json.loads((out / "annotations.json").read_text()) == ANNOTATIONS
    assert json.loads((out / "llava.json").read_text()) == CAPTIONS
    assert (out / "wikiart_images.csv").read_text() == TABLE
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["annotations.json", "llava.json", "wikiart_images.csv", HASHES]
    )


def test_annotation_files_with_their_hashes(address: str, tmp_path: Path) -> None:
    serve()
    fetch_annotations(annotations(address, tmp_path / "data"))
    check(tmp_path / "data")
    hashes = json.loads((tmp_path / "data" / HASHES).read_text())
    assert hashes["wikiart_images.csv"] == {
        "sha256": hashlib.sha256(TABLE.encode()).hexdigest(),
        "from": "o/n@abc",
    }
    Server.asked.clear()
    fetch_annotations(annotations(address, tmp_path / "data"))
    assert not Server.asked
    assert len(REVISION) == 40  # a commit, not a branch that moves


@pytest.mark.parametrize("other", [{"revision": "def"}, {"repository": "o/fork"}])
def test_what_another_revision_left_is_not_used(address: str, tmp_path: Path, other: dict[str, str]) -> None:
    serve()
    del Server.files["/raw/o/n/abc/data/wikiart_images.csv"]
    with pytest.raises(ValueError, match="HTTP 404"):
        fetch_annotations(annotations(address, tmp_path / "data"))
    with pytest.raises(ValueError, match="HTTP 404"):  # begins where it stopped
        fetch_annotations(annotations(address, tmp_path / "data"))
    assert Server.asked["/raw/o/n/abc/data/annotations.zip"] == 1
    where = {"repository": "o/n", "revision": "abc", **other}
    for name, data in (("annotations.zip", ARCHIVE), ("wikiart_images.csv", TABLE.encode())):
        Server.files[f"/raw/{where['repository']}/{where['revision']}/data/{name}"] = data
    settings = dataclasses.replace(annotations(address, tmp_path / "data"), **other)
    fetch_annotations(settings)
    check(tmp_path / "data")
    asked = Server.asked[f"/raw/{where['repository']}/{where['revision']}/data/annotations.zip"]
    assert asked == 1


def test_git_lfs_pointers_are_followed(address: str, tmp_path: Path) -> None:
    serve(pointer(ARCHIVE), pointer(TABLE.encode()))
    Server.files |= {"/lfs/data/annotations.zip": ARCHIVE, "/lfs/data/wikiart_images.csv": TABLE.encode()}
    Server.luck["/lfs/data/annotations.zip"] = ["short"]
    fetch_annotations(annotations(address, tmp_path / "data"))
    check(tmp_path / "data")


def test_what_a_pointer_promises_is_checked(address: str, tmp_path: Path) -> None:
    serve(pointer(ARCHIVE))
    Server.files["/lfs/data/annotations.zip"] = ARCHIVE[:-1] + b"?"
    with pytest.raises(ValueError, match=r"SHA-256 is .*expected .*fetch-annotations --from FILE"):
        fetch_annotations(annotations(address, tmp_path / "data"))
    assert not (tmp_path / "data/annotations.json").exists()


def test_a_missing_or_damaged_file_names_the_way_by_hand(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"HTTP 404 .*github.com/o/n.*--from FILE"):
        fetch_annotations(annotations(address, tmp_path / "data"))
    serve(ARCHIVE[: len(ARCHIVE) // 2])
    with pytest.raises(ValueError, match="not a readable archive"):
        fetch_annotations(annotations(address, tmp_path / "data"))
    serve(ARCHIVE, b"name,split\n")
    with pytest.raises(ValueError, match="needs one column file_name; its columns are name, split"):
        fetch_annotations(annotations(address, tmp_path / "data"))
    assert not list((tmp_path / "data").glob("*"))
    serve()
    fetch_annotations(annotations(address, tmp_path / "data"))
    check(tmp_path / "data")


@pytest.mark.parametrize("given", ["files", "archive", "folder"])
def test_copies_by_hand(tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "annotations.zip").write_bytes(ARCHIVE)
    (stick / "wikiart_images.csv").write_text(TABLE)
    if given == "files":
        (stick / "annotations.json").write_text(json.dumps(ANNOTATIONS))
        (stick / "llava.json").write_text(json.dumps(CAPTIONS))
    names = {"files": ["annotations.json", "llava.json"], "archive": ["annotations.zip"]}.get(given)
    copies = [stick] if names is None else [stick / name for name in [*names, "wikiart_images.csv"]]
    flags = [text for copy in copies for text in ("--from", str(copy))]
    assert run_app(build_app, ["fetch-annotations", "--out-dir", str(tmp_path / "data"), *flags]) == 0
    check(tmp_path / "data")
    (stick / "pointer.csv").write_bytes(pointer(b"x"))
    arguments = [
        "fetch-annotations",
        "--out-dir",
        str(tmp_path / "data"),
        "--from",
        str(stick / "pointer.csv"),
    ]
    assert run_app(build_app, arguments) == 2
    assert "is a Git LFS pointer" in capsys.readouterr().err


@pytest.mark.parametrize("number", range(1, 10))
def test_a_kill_before_any_rename_changes_nothing(address: str, tmp_path: Path, number: int) -> None:
    serve()
    fetch_annotations(annotations(address, tmp_path / "whole"))
    settings = annotations(address, tmp_path / "killed")
    if not (child := os.fork()):
        count_renames(number)
        fetch_annotations(settings)
        os._exit(0)
    assert wait(child, 60) == -signal.SIGKILL
    fetch_annotations(settings)
    whole, left = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("whole", "killed")
    )
    assert left == whole


@pytest.mark.parametrize("full_at", ["note", "download"])
def test_nothing_stays_on_a_full_disk(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on the disk", "a")

    serve()
    with monkeypatch.context() as patched:
        patched.setattr(fetch, {"note": "write_atomic", "download": "download"}[full_at], full)
        with pytest.raises(OSError, match="no space left"):
            fetch_annotations(annotations(address, tmp_path))
    assert list(tmp_path.iterdir()) == []
    fetch_annotations(annotations(address, tmp_path))
    check(tmp_path)


def test_a_file_of_ones_own_is_neither_fetched_nor_recorded(address: str, tmp_path: Path) -> None:
    serve()
    (tmp_path / "llava.json").write_text('{"mine": 1}')
    fetch_annotations(annotations(address, tmp_path))
    assert (tmp_path / "llava.json").read_text() == '{"mine": 1}'
    assert set(json.loads((tmp_path / HASHES).read_text())) == {"annotations.json", "wikiart_images.csv"}
