"""The copy of a fetched image shows what the image shows; a row that cannot be stored fails alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from inpainting.data.downloader import DownloadSettings, fetch_image, fetch_images
from ldm.images import read_image
from tests.loopback import Server, serving
from tests.profiles import ADOBE, gray_profile, in_profile, rgb_profile

ORIENTATION = 0x0112
WIDE = rgb_profile(ADOBE)
SCENE = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
SCENE[0] = (255, 0, 0)
DEEP = np.linspace(0, 65535, 35).reshape(5, 7).astype(np.uint16)
OPACITY = np.array([0, 1, 64, 128, 200, 254, 255], np.uint8)[None].repeat(5, axis=0)


def fetched(data: bytes, name: str = "a.png") -> Image.Image:
    """The copy of an image that a server sends as these bytes."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=data))
    with httpx.Client(transport=transport) as client:
        copy = fetch_image(name, "http://x.example/a", client)
    return Image.open(io.BytesIO(copy))


def stored(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def on_white(rgb_u8: np.ndarray, alpha_u8: np.ndarray) -> np.ndarray:
    """The stated sum, in double precision."""
    part = alpha_u8[:, :, None] / 255
    return np.rint(part * rgb_u8 + (1 - part) * 255).astype(np.uint8)


# Where the left end of the upper row of the stored pixels is seen, by the standard's eight cases.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_the_copy_is_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {}
    copy = fetched(stored(Image.fromarray(SCENE), kind, exif=exif.tobytes(), **lossless))
    assert np.array_equal(np.asarray(copy), TURNS[orientation](SCENE))
    assert ORIENTATION not in copy.getexif()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled(kind: str) -> None:
    copy = np.asarray(fetched(stored(Image.fromarray(DEEP), kind)))
    assert np.array_equal(copy, np.rint(DEEP / 257).astype(np.uint8)[:, :, None].repeat(3, axis=2))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp", "a.tif"])
def test_the_profile_is_kept_with_its_numbers(name: str) -> None:
    copy = fetched(stored(Image.fromarray(SCENE), icc_profile=WIDE), name)
    assert copy.info["icc_profile"] == WIDE
    if name in ("a.png", "a.tif"):
        assert np.array_equal(np.asarray(copy), SCENE)


def test_the_profile_is_applied_where_the_format_has_none(tmp_path: Path) -> None:
    own_u8 = in_profile(np.full((4, 4, 3), (90, 160, 200), np.uint8), WIDE)
    copy = np.asarray(fetched(stored(Image.fromarray(own_u8), icc_profile=WIDE), "a.bmp")).astype(int)
    assert np.abs(copy - (90, 160, 200)).max() <= 1
    assert np.abs(own_u8.astype(int) - (90, 160, 200)).max() > 9
    data = stored(Image.fromarray(SCENE[:, :, 0]), icc_profile=gray_profile(1.0))
    (tmp_path / "gray.png").write_bytes(data)
    gray = fetched(data)
    assert np.array_equal(np.asarray(gray), read_image(tmp_path / "gray.png").rgb_u8)
    assert "icc_profile" not in gray.info
    assert (np.asarray(gray)[1:, :, 0] > SCENE[1:, :, 0]).all()  # linear values, encoded for sRGB


def indexed(alpha_u8: np.ndarray) -> Image.Image:
    """Seven colours, each with an opacity of its own."""
    image = Image.fromarray(np.arange(7, dtype=np.uint8)[None].repeat(5, axis=0), "P")
    image.putpalette(SCENE[1].tobytes())
    image.info["transparency"] = alpha_u8[0].tobytes()
    return image


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.bmp"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(mode: str, name: str) -> None:
    if mode == "P":
        image, rgb_u8 = indexed(OPACITY), SCENE[1][None].repeat(5, axis=0)
    elif mode == "LA":
        image = Image.fromarray(np.dstack([SCENE[:, :, 0], OPACITY]), "LA")
        rgb_u8 = SCENE[:, :, :1].repeat(3, axis=2)
    else:
        image, rgb_u8 = Image.fromarray(np.dstack([SCENE, OPACITY])), SCENE
    copy = fetched(stored(image), name)
    assert copy.mode == "RGB"
    assert np.array_equal(np.asarray(copy), on_white(rgb_u8, OPACITY))
    assert (np.asarray(copy)[:, 0] == 255).all()
    assert np.array_equal(np.asarray(copy)[:, 6], rgb_u8[:, 6])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "1", "P"])
def test_plain_images_are_as_the_published_command_writes_them(mode: str) -> None:
    image = Image.fromarray(SCENE).convert(mode)
    data = stored(image, "JPEG" if mode == "CMYK" else "PNG")
    with Image.open(io.BytesIO(data)) as sent:
        expected = stored(sent.convert("RGB"), "JPEG")
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=data))
    with httpx.Client(transport=transport) as client:
        assert fetch_image("a.jpg", "http://x.example/a", client) == expected


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from serving(monkeypatch)


def fetch(folder: Path, rows: list[tuple[str, str]], **more: Any) -> dict[str, set[str]]:
    """Fetch the images of a table; {name: its reasons} of the table of failures."""
    with (folder / "t.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=";").writerows([("file_name", "url"), *rows])
    fetch_images(
        DownloadSettings(folder / "images", csv=folder / "t.csv", attempts=2, threads=4, wait=0.0, **more)
    )
    reasons: dict[str, set[str]] = {}
    if (folder / "images_failed.csv").exists():
        for row in csv.DictReader((folder / "images_failed.csv").open(encoding="utf-8")):
            reasons.setdefault(row["file_name"], set()).add(row["reason"])
    return reasons


RED, BLUE = (stored(Image.new("RGB", (9, 9), colour)) for colour in ("red", "blue"))
UNSAFE = {
    "\u043a\u0430\u0440\u0442\u0438\u043d\u0430-" * 20 + ".png": "cannot be stored: File name too long",
    "\u7d75" * 90 + ".png": "cannot be stored: File name too long",
    "a" * 252 + ".png": "cannot be stored: File name too long",
    "../out.png": "'../out.png' is not the name of an image file",
    "/abs.png": "'/abs.png' is not the name of an image file",
    "..\\out.png": "'..\\\\out.png' is not the name of an image file",
    ".hidden.png": "'.hidden.png' is not the name of an image file",
    "notes.txt": "'notes.txt' is not the name of an image file",
    "": "'' is not the name of an image file",
}


@pytest.mark.parametrize("verify", [False, True])
def test_a_row_that_cannot_be_stored_fails_alone(address: str, tmp_path: Path, verify: bool) -> None:
    Server.files |= {"/red": RED}
    names = [*UNSAFE, "ok.png", "a" * 251 + ".png"]
    reasons = fetch(tmp_path, [(name, f"{address}/red") for name in names], verify=verify)
    assert reasons == {name: {reason} for name, reason in UNSAFE.items()}
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["a" * 251 + ".png", "ok.png"]
    assert Server.asked["/red"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "images_failed.csv", "t.csv"]
    fetch(tmp_path, [(name, f"{address}/red") for name in names], verify=verify)
    assert Server.asked["/red"] == 2


def test_a_folder_that_takes_no_file_is_not_asked_for_again(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Server.files |= {"/red": RED}
    (tmp_path / "images/a.png").mkdir(parents=True)
    reasons = fetch(tmp_path, [("a.png", f"{address}/red"), ("b.png", f"{address}/red")])
    assert [next(iter(reason)).partition(":")[0] for reason in reasons.values()] == [
        f"cannot write {tmp_path}/images/a.png"
    ]
    assert Server.asked["/red"] == 2  # what cannot be written is not fetched twice


@pytest.mark.parametrize("run", range(3))
def test_one_name_with_two_addresses_is_refused_and_equal_rows_are_one(
    address: str, tmp_path: Path, run: int
) -> None:
    Server.files |= {"/red": RED, "/blue": BLUE}
    rows = [("x.png", f"{address}/red"), ("y.png", f"{address}/blue"), ("x.png", f"{address}/blue")]
    rows += [("y.png", f"{address}/blue"), ("z.png", f"{address}/red")] * (run + 1)
    composed, decomposed = "\xe9.png", "e\u0301.png"  # one name on a Mac
    rows += [(composed, f"{address}/red"), (decomposed, f"{address}/blue")]
    reasons = fetch(tmp_path, rows)
    refused = {"the table gives this name 2 different addresses"}
    assert reasons == dict.fromkeys(["x.png", composed, decomposed], refused)
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["y.png", "z.png"]
    assert dict(Server.asked) == {"/red": 1, "/blue": 1}
    with Image.open(tmp_path / "images/y.png") as image:
        assert image.getpixel((1, 1)) == (0, 0, 255)
    listed = list(csv.DictReader((tmp_path / "images_failed.csv").open()))
    assert {row["url"] for row in listed} == {f"{address}/red", f"{address}/blue"}


@pytest.mark.parametrize("mine", ["file_name,url\na,b\n", "notes", ""])
def test_a_file_of_mine_is_no_table_of_failures(address: str, tmp_path: Path, mine: str) -> None:
    Server.files |= {"/red": RED}
    (tmp_path / "mine.csv").write_text(mine)
    with pytest.raises(ValueError, match=r"mine.csv: the table needs one column"):
        fetch(tmp_path, [("a.png", f"{address}/red")], failures=tmp_path / "mine.csv")
    assert (tmp_path / "mine.csv").read_text() == mine
    assert not Server.asked
