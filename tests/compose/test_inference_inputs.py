"""What `run_inference.py image` accepts: any image, size, place, depth and name."""

import logging
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from compose import ComposeSettings, compose, load_models
from compose.sheet import sheet_rows
from ldm.images import encode_png, read_image, write_depth, write_mask, write_png
from ldm.settings.cli import run_app
from run_inference import build_app
from tests.images import Case, room, room_depth, thing


def as_kind(kind: str, path: Path) -> np.ndarray:
    """Write the room as a file of this kind; returns it as 8-bit RGB, which the composite must keep."""
    rgb_u8 = room()
    image = Image.fromarray(rgb_u8)
    if kind == "rgba":
        write_png(path, rgb_u8, alpha_u8=rgb_u8[..., 0])
    elif kind == "16-bit":
        path.write_bytes(encode_png(rgb_u8[..., 1].astype(np.uint16) * 257))
    elif kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        stored = Image.fromarray(np.ascontiguousarray(np.rot90(rgb_u8)))
        stored.save(path, "PNG", exif=exif.tobytes())
    elif kind == "jpeg":
        image.save(path, "JPEG")
    elif kind == "cmyk":
        image.convert("CMYK").save(path, "TIFF")
    else:
        modes = {"gray": "L", "palette": "P", "1-bit": "1", "gray and alpha": "LA"}
        image.convert(modes[kind]).save(path, "PNG")
    return read_image(path).rgb_u8


KINDS = ["rgba", "16-bit", "gray", "gray and alpha", "cmyk", "palette", "1-bit", "exif", "jpeg"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_background_and_object(case: Case, kind: str) -> None:
    path = case.folder / "odd.img"
    expected = as_kind(kind, path)
    assert case.run("--background", path) == 0
    case.unchanged_outside(expected)
    alpha_u8 = read_image(case.out).alpha_u8
    if "a" in kind and kind in ("rgba", "gray and alpha"):
        before_u8 = read_image(path).alpha_u8
        assert alpha_u8 is not None
        assert before_u8 is not None
        changed = (read_image(case.out).rgb_u8 != expected).any(axis=2)
        assert (alpha_u8 >= before_u8).all()
        assert (alpha_u8 != before_u8)[~changed].mean() < 0.05
        assert alpha_u8[changed].max() == 255, "what was painted is seen"
    else:
        assert alpha_u8 is None
    write_mask(case.folder / "odd_mask.png", np.pad(np.ones((60, 60), bool), ((20, 16), (30, 38))))
    assert case.run("--object", path, "--object-mask", case.folder / "odd_mask.png") == 0
    case.unchanged_outside(room())


def test_a_turned_photograph_keeps_its_displayed_orientation(case: Case) -> None:
    path = case.folder / "turned.png"
    shown = as_kind("exif", path)
    assert np.array_equal(shown, room())
    with Image.open(path) as stored:
        assert stored.size == (96, 128)
    assert case.run("--background", path) == 0
    with Image.open(case.out) as image:
        assert (image.size, image.getexif().get(0x0112, 1)) == ((128, 96), 1)
    case.unchanged_outside(room())


def test_the_colour_profile_of_a_photograph_stays(case: Case) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = case.folder / "profiled.png"
    for mode, kept in (("RGB", profile), ("L", None)):  # an RGB profile on a gray file is a mistake
        Image.fromarray(room()).convert(mode).save(path, icc_profile=profile)
        assert case.run("--background", path) == 0
        with Image.open(case.out) as image:
            assert image.info.get("icc_profile") == kept


def test_an_object_is_cut_out_by_its_alpha_or_by_grabcut(case: Case) -> None:
    rgb_u8, mask = thing()
    write_png(case.folder / "alpha.png", rgb_u8, alpha_u8=mask.astype(np.uint8) * 255)
    for name, how in (("alpha.png", "alpha"), ("thing.png", "grabcut")):
        assert case.run("--object", case.folder / name, without=["--object-mask"]) == 0
        assert case.report()["object_mask"] == how


SIZES = [(64, 64), (48, 640), (640, 48), (3000, 4000), (9, 9)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_backgrounds_of_any_size_and_aspect(case: Case, size: tuple[int, int]) -> None:
    path, background_u8 = case.folder / "sized.png", room(*size)
    Image.fromarray(background_u8).save(path, compress_level=1)
    without = ["--background-depth", "--depth"]
    start = time.perf_counter()
    assert case.run("--background", path, "--depth-model", case.depth_model, without=without) == 0
    assert time.perf_counter() - start < 60
    case.unchanged_outside(background_u8)


BORDERS = ["0,0.2,0.4,0.9", "0.6,0.2,1,0.9", "0.3,0,0.7,0.6", "0.3,0.5,0.7,1", "0,0,1,1", "0.99,0.99,1,1"]


@pytest.mark.parametrize("box", BORDERS)
def test_a_box_may_touch_every_border(case: Case, box: str) -> None:
    assert case.run(f"--box={box}", "--depth", "1") == 0
    case.unchanged_outside(room())


def test_spaces_and_other_alphabets_in_names(case: Case) -> None:
    folder = case.folder / "m\u00f6bel und \u6905\u5b50"
    folder.mkdir()
    for name in ("room.png", "thing.png"):
        shutil.copy(case.folder / name, folder / f"ein {name}")
    out = folder / "Ergebnis \u00fc.png"
    flags = ["--background", folder / "ein room.png", "--object", folder / "ein thing.png", "--out", out]
    assert case.run(*flags, "--sheet") == 0
    case.unchanged_outside(room(), out)
    assert out.with_name("Ergebnis \u00fc_sheet.png").is_file()
    assert run_app(build_app, ["replay", str(out)]) == 0
    assert out.with_name("Ergebnis \u00fc_replay.png").read_bytes() == out.read_bytes()


def test_a_depth_map_of_another_resolution_is_fitted(case: Case, caplog) -> None:
    caplog.set_level(logging.INFO)
    small = case.folder / "small_depth.png"
    small.write_bytes(encode_png((room_depth(48, 64) * 65535).astype(np.uint16)))
    assert case.run("--background-depth", small) == 0
    assert "depth map: resized from 64 x 48 to 128 x 96" in caplog.text
    case.unchanged_outside(room())


def test_draw_is_inpaint(case: Case) -> None:
    flags = ["--target-mask", case.folder / "target.png"]
    images = []
    for mode in ("inpaint", "draw"):
        assert case.run("--mode", mode, *flags, without=["--box", "--depth"]) == 0
        assert case.report()["mode"] == "inpaint"
        images.append(case.unchanged_outside(room()))
    assert np.array_equal(*images)


@pytest.mark.parametrize("mode", ["replace", "id-transfer", "inpaint"])
def test_a_target_mask_gives_the_box(case: Case, mode: str) -> None:
    assert case.run("--mode", mode, "--target-mask", case.folder / "target.png", without=["--box"]) == 0
    assert case.report()["box"] == [50 / 128, 30 / 96, 90 / 128, 80 / 96]
    result_u8 = case.unchanged_outside(room())
    if mode == "inpaint":
        target = np.zeros((96, 128), bool)
        target[30:80, 50:90] = True
        assert not (result_u8 != room()).any(axis=2)[~target].any()


def test_one_depth_is_a_range_about_it(case: Case) -> None:
    assert case.run("--depth", "0.6") == 0
    one = case.report()["depth"]
    image = read_image(case.out).rgb_u8
    assert case.run("--depth", f"{one['far']!r},{one['near']!r}") == 0
    assert case.report()["depth"] == {**one, "source": "range"}
    assert np.array_equal(read_image(case.out).rgb_u8, image)


def test_without_a_depth_the_foot_of_the_box_is_used_and_said(case: Case, caplog) -> None:
    caplog.set_level(logging.INFO)
    assert case.run(without=["--depth"]) == 0
    depth = case.report()["depth"]
    assert depth["source"] == "foot of the box"
    there = float(room_depth()[int(0.9 * 96) - 1, 64])
    assert depth["far"] < there < depth["near"]
    assert "the background's at the bottom edge of the box" in caplog.text


def doubtful(case: Case, name: str) -> Path:
    """An image of an object on white that GrabCut finds whole, cut off, or with a second thing beside it."""
    rgb_u8 = np.full((96, 128, 3), 250, np.uint8)
    y, x = np.mgrid[0:96, 0:128]
    bodies = {"whole": (64, 48), "cut off": (64, 90), "two": (40, 48)}
    cx, cy = bodies[name]
    rgb_u8[(x - cx) ** 2 + (y - cy) ** 2 < 30**2] = (200, 40, 30)
    path = case.folder / "photo.png"
    write_png(path, rgb_u8)
    return path


@pytest.mark.parametrize(
    ("name", "reasons"), [("whole", []), ("cut off", ["it touches the lower border of the image"])]
)
def test_a_doubtful_object_mask_is_said_and_recorded(case: Case, caplog, name: str, reasons: list) -> None:
    path = doubtful(case, name)
    assert case.run("--object", path, without=["--object-mask"]) == 0
    assert case.report()["object_mask_doubts"] == reasons
    said = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert [line for line in said if "object mask may be wrong" in line] == [
        f"{path}: the object mask may be wrong: {reason}; see the sheet, or give --object-mask or --sam"
        for reason in reasons
    ]


@pytest.mark.parametrize("mask", [True, False])
def test_a_mask_that_the_user_gave_is_not_doubted(case: Case, caplog, mask: bool) -> None:
    path = doubtful(case, "cut off")
    cut = read_image(path).rgb_u8[..., 1] < 128
    write_mask(case.folder / "own.png", cut)
    write_png(case.folder / "cut.png", read_image(path).rgb_u8, alpha_u8=np.uint8(255) * cut)
    given = ["--object", path, "--object-mask", case.folder / "own.png"]
    without = [] if mask else ["--object-mask"]
    assert case.run(*(given if mask else ["--object", case.folder / "cut.png"]), without=without) == 0
    assert case.report()["object_mask_doubts"] == []
    assert "may be wrong" not in caplog.text


@pytest.mark.parametrize(("depth", "warned"), [("1", False), ("0.6", False), ("HIDDEN", True)])
def test_an_almost_hidden_object_is_said(case: Case, caplog, depth: str, warned: bool) -> None:
    near = np.full((96, 128), 0.9, np.float32)
    near[46:55, 60:69] = 0.0
    write_depth(case.folder / "near.png", near)
    extra = (
        ["--background-depth", case.folder / "near.png", "--depth", "0.2"] if warned else ["--depth", depth]
    )
    assert case.run(*extra) == 0
    visible = case.report()["visible_fraction"]
    assert (0 < visible < 0.05) == warned
    message = f"nearer objects hide all but {100 * visible:.1f} % of the object: raise --depth, or move it"
    assert (message in caplog.text) == warned


def test_the_sheet_shows_the_outline_of_the_mask(case: Case) -> None:
    files = {name: case.folder / f"{name}.png" for name in ("background", "object")}
    (case.folder / "room.png").rename(files["background"])
    (case.folder / "thing.png").rename(files["object"])
    place = {"box": (0.3, 0.2, 0.7, 0.9), "depth": (0.6,), "background_depth": case.folder / "depth.png"}
    settings = ComposeSettings(**files, **place, object_mask=case.folder / "mask.png", model=case.model)
    result = compose(settings, load_models(settings), progress=False)
    shown = sheet_rows(result)[0][0][1]
    mask = result.geometry.inputs.reference_mask
    red = (shown == (255, 40, 40)).all(axis=2)
    outline = mask & ~cv2.erode(mask.astype(np.uint8), np.uint8([[0, 1, 0], [1, 1, 1], [0, 1, 0]])).astype(
        bool
    )
    assert outline.any()
    assert red[outline].all()
    assert not red[cv2.erode(mask.astype(np.uint8), np.ones((5, 5))).astype(bool)].any()
    assert (shown[~mask & ~red] == 255).all()
