"""Composites of images with profiles, transparency, EXIF data, and results in other formats."""

import json

import numpy as np
import pytest
from PIL import Image

from compose import compose, load_models
from ldm.images import read_image, write_mask
from ldm.result import read_recipe
from ldm.settings.cli import run_app
from run_inference import build_app
from tests.compose.test_pipeline import settings_of
from tests.images import Case, room, thing
from tests.profiles import ADOBE, P3, in_profile, rgb_profile

PROFILES = {"adobe": rgb_profile(ADOBE), "p3": rgb_profile(P3, 2.2)}


def muted(rgb_u8: np.ndarray) -> np.ndarray:
    """The image with colours that every profile here holds."""
    return (64 + rgb_u8 * 0.5).astype(np.uint8)


def composed(case: Case, background: bytes | None, item: bytes | None) -> tuple[np.ndarray, np.ndarray]:
    """The composite in sRGB and its edit mask, of files that look alike whatever their profiles."""
    for name, rgb_u8, profile in (("room", muted(room()), background), ("thing", muted(thing()[0]), item)):
        own_u8 = in_profile(rgb_u8, profile) if profile else rgb_u8
        Image.fromarray(own_u8).save(case.folder / f"{name}.png", icc_profile=profile)
    settings = settings_of(case)
    result = compose(settings, load_models(settings), progress=False)
    own_u8 = np.asarray(Image.open(case.folder / "room.png"))
    assert np.array_equal(result.images_u8[0][~result.edit_mask], own_u8[~result.edit_mask])
    assert result.report["drift"][0]["changed_outside"] == 0
    assert result.images[0].icc_profile == background
    result.save(0, case.out)
    with Image.open(case.out) as image:
        assert image.info.get("icc_profile") == background
    return read_image(case.out).rgb_u8, result.edit_mask


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("where", ["object", "background", "both"])
def test_images_that_look_alike_compose_alike(case: Case, name: str, where: str) -> None:
    plain_u8, edit = composed(case, None, None)
    profile = PROFILES[name]
    again_u8, _ = composed(
        case, None if where == "object" else profile, None if where == "background" else profile
    )
    difference = np.abs(again_u8.astype(int) - plain_u8)
    assert difference[edit].mean() < 1
    assert difference.mean() < 1


def test_a_gray_background_takes_a_profiled_object(case: Case) -> None:
    rgb_u8 = muted(thing()[0])
    Image.fromarray(room()[..., 0]).save(case.folder / "room.png")
    results = []
    for own_u8, profile in ((rgb_u8, None), (in_profile(rgb_u8, PROFILES["adobe"]), PROFILES["adobe"])):
        Image.fromarray(own_u8).save(case.folder / "thing.png", icc_profile=profile)
        assert case.run() == 0
        results.append(case.unchanged_outside(np.repeat(room()[..., :1], 3, axis=2)).astype(int))
    assert np.abs(results[0] - results[1]).mean() < 1


@pytest.mark.parametrize("under", [0, 128])
@pytest.mark.parametrize("compat", [False, True])
def test_what_is_composed_into_transparency_is_seen(case: Case, under: int, compat: bool) -> None:
    before_u8 = np.full((96, 128), 255, np.uint8)
    before_u8[:, 40:] = under
    Image.fromarray(np.dstack([room(), before_u8])).save(case.folder / "room.png")
    settings = settings_of(case, **({"compat": "bifrost"} if compat else {}))
    result = compose(settings, load_models(settings), progress=False)
    alpha_u8 = result.images[0].alpha_u8
    assert alpha_u8 is not None
    assert np.array_equal(alpha_u8[~result.edit_mask], before_u8[~result.edit_mask])
    assert (alpha_u8 >= before_u8).all()
    assert alpha_u8[result.edit_mask].max() == 255
    visible = np.zeros((96, 128), bool)
    visible[result.geometry.window.part] = result.geometry.native_layers.visible
    assert np.median(alpha_u8[visible]) == 255


def test_a_transparent_background_needs_no_pixel_of_its_own(case: Case) -> None:
    Image.fromarray(np.dstack([room(), np.zeros((96, 128), np.uint8)])).save(case.folder / "room.png")
    assert case.run() == 0
    loaded = read_image(case.out)
    assert loaded.alpha_u8 is not None
    assert 0 < (loaded.alpha_u8 == 255).mean() < 1


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_the_suffix_chooses_the_format_and_a_replay_finds_its_recipe(
    case: Case, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.fromarray(room()).save(case.folder / "room.png", exif=exif, dpi=(300, 300))
    out = case.folder / f"a.{suffix}"
    assert case.run("--out", out) == 0
    recipe = read_recipe(out)
    assert recipe == json.loads((case.folder / "a.json").read_text())["recipe"]
    with Image.open(out) as image:
        assert image.format == {"jpg": "JPEG"}.get(suffix, suffix.upper())
        assert image.getexif()[0x010F] == "Maker"
    lossy = any("lossy" in message for message in caplog.messages)
    assert lossy == (suffix == "jpg")
    assert run_app(build_app, ["replay", str(out)]) == 0
    again_u8 = case.unchanged_outside(room(), case.folder / "a_replay.png")
    if not lossy:
        assert np.array_equal(case.unchanged_outside(room(), out), again_u8)


def test_several_samples_take_the_suffix(case: Case) -> None:
    assert case.run("--out", case.folder / "a.webp", "--num-samples", "2") == 0
    assert (case.folder / "a_0.webp").is_file()
    assert (case.folder / "a_1.webp").is_file()


def test_an_indexed_target_mask_is_read_by_the_command(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    target = np.zeros((96, 128), bool)
    target[30:80, 50:90] = True
    results: list[np.ndarray] = []
    for name in ("target.png", "target.gif"):
        if name.endswith("gif"):
            Image.fromarray(target.astype(np.uint8) * 255).save(case.folder / name)
        else:
            write_mask(case.folder / name, target)
        flags = ["--mode", "inpaint", "--target-mask", case.folder / name]
        assert case.run(*flags, without=["--box"]) == 0, capsys.readouterr().err
        results.append(case.unchanged_outside(room()))
    assert np.array_equal(*results)


def test_a_deep_colour_depth_map_hides_as_the_gray_one(case: Case) -> None:
    import cv2

    gray = (np.linspace(0, 1, 96)[:, None].repeat(128, 1) * 1000 + 600).astype(np.uint16)
    results: list[np.ndarray] = []
    for name, values in (
        ("g.png", gray),
        ("c.png", np.dstack([gray] * 3)),
        ("c.tiff", np.dstack([gray] * 3)),
    ):
        cv2.imwrite(str(case.folder / name), values)
        assert case.run("--background-depth", case.folder / name) == 0
        results.append(case.unchanged_outside(room()))
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
