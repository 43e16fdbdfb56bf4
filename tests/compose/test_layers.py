"""Layers of a composite: laid over each other they are the composite, in every mode and kind of file."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageCms

from ldm.images import read_image, write_png
from tests.images import Case, room


def opened(path: Path) -> tuple[zipfile.ZipFile, dict[str, np.ndarray]]:
    """The archive, and its layers (h, w, 4) uint8 by name in the frame of the image, the lowest first."""
    archive = zipfile.ZipFile(path)
    image = ElementTree.fromstring(archive.read("stack.xml"))
    layers = {}
    for layer in reversed(image.find("stack")):
        whole = Image.new("RGBA", (int(image.get("w")), int(image.get("h"))))
        part = Image.open(io.BytesIO(archive.read(layer.get("src")))).convert("RGBA")
        whole.paste(part, (int(layer.get("x")), int(layer.get("y"))))
        layers[layer.get("name")] = np.array(whole)
    return archive, layers


def depth_and_mask(
    archive: zipfile.ZipFile, entry: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Depth (h, w) uint16 and mask (h, w) bool of an entry of layers.json, and where they begin."""
    depth, mask = (Image.open(io.BytesIO(archive.read(entry[key]))) for key in ("depth_file", "mask_file"))
    assert depth.mode.startswith("I;16")
    return np.array(depth), np.array(mask) > 0, (entry["y"], entry["x"])


def merged(layers: dict[str, np.ndarray]) -> np.ndarray:
    """Alpha over, from the lowest layer."""
    image = Image.fromarray(np.zeros_like(layers["background"]))
    for layer in layers.values():
        image = Image.alpha_composite(image, Image.fromarray(layer))
    return np.array(image)


OPTIONS = {
    "behind": ["--depth", "0.2,0.3"],
    "in front": ["--depth", "1"],
    "between": ["--depth", "0.45,0.5"],
    "replace": ["--mode", "replace", "--target-mask", "target.png"],
    "id-transfer": ["--mode", "id-transfer", "--target-mask", "target.png"],
    "inpaint": ["--mode", "inpaint", "--target-mask", "target.png"],
    "published": ["--compat", "bifrost"],
}


@pytest.mark.parametrize("words", OPTIONS.values(), ids=OPTIONS)
def test_layers_over_each_other_are_the_composite(case: Case, words):
    words = [str(case.folder / word) if word.endswith(".png") else word for word in words]
    assert case.run("--layers", *words) == 0
    archive, layers = opened(case.out.with_name("a_layers.ora"))
    assert list(layers) == ["background", "around", "object", "front"]
    after, before = np.array(Image.open(case.out).convert("RGBA")), room(*read_image(case.out).size)
    assert np.array_equal(merged(layers), after)
    assert np.array_equal(layers["background"][..., :3], before)
    opaque = layers["object"][..., 3] == 255
    assert set(np.unique(layers["object"][..., 3])) <= {0, 255}
    assert np.array_equal(layers["object"][opaque], after[opaque])
    assert not layers["object"][~opaque].any()
    assert opaque.any()
    front = layers["front"][..., 3] == 255
    assert np.array_equal(layers["front"][front][:, :3], before[front])
    assert not (front & opaque).any()
    about = json.loads(archive.read("layers.json"))
    report = case.report()
    assert {name: about[name] for name in ("box", "depth", "seed")} == {
        name: report[name] for name in ("box", "depth", "seed")
    }
    assert [layer["name"] for layer in about["layers"]] == list(layers)
    depth_u16, mask, (y, x) = depth_and_mask(archive, about["layers"][2])
    assert np.array_equal(mask, opaque[y : y + mask.shape[0], x : x + mask.shape[1]])
    far, near = (65535 * about["depth"][end] for end in ("far", "near"))
    if "id-transfer" not in words and "inpaint" not in words:
        assert far - 1 <= depth_u16[mask].min() <= depth_u16[mask].max() <= near + 1
    if "0.2,0.3" in words:
        assert front.any()


def test_the_file_is_open_raster(case: Case):
    assert case.run("--layers") == 0
    archive, layers = opened(case.out.with_name("a_layers.ora"))
    first = archive.infolist()[0]
    assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
    assert archive.read("mimetype") == b"image/openraster"
    image = ElementTree.fromstring(archive.read("stack.xml"))
    h, w = layers["background"].shape[:2]
    assert (image.get("w"), image.get("h")) == (str(w), str(h))
    whole = np.array(Image.open(io.BytesIO(archive.read("mergedimage.png"))))
    assert np.array_equal(whole, np.array(Image.open(case.out)))
    assert max(Image.open(io.BytesIO(archive.read("Thumbnails/thumbnail.png"))).size) <= 256
    again = case.out.with_name("b.png")
    assert case.run("--layers", "--out", again) == 0
    pair = [path.with_name(f"{path.stem}_layers.ora").read_bytes() for path in (case.out, again)]
    assert pair[0] == pair[1]


def test_each_sample_has_its_own(case: Case):
    assert case.run("--layers", "--num-samples", "2") == 0
    for index in range(2):
        _, layers = opened(case.out.with_name(f"a_{index}_layers.ora"))
        sample = np.array(Image.open(case.out.with_name(f"a_{index}.png")).convert("RGBA"))
        assert np.array_equal(merged(layers), sample)
    assert not case.out.with_name("a_layers.ora").exists()


def test_without_the_option_there_are_none_and_an_earlier_file_is_kept(case: Case):
    assert case.run() == 0
    assert not list(case.out.parent.glob("*.ora"))
    path = case.out.with_name("a_layers.ora")
    path.write_bytes(b"mine")
    assert case.run("--layers") == 0
    assert [old.read_bytes() for old in path.parent.glob("a_layers.old*.ora")] == [b"mine"]
    assert zipfile.is_zipfile(path)


@pytest.mark.parametrize("kind", ["alpha", "profile"])
def test_layers_have_transparency_and_colours_of_the_background(case: Case, kind):
    path = case.folder / "room.png"
    rgb_u8 = read_image(path).rgb_u8
    profile = None
    if kind == "alpha":
        alpha = np.full(rgb_u8.shape[:2], 255, np.uint8)
        alpha[:4] = 90  # far from the object
        write_png(path, np.dstack([rgb_u8, alpha]))
    else:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        Image.fromarray(rgb_u8).save(path, icc_profile=profile)
    assert case.run("--layers") == 0
    archive, layers = opened(case.out.with_name("a_layers.ora"))
    after = np.array(Image.open(case.out).convert("RGBA"))
    opaque = after[..., 3] == 255
    assert np.array_equal(merged(layers)[opaque], after[opaque])
    assert np.array_equal(layers["background"][~opaque], after[~opaque])
    if profile is not None:
        assert Image.open(io.BytesIO(archive.read("data/object.png"))).info["icc_profile"] == profile
