"""Downloads that were interrupted: continued only where it is the same file, whatever a server answers."""

import hashlib
import http.server
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm.registry.models import Registry
from ldm.registry.pull import download, pull_model

OLD, NEW = bytes(range(250)) * 40, bytes(reversed(range(250))) * 40  # two versions of one size
LONGER = NEW + b"more"
HAVE = 4000
TAG, DATE = '"v1"', "Sat, 28 Nov 2026 10:00:00 GMT"


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `data`; `manners` says how it treats ranges, `headers` what it says of the version."""

    data: bytes = OLD
    manners: str = "right"
    headers_sent: dict[str, str] = {}
    breaks: list[int] = []  # bytes after which the next answers end
    asked: list[tuple[str, str]] = []  # Range, If-Range

    def do_GET(self) -> None:
        kind, sent = type(self), type(self).headers_sent
        wanted, condition = self.headers.get("Range", ""), self.headers.get("If-Range", "")
        kind.asked.append((wanted, condition))
        same = not condition or condition in sent.values()
        honoured = (
            bool(wanted) and (same or self.manners == "ignores If-Range") and self.manners != "no ranges"
        )
        start = int(wanted[6:-1]) if honoured else 0
        length = len(self.data)
        if start >= length:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{length}")
            self.end_headers()
            return
        body = self.data[start:]
        self.send_response(200 if not start or self.manners == "200 with a part" else 206)
        if start and self.manners != "no Content-Range":
            shift = 10 if self.manners == "other start" else 0
            total = "*" if self.manners == "no total" else length
            self.send_header("Content-Range", f"bytes {start + shift}-{length - 1}/{total}")
        for name, value in sent.items():
            self.send_header(name, value)
        if self.manners != "no length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: kind.breaks.pop(0)] if kind.breaks else body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    fresh = {"data": OLD, "manners": "right", "headers_sent": {}, "breaks": [], "asked": []}
    for name, value in fresh.items():
        monkeypatch.setattr(Server, name, value)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/w.bin"
    server.shutdown()
    server.server_close()


def begin(address: str, path: Path, **sent: str) -> None:
    """A download of the old version that ended after some bytes, and left what it leaves."""
    Server.headers_sent = {name.replace("_", "-"): value for name, value in sent.items()}
    Server.data, Server.manners, Server.breaks = OLD, "right", [HAVE]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldm.registry.pull.DOWNLOAD_ATTEMPTS", 1)
        with pytest.raises(ValueError, match="run the same command again"):
            download(address, path)
    assert path.with_name("w.bin.part").read_bytes() == OLD[:HAVE]
    Server.asked.clear()


RANGE = f"bytes={HAVE}-"
MANNERS = ("right", "ignores If-Range", "no ranges")
MANNERS += ("200 with a part", "no Content-Range", "other start", "no total")


@pytest.mark.parametrize("manners", MANNERS)
@pytest.mark.parametrize(
    "sent", [{"ETag": TAG}, {"Last_Modified": DATE}, {"ETag": 'W/"v1"', "Last_Modified": DATE}]
)
@pytest.mark.parametrize("now", [OLD, NEW, LONGER, NEW[:HAVE], NEW[: HAVE - 1]])
def test_a_download_ends_with_one_version_whatever_the_server_does(
    address: str, tmp_path: Path, manners: str, sent: dict[str, str], now: bytes
) -> None:
    path = tmp_path / "w.bin"
    begin(address, path, **sent)
    if now != OLD:
        Server.headers_sent = {"ETag": '"v2"', "Last-Modified": "Sun, 29 Nov 2026 11:00:00 GMT"}
    Server.data, Server.manners = now, manners
    digest = download(address, path)
    assert path.read_bytes() == now
    assert digest == hashlib.sha256(now).hexdigest()
    assert Server.asked[0] == (RANGE, TAG if sent.get("ETag") == TAG else DATE)
    assert [file.name for file in tmp_path.iterdir()] == ["w.bin"]
    if manners == "right":
        assert len(Server.asked) == 1


def test_only_the_rest_is_sent_where_it_is_the_same_file(address: str, tmp_path: Path) -> None:
    begin(address, tmp_path / "w.bin", ETag=TAG)
    Server.breaks = [100, 200]
    download(address, tmp_path / "w.bin")
    starts = [HAVE, HAVE + 100, HAVE + 300]
    assert Server.asked == [(f"bytes={start}-", TAG) for start in starts]
    assert (tmp_path / "w.bin").read_bytes() == OLD


@pytest.mark.parametrize("sent", [{}, {"ETag": 'W/"v1"'}, {"Date": DATE}])
def test_without_a_version_and_without_a_hash_it_starts_anew(
    address: str, tmp_path: Path, sent: dict[str, str]
) -> None:
    begin(address, tmp_path / "w.bin", **sent)
    Server.data = NEW
    download(address, tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == NEW
    assert Server.asked == [("", "")]


def test_a_part_that_nothing_is_known_of_is_not_continued(address: str, tmp_path: Path) -> None:
    Server.headers_sent = {"ETag": TAG}
    (tmp_path / "w.bin.part").write_bytes(NEW[:HAVE])  # of an earlier version of this program
    download(address, tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == OLD
    (tmp_path / "w.bin.part").write_bytes(OLD[:HAVE])
    Server.asked.clear()
    download(address, tmp_path / "w.bin", hashlib.sha256(OLD).hexdigest())  # the hash tells
    assert Server.asked == [(RANGE, "")]


def test_another_mirror_is_begun_anew_or_proved_by_its_hash(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(address, tmp_path / "w.bin", ETag=TAG)
    Server.data = NEW  # by chance with the same tag
    download(address + "?mirror", tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == NEW
    assert Server.asked == [("", "")]
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path / "models"))
    Server.data = OLD
    values = {"about": "a", "folder": "thing", "needs": ["w.bin"], "licence": "none", "size_gb": 0.1}
    gone = {"url": address.replace("/w.bin", "0/w.bin")}
    thing = {**values, "sources": [gone, {"url": address}]}
    pull_model("thing", Registry({"thing": thing}).models["thing"])
    assert (tmp_path / "models/thing/w.bin").read_bytes() == OLD


def test_the_size_that_was_promised_is_required(address: str, tmp_path: Path) -> None:
    Server.headers_sent, Server.breaks = {"ETag": TAG}, [10] * 4
    with pytest.raises(ValueError, match=r"w.bin: the connection ended early; run the same command again"):
        download(address, tmp_path / "w.bin")
    assert not (tmp_path / "w.bin").exists()
    assert (tmp_path / "w.bin.part").read_bytes() == OLD[:40]
    record = json.loads((tmp_path / "w.bin.version.part").read_text())
    assert record == {"url": address, "version": TAG, "size": len(OLD)}


def test_a_size_that_nobody_knows_is_said(
    address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Server.manners = "no length"
    download(address, tmp_path / "w.bin", hashlib.sha256(OLD).hexdigest())
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        download(address, tmp_path / "w.bin")
    assert "does not say its size, so it may be incomplete" in caplog.text


def test_a_server_that_never_sends_what_was_asked_for_is_named(address: str, tmp_path: Path) -> None:
    class Odd(Server):
        def do_GET(self) -> None:
            self.send_response(206)
            self.send_header("Content-Length", "3")
            self.end_headers()
            self.wfile.write(b"odd")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    with pytest.raises(ValueError, match="the server sends another part, or a part of another file; run"):
        download(f"http://127.0.0.1:{server.server_address[1]}/w.bin", tmp_path / "w.bin")
    server.shutdown()
    server.server_close()
    assert not (tmp_path / "w.bin").exists()
