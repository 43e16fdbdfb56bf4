"""Uploads are known by their contents, paths stay below the allowed folder, addresses are public ones."""

import io
import os
import re
import socket

import httpx
import numpy as np
import pytest
from PIL import Image

from compose.serve import uploads
from compose.serve.jobs import Job
from compose.serve.settings import ServeSettings
from compose.serve.uploads import (
    fetch,
    named_bytes,
    public,
    public_address,
    store,
    white_is_edit,
    without_paths,
)
from ldm.files import ROOT
from ldm.memory import FOLDER
from tests.images import room
from tests.loopback import Server, jpeg, serving


@pytest.fixture
def job(tmp_path):
    job = Job("1", "edit", tmp_path / "job-1")
    job.inputs.mkdir(parents=True)
    return job


def encoded(kind, size=(20, 10), mode="RGB"):
    buffer = io.BytesIO()
    Image.fromarray(room(size[1], size[0])).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_image_is_stored_as_it_was_sent_under_its_own_kind(job, kind):
    data = encoded(kind)
    path = store(job, "image", data, ServeSettings())
    assert path.read_bytes() == data
    assert path.suffix == f".{kind.lower()}"
    assert path.parent == job.inputs


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x80\x04}.",
        b"PK\x03\x04",
        b"\x89PNG\r\n\x1a\n",
    ],
    ids=["empty", "text", "eps", "svg", "pickle", "zip", "signature only"],
)
def test_what_is_no_image_is_refused_and_not_stored(job, data):
    with pytest.raises(ValueError, match="^mask is not an image; readable are PNG, JPEG, WEBP"):
        store(job, "mask", data, ServeSettings())
    assert list(job.inputs.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (b"9000 9000", "^image has 9000 x 9000 = 81.0 million pixels; at most 40 million are taken$"),
        (b"40000 40000", "^image: too many pixels, at most 40 million$"),
    ],
)
def test_size_is_read_before_pixels_are(job, size, text):
    with pytest.raises(ValueError, match=text):
        store(job, "image", encoded("PPM").replace(b"20 10", size), ServeSettings())


@pytest.fixture
def allowed(tmp_path):
    folder = tmp_path / "allowed"
    (folder / "deep").mkdir(parents=True)
    for path in (
        folder / "a.png",
        folder / "deep" / "b.png",
        tmp_path / "secret.png",
        tmp_path / "allowed2.png",
    ):
        path.write_bytes(path.name.encode())
    (folder / "inside").symlink_to("deep/b.png")
    (folder / "outside").symlink_to("../secret.png")
    (folder / "up").symlink_to("..")
    (folder / "round").symlink_to("round")
    os.mkfifo(folder / "pipe")
    return ServeSettings(allow=(folder,))


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.png", b"a.png"), ("deep/b.png", b"b.png"), ("deep/../a.png", b"a.png"), ("inside", b"b.png")],
)
def test_path_below_the_allowed_folder_is_read(allowed, name, data):
    assert named_bytes("image", name, allowed) == data
    assert named_bytes("image", str(allowed.allow[0] / name), allowed) == data


NAMES = [
    "../secret.png",
    "/etc/passwd",
    "outside",
    "up/secret.png",
    "up/allowed/../secret.png",
    "deep",
    "",
    ".",
    "pipe",
    "round",
    "absent.png",
    "../allowed2.png",
    "a\0b",
    "a" * 250 + "/" + "a" * 250,
    "file:///etc/passwd",
    "~/a.png",
]


@pytest.mark.parametrize(
    "name", ["data:image/png;base64,AAAA", "DATA:,a", "a" * 4097, "http://a.b/" + "a" * 4096]
)
def test_contents_in_place_of_a_path_are_refused_and_not_repeated(allowed, name):
    with pytest.raises(ValueError, match="^image: text is a path or an address; contents are sent as a file"):
        named_bytes("image", name, allowed)


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name)[:30] for name in NAMES])
def test_other_path_is_refused_and_nothing_is_told_of_it(allowed, name):
    message = re.escape(f"image: {name} is no file below the allowed folder")
    with pytest.raises(ValueError, match=f"^{message}$"):
        named_bytes("image", name, allowed)


def test_paths_and_addresses_are_refused_unless_allowed():
    with pytest.raises(ValueError, match="^image must be a file; paths on the server are not read"):
        named_bytes("image", "a.png", ServeSettings())
    for url in ("http://a.example/b.png", "HTTPS://a.example/b.png"):
        with pytest.raises(ValueError, match="^mask: addresses are not fetched here"):
            named_bytes("mask", url, ServeSettings())


def test_file_that_is_too_large_is_not_read_whole(allowed, tmp_path):
    with (allowed.allow[0] / "large.png").open("wb") as file:
        file.truncate(70_000_000)
    with pytest.raises(ValueError, match="^image has more than 64 MB"):
        named_bytes("image", "large.png", allowed)


PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "0.0.0.0",
    "100.64.0.1",
]
PRIVATE += [
    "224.0.0.1",
    "239.1.1.1",
    "255.255.255.255",
    "192.0.2.1",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "ff02::1",
]
PRIVATE += [
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
    "2001:0:1::1",
    "ff0e::1",
]


def resolving(monkeypatch, *addresses):
    asked = []

    def getaddrinfo(host, port, **options):
        asked.append(host)
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, 1, 6, "", (each, port)) for each in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("address", PRIVATE)
def test_address_that_is_not_public_is_refused(monkeypatch, address):
    resolving(monkeypatch, "8.8.8.8", address)
    with pytest.raises(ValueError, match="^image: a.example is not a public address$"):
        public_address("image", "a.example", 80)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_address_is_taken(monkeypatch, address):
    resolving(monkeypatch, address)
    assert public_address("image", "a.example", 80) == address


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/a",
        "http://127.0.0.1/a",
        "http://2130706433/a",
        "http://0x7f.1/a",
        "http://[::1]/a",
        "http://[::ffff:127.0.0.1]/a",
    ],
)
def test_spellings_of_this_machine_are_refused(url):
    with pytest.raises(ValueError, match="is not a public address|is not known"):
        fetch("image", url, 100)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://anne:secret@a.example/b.png", "only plain http"),
        ("http:///b.png", "only plain http"),
        ("http://a.example:99999/b.png", "not an address"),
        ("http://[::1/b.png", "not an address"),
    ],
)
def test_address_in_another_form_is_refused(url, text):
    with pytest.raises(ValueError, match=f"^image: {text}"):
        fetch("image", url, 100)


@pytest.fixture
def site(monkeypatch):
    yield from serving(monkeypatch)


@pytest.fixture
def named_site(site, monkeypatch):
    """The site on this machine under the name a.example, as if its address were public."""
    asked = []

    def check(field, host, port):
        asked.append(host)
        if host != "a.example":
            raise ValueError(f"{field}: {host} is not a public address")
        return "127.0.0.1"

    monkeypatch.setattr(uploads, "public_address", check)
    return site.replace("127.0.0.1", "a.example"), asked


def test_checked_address_is_the_one_connected_to(named_site):
    url, asked = named_site
    Server.files["/a.jpg"] = jpeg(1)
    assert fetch("image", f"{url}/a.jpg", 10_000) == jpeg(1)  # the name itself leads nowhere
    assert asked == ["a.example"]


def test_body_that_is_too_large_is_refused(named_site):
    Server.files["/a.jpg"] = bytes(2_000_001)
    with pytest.raises(ValueError, match="^image has more than 2 MB"):
        fetch("image", f"{named_site[0]}/a.jpg", 2_000_000)


@pytest.mark.parametrize(
    ("luck", "text"),
    [
        (404, "a.example answered 404"),
        (500, "answered 500"),
        ("short", "could not be read"),
        ("hang up", "could not be read"),
    ],
)
def test_failed_answer_is_refused_in_words(named_site, luck, text):
    Server.files["/a.jpg"], Server.luck["/a.jpg"] = jpeg(1), [luck, "always"]
    with pytest.raises(ValueError, match=text):
        fetch("image", f"{named_site[0]}/a.jpg", 10_000)


def redirecting(monkeypatch, *places):
    """Every GET answers with the next redirect."""
    remaining = iter(places)

    def answer(self, method, url, **options):
        class Reply:
            def __enter__(self):
                return httpx.Response(302, headers={"location": next(remaining, "/again")})

            def __exit__(self, *error):
                return None

        return Reply()

    monkeypatch.setattr(httpx.Client, "stream", answer)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("http://127.0.0.1/secret", "127.0.0.1 is not a public"),
        ("//b.example/x", "b.example is not a public"),
        ("file:///etc/passwd", "only plain http"),
        ("gopher://a.example/", "only plain http"),
        ("/again", "more than 5 redirects"),
    ],
)
def test_redirect_is_checked_like_the_first_address(named_site, monkeypatch, place, text):
    redirecting(monkeypatch, place)
    with pytest.raises(ValueError, match=f"^image: .*{text}|^image: {text}"):
        fetch("image", f"{named_site[0]}/a.jpg", 10_000)


def test_mask_with_soft_transparency_is_edited_where_it_is_all_transparent(job):
    alpha = np.tile(np.linspace(0, 255, 20).astype(np.uint8), (10, 1))
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([room(10, 20), alpha])).save(buffer, "PNG")
    path, polarity = white_is_edit(job, store(job, "mask", buffer.getvalue(), ServeSettings()), "mask")
    assert polarity == "alpha 0 = edit"
    assert np.array_equal(np.asarray(Image.open(path)) > 127, alpha == 0)


def test_message_has_fields_and_names_for_paths(job):
    path = job.inputs / "ab12.png"
    names = {str(path): "mask"}
    assert without_paths(f"mask {path} is empty", names) == "mask is empty"
    assert without_paths(f"{ROOT}/assets/tiny: missing unet", {}) == "assets/tiny: missing unet"
    assert without_paths("'/srv/models/big one/a.bin': no", {}) == "'big one/a.bin': no"
    assert without_paths("/srv/models/a.bin, /b: no", {}) == "a.bin, b: no"
    assert without_paths("see https://a.example/b/c or 3/4", {}) == "see https://a.example/b/c or 3/4"


def test_recipe_for_clients_has_no_folder_of_this_machine(tmp_path):
    recipe = {
        "settings": {
            "model": "/srv/models/big",
            "prompts": ["/not a path"],
            "image": f"/tmp/{FOLDER}x/ab.png",
        },
        "model": {"folder": ROOT / "assets" / "tiny" / "inpainter", "lora": None},
        "masks": [f"/tmp/{FOLDER}x/cd.png", tmp_path / "e.png"],
    }
    assert public(recipe) == {
        "settings": {"model": "big", "prompts": ["/not a path"], "image": "memory:ab.png"},
        "model": {"folder": "assets/tiny/inpainter", "lora": None},
        "masks": ["memory:cd.png", "e.png"],
    }
