"""Images from a server on this machine, with damage, refusals and interruptions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from inpainting.data.downloader import DownloadSettings, build_app, fetch_images
from ldm.settings.cli import run_app
from tests.loopback import COLUMNS, Server, jpeg, serving


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from serving(monkeypatch)


def table(path: Path, address: str, names: list[str]) -> Path:
    rows = [f"{name},{address}/{name},Large,train" for name in names]
    path.write_text(COLUMNS + "\n".join(rows) + "\n")
    for seed, name in enumerate(names):
        Server.files.setdefault(f"/{name}!Large.jpg", jpeg(seed))
    return path


def quick(folder: Path, rows: Path, **more: object) -> DownloadSettings:
    return DownloadSettings(output_dir=folder / "images", csv=rows, threads=3, wait=0.0, timeout=5.0, **more)  # type: ignore[arg-type]


def test_addresses_are_the_published_ones(tmp_path: Path) -> None:
    rows = tmp_path / "w.csv"
    rows.write_text("file_name,url,modifier\na.jpg,x/y.jpg,HalfHD\nb.jpg,x/y.jpeg,Large\nc.png,x/y.png,\n")
    with pytest.raises(ValueError, match="3 images failed"):
        fetch_images(quick(tmp_path, rows))
    failed = csv.DictReader((tmp_path / "images_failed.csv").open())
    assert [row["url"] for row in failed] == ["x/y.jpg!HalfHD.jpg", "x/y.jpeg!Large.jpeg", "x/y.png"]


def test_images_arrive_and_only_missing_ones_are_asked_for(address: str, tmp_path: Path) -> None:
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
    fetch_images(DownloadSettings(tmp_path / "images", csv=rows, threads=1, wait=0.0, timeout=0.1))
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
    assert "no readable image" in listed["page.jpg"]
    assert "2 tries" in listed["short.jpg"]
    assert "not the name of an image" in listed["../out.jpg"]
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
        assert "1 images failed (a.jpg: " in capsys.readouterr().err
    assert run_app(build_app, ["download-and-save-images-wikiart-v2", "--csv", str(tmp_path / "no.csv")]) == 2
    assert "fetch-annotations" in capsys.readouterr().err


def test_damaged_images_are_found_and_fetched_again(address: str, tmp_path: Path) -> None:
    rows = table(tmp_path / "w.csv", address, ["a.jpg", "b.jpg"])
    fetch_images(quick(tmp_path, rows))
    path = tmp_path / "images/a.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fetch_images(quick(tmp_path, rows))
    assert path.read_bytes() != whole
    fetch_images(quick(tmp_path, rows, verify=True))
    assert path.read_bytes() == whole
