"""Pictures and annotation files from a server on this machine, with damage, refusals and interruptions."""

from __future__ import annotations

import csv
import hashlib
import http.server
import io
import json
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inpainting.data.downloader import build_app
from inpainting.data.fetch import HASHES, REVISION, FetchSettings, fetch_annotations
from inpainting.data.pictures import ImageSettings, fetch_images, image_address, pause
from ldm.options import run_app

COLUMNS = "file_name,url,modifier,split\n"


def jpeg(seed: int, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((80, 60)).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


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


def pointer(data: bytes) -> bytes:
    digest = hashlib.sha256(data).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n".encode()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files`; a path may have bad luck first: codes to answer with, or "short", "slow", "hang up"."""

    files: dict[str, bytes] = {}
    luck: dict[str, list[int | str]] = {}
    asked: Counter[str] = Counter()

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        fate = self.luck.get(self.path, [])
        luck = fate.pop(0) if len(fate) > 1 or (fate and fate[0] != "always") else None
        if isinstance(luck, int):
            self.send_error(luck)
            return
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        if luck == "hang up":
            self.connection.close()
            return
        if luck == "slow":
            time.sleep(0.4)
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : len(data) // 2] if luck == "short" else data[start:])

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch):
    for name, empty in (("files", {}), ("luck", {}), ("asked", Counter())):
        monkeypatch.setattr(Server, name, empty)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.handle_error = lambda *_: None  # a client that gives up is part of the tests
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def table(path: Path, address: str, names: list[str]) -> Path:
    rows = [f"{name},{address}/{name},Large,train" for name in names]
    path.write_text(COLUMNS + "\n".join(rows) + "\n")
    for seed, name in enumerate(names):
        Server.files.setdefault(f"/{name}!Large.jpg", jpeg(seed))
    return path


def quick(folder: Path, rows: Path, **more: object) -> ImageSettings:
    return ImageSettings(output_dir=folder / "images", csv=rows, threads=3, wait=0.0, timeout=5.0, **more)  # type: ignore[arg-type]


def test_addresses_are_the_published_ones() -> None:
    assert image_address("http://x/y.jpg", "HalfHD") == "http://x/y.jpg!HalfHD.jpg"
    assert image_address("http://x/y.jpeg", "Large") == "http://x/y.jpeg!Large.jpeg"
    assert image_address("http://x/y.png", "") == "http://x/y.png"


def test_pictures_arrive_and_only_missing_ones_are_asked_for(address: str, tmp_path: Path) -> None:
    rows = table(tmp_path / "w.csv", address, ["a.jpg", "b.jpg", "c.jpg"])
    fetch_images(quick(tmp_path, rows))
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]
    with (
        Image.open(io.BytesIO(Server.files["/a.jpg!Large.jpg"])) as sent,
        Image.open(tmp_path / "images/a.jpg") as got,
    ):
        buffer = io.BytesIO()
        sent.convert("RGB").save(buffer, "JPEG")
        assert (
            buffer.getvalue() == (tmp_path / "images/a.jpg").read_bytes()
        )  # as the published command writes it
        assert (got.mode, got.size) == ("RGB", (80, 60))
    (tmp_path / "images/b.jpg").unlink()
    Server.asked.clear()
    fetch_images(quick(tmp_path, rows))
    assert dict(Server.asked) == {"/b.jpg!Large.jpg": 1}


@pytest.mark.parametrize("luck", [[503, 429], ["short", "short"], ["hang up"], [500, "short", "hang up"]])
def test_passing_trouble_is_retried(address: str, tmp_path: Path, luck: list) -> None:
    rows = table(tmp_path / "w.csv", address, ["a.jpg"])
    Server.luck["/a.jpg!Large.jpg"] = list(luck)
    fetch_images(quick(tmp_path, rows))
    assert Server.asked["/a.jpg!Large.jpg"] == len(luck) + 1
    assert (tmp_path / "images/a.jpg").is_file()


def test_a_silent_server_times_out_and_is_asked_again(address: str, tmp_path: Path) -> None:
    rows = table(tmp_path / "w.csv", address, ["a.jpg"])
    Server.luck["/a.jpg!Large.jpg"] = ["slow"]
    fetch_images(ImageSettings(tmp_path / "images", csv=rows, threads=1, wait=0.0, timeout=0.1))
    assert Server.asked["/a.jpg!Large.jpg"] == 2


def test_failures_are_listed_and_the_next_run_tries_them_again(
    address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = table(tmp_path / "w.csv", address, ["good.jpg", "gone.jpg", "page.jpg", "short.jpg", "gray.jpg"])
    del Server.files["/gone.jpg!Large.jpg"]
    Server.files["/page.jpg!Large.jpg"] = b"<html>not found</html>"
    Server.files["/gray.jpg!Large.jpg"] = jpeg(1, "L")
    Server.luck["/short.jpg!Large.jpg"] = ["short"] * 9
    rows.write_text(
        rows.read_text() + f"../out.jpg,{address}/good.jpg,Large,train\nx.jpg,ftp://y/x.jpg,,val\n"
    )
    fetch_images(quick(tmp_path, rows, attempts=2))
    listed = {
        row["file_name"]: row["reason"] for row in csv.DictReader((tmp_path / "images_failed.csv").open())
    }
    assert set(listed) == {"gone.jpg", "page.jpg", "short.jpg", "../out.jpg", "x.jpg"}
    assert "HTTP 404" in listed["gone.jpg"]
    assert "no readable picture" in listed["page.jpg"]
    assert "2 tries" in listed["short.jpg"]
    assert "not the name of a picture" in listed["../out.jpg"]
    assert "only http and https" in listed["x.jpg"]
    assert Server.asked["/gone.jpg!Large.jpg"] == 1  # a 404 stays a 404
    assert Server.asked["/page.jpg!Large.jpg"] == 2
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["good.jpg", "gray.jpg"]
    with Image.open(tmp_path / "images/gray.jpg") as image:
        assert image.mode == "RGB"
    table(tmp_path / "w.csv", address, ["good.jpg", "gone.jpg"])
    fetch_images(quick(tmp_path, tmp_path / "w.csv"))
    assert not (tmp_path / "images_failed.csv").exists()


def test_nothing_at_all_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "w.csv"
    rows.write_text(COLUMNS + "a.jpg,http://127.0.0.1:9/a.jpg,Large,train\n")
    verb = ["download-and-save-images-wikiart-v2", "--csv", str(rows), "--attempts", "1", "--wait", "0"]
    for spelling in ("--output_dir", "-o", "--output-dir"):
        assert run_app(build_app, [*verb, spelling, str(tmp_path / "x")]) == 2
        assert "1 pictures failed (a.jpg: " in capsys.readouterr().err
    assert run_app(build_app, ["download-and-save-images-wikiart-v2", "--csv", str(tmp_path / "no.csv")]) == 2
    assert "fetch-annotations" in capsys.readouterr().err


def test_damaged_pictures_are_found_and_fetched_again(address: str, tmp_path: Path) -> None:
    rows = table(tmp_path / "w.csv", address, ["a.jpg", "b.jpg"])
    fetch_images(quick(tmp_path, rows))
    path = tmp_path / "images/a.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fetch_images(quick(tmp_path, rows))
    assert path.read_bytes() != whole
    fetch_images(quick(tmp_path, rows, verify=True))
    assert path.read_bytes() == whole


def test_waits_grow_and_are_bounded() -> None:
    assert [pause(1.0, number, lambda: 1.0) for number in (1, 2, 3, 20)] == [1.0, 2.0, 4.0, 60.0]
    assert pause(1.0, 3, lambda: 0.0) == 2.0


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
    with pytest.raises(ValueError, match="no column file_name"):
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
