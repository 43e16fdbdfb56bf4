"""Uploads are known by their contents, and paths stay below the allowed folder."""

import io
import os
import re

import numpy as np
import pytest
from PIL import Image

from compose.serve.jobs import Job
from compose.serve.settings import ServeSettings
from compose.serve.uploads import (
    named_bytes,
    public,
    store,
    white_is_edit,
    without_paths,
)
from ldm.files import ROOT
from ldm.temporary import FOLDER
from tests.images import room


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
