"""Models from mirrors, a folder or by hand; the server runs on this machine, nothing half-done looks done."""

import hashlib
import http.server
import io
import re
import tarfile
import threading
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from compose.settings import ComposeSettings
from ldm.files import ROOT
from ldm.registry.__main__ import build_app
from ldm.registry.models import (
    BUILTIN_DEPTH,
    HASH_FILE,
    Registry,
    depth_folder,
    folder_of,
    load_registry,
    missing_files,
    resolve_model_path,
)
from ldm.registry.pull import changed, download, pull_model
from ldm.settings.cli import run_app

CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """/good has ranges, /short breaks off once after a third, /whole ignores ranges, /missing is gone."""

    asked: list[tuple[str, str]] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.asked.append((self.path, wanted))
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        start = int(wanted[6:-1]) if wanted and not self.path.startswith("/whole") else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        first = Counter(path for path, _ in self.asked)[self.path] == 1
        breaks = self.path.startswith("/short") and first
        self.wfile.write(CONTENT[start : len(CONTENT) // 3] if breaks else CONTENT[start:])

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Server, "asked", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def model(*sources: dict, needs: tuple[str, ...] = ("w.pth",)):
    values = {"about": "a test", "folder": "thing", "needs": list(needs), "licence": "none", "size_gb": 0.1}
    return Registry({"thing": {**values, "sources": list(sources)}}).models["thing"]


def test_the_second_mirror_is_used_when_the_first_is_gone(address: str, root: Path) -> None:
    one = model({"url": f"{address}/missing/w.pth"}, {"url": f"{address}/good/w.pth", "sha256": SHA})
    assert pull_model("thing", one) == root / "thing"
    assert (root / "thing/w.pth").read_bytes() == CONTENT
    assert not missing_files(one)
    assert changed(one) == []
    assert sorted(path.name for path in root.iterdir()) == ["thing"]


def test_a_truncated_transfer_continues(address: str, tmp_path: Path) -> None:
    assert download(f"{address}/short/w.pth", tmp_path / "w.pth", SHA) == SHA
    assert [wanted for _, wanted in Server.asked] == ["", f"bytes={len(CONTENT) // 3}-"]
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


@pytest.mark.parametrize("kind", ["good", "whole"])
@pytest.mark.parametrize("have", [1000, len(CONTENT), len(CONTENT) + 5])
def test_a_killed_download_continues_with_what_is_there(
    address: str, tmp_path: Path, kind: str, have: int
) -> None:
    (tmp_path / "w.pth.part").write_bytes((CONTENT + b"extra")[:have])
    assert download(f"{address}/{kind}/w.pth", tmp_path / "w.pth", SHA) == SHA
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_the_file_kept_aside(address: str, root: Path) -> None:
    one = model({"url": f"{address}/good/w.pth", "sha256": "0" * 64})
    with pytest.raises(ValueError, match=r"SHA-256 is .*expected 0000.*w.pth.wrong"):
        pull_model("thing", one)
    assert missing_files(one)
    assert (root / "thing.partial/w.pth.wrong").read_bytes() == CONTENT


def test_killed_in_the_middle_looks_incomplete(address: str, root: Path, monkeypatch) -> None:
    def killed(folder: Path) -> dict:
        raise KeyboardInterrupt

    one = model({"url": f"{address}/good/w.pth"})
    with monkeypatch.context() as patch:
        patch.setattr("ldm.registry.pull.hashes_of", killed)
        with pytest.raises(KeyboardInterrupt):
            pull_model("thing", one)
    assert missing_files(one)
    pull_model("thing", one)
    assert not missing_files(one)


def test_a_manual_source_says_where_and_how(root: Path) -> None:
    one = model({"manual": "https://example.org/page", "name": "w.pth"})
    with pytest.raises(ValueError, match=r"https://example.org/page -> .* register thing w.pth"):
        pull_model("thing", one)


def test_hub_sources_go_through_the_library(root: Path, monkeypatch) -> None:
    asked = []

    def fake(name: str, allow_patterns: list[str], local_dir: Path) -> Path:
        asked.append((name, allow_patterns))
        if name == "gone/model":
            raise OSError("404 not found\nmore text")
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / "w.pth").write_bytes(CONTENT)
        return local_dir

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    pull_model("thing", model({"hub": "gone/model"}, {"hub": "a/model", "files": ["*.pth"]}))
    assert asked == [("gone/model", None), ("a/model", ["*.pth"])]
    assert (root / "thing/w.pth").is_file()


def test_what_the_hub_says_is_told_whole(root: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    reason = "Cannot find " + "an appropriate cached snapshot " * 30
    advice = "To enable downloads, set 'HF_HUB_OFFLINE=0'."

    def fake(name: str, **options: object) -> None:
        raise OSError(f"{reason}\n\n{advice}\n")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    told = f"gone/model: no such folder, and the hub says: {reason}{advice}"
    with pytest.raises(ValueError, match=f"{re.escape(told)}$"):
        pull_model("thing", model({"hub": "gone/model"}))
    assert run_app(build_app, ["pull", "depth"]) == 2
    shown = capsys.readouterr().err
    assert advice in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize("below", ["", "thing"])
def test_offline_folder(below: str, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stick" / below
    folder.mkdir(parents=True)
    (folder / "w.pth").write_bytes(CONTENT)
    pull_model("thing", model({"url": "http://127.0.0.1:9/w.pth"}), tmp_path / "stick")
    assert (root / "thing/w.pth").read_bytes() == CONTENT


def test_an_incomplete_offline_folder_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "stick").mkdir()
    with pytest.raises(ValueError, match="incomplete|no such"):
        pull_model("thing", model(), tmp_path / "stick")
    assert not (root / "thing").exists()


def test_changed_files_are_found(root: Path, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(CONTENT)
    one = model()
    pull_model("thing", one, tmp_path / "w.pth")
    assert changed(one) == []
    (root / "thing/w.pth").write_bytes(b"other")
    assert changed(one) == ["w.pth"]
    (root / "thing" / HASH_FILE).unlink()
    with pytest.raises(ValueError, match="nothing to compare with"):
        changed(one)


def archive(path: Path, names: list[str]) -> Path:
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, CONTENT)
    else:
        with tarfile.open(path, "w:gz") as file:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(CONTENT)
                file.addfile(member, io.BytesIO(CONTENT))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_archives_are_unpacked(name: str, root: Path, tmp_path: Path) -> None:
    pull_model("thing", model(needs=("sub/w.pth",)), archive(tmp_path / name, ["sub/w.pth", "readme"]))
    assert (root / "thing/sub/w.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
@pytest.mark.parametrize("member", ["../w.pth", "/w.pth", "a/../../w.pth", "..\\w.pth", "C:\\w.pth"])
def test_archives_cannot_leave_the_folder(name: str, member: str, root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused: its member"):
        pull_model("thing", model(), archive(tmp_path / name, [member]))
    assert not (root / "thing").exists()
    assert not list(tmp_path.rglob("w.pth"))


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        link = tarfile.TarInfo("w.pth")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hosts"
        file.addfile(link)
    with pytest.raises(ValueError, match="refused"):
        pull_model("thing", model(), tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("source", "message"),
    [({"hub": "a/b", "url": "http://c"}, "exactly one"), ({"hob": "a/b"}, "hub"), ({}, "exactly one")],
)
def test_wrong_entries_name_the_model(source: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"model thing.*{message}"):
        model(source)


def test_every_entry_has_a_source_and_a_place_of_its_own() -> None:
    registry = load_registry()
    assert len({folder_of(one) for one in registry.values()}) == len(registry)
    assert all(one.places and one.needs for one in registry.values())
    names = [place.hub for place in registry["sd21-checkpoint"].places]
    assert names[-1].startswith("stabilityai/")  # its page is gone; the mirrors come first
    with pytest.raises(ValueError, match="about"):
        Registry({"x": {"folder": "x"}})


def test_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def run(*words: str) -> str:
        assert run_app(build_app, list(words)) == 0
        return capsys.readouterr().out

    assert "missing  anydoor-checkpoint" in run("list")
    assert "licence: MIT" in run("show", "anydoor-checkpoint")
    assert run("where", "depth") == f"{root}/depth\n"
    (tmp_path / "dinov2_vitg14_pretrain.pth").write_bytes(CONTENT)
    run("register", "dinov2-checkpoint", str(tmp_path / "dinov2_vitg14_pretrain.pth"))
    assert run("verify") == "dinov2-checkpoint: unchanged\n"
    assert "present  dinov2-checkpoint" in run("list")
    assert run_app(build_app, ["where", "dept"]) == 2
    assert "'dept'; did you mean 'depth'" in capsys.readouterr().err


def test_defaults_follow_the_models_folder(tmp_path, monkeypatch):
    chosen = ComposeSettings(Path("a.png"), Path("b.png"), box=(0, 0, 1, 1))
    for name in ("depth", "locator"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert depth_folder() == ROOT / BUILTIN_DEPTH
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    assert depth_folder() == tmp_path / "depth"
    assert chosen.locator_name == (tmp_path / "locator").as_posix()
    assert resolve_model_path(Path("assets/tiny")) == Path("assets/tiny")
    assert depth_folder(Path("models/mine")) == Path("models/mine")
