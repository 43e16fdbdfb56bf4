"""Properties of colour profiles and of painting into an image that has one, or transparency."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from ldm.decode import LoadedImage
from ldm.images import read_image
from tests.images import room, thing
from tests.profiles import ADOBE, P3, PROPHOTO, gray_profile, in_profile, rgb_profile, table_profile

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
WIDE = {"adobe": rgb_profile(ADOBE), "p3": rgb_profile(P3, 2.2), "prophoto": rgb_profile(PROPHOTO, 1.8)}


def profiled(path: Path, rgb_u8: np.ndarray, profile: bytes, mode: str = "RGB") -> Path:
    Image.fromarray(rgb_u8).convert(mode).save(path, icc_profile=profile)
    return path


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_images_that_look_alike_are_read_alike(tmp_path: Path, name: str, suffix: str) -> None:
    own_u8 = in_profile(room(), WIDE[name])
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(own_u8).save(
        path, icc_profile=WIDE[name], **({"lossless": True} if suffix == "webp" else {})
    )
    loaded = read_image(path)
    assert np.abs(own_u8.astype(int) - room()).mean() > 3, "the profile matters"
    assert np.abs(loaded.rgb_u8.astype(int) - room()).mean() < 1
    assert np.array_equal(loaded.own_u8, own_u8)
    assert loaded.icc_profile == WIDE[name]


def test_alpha_and_palettes_keep_their_meaning_with_a_profile(tmp_path: Path) -> None:
    rgb_u8, mask = thing()
    own_u8 = in_profile(rgb_u8, WIDE["adobe"])
    Image.fromarray(np.dstack([own_u8, mask * np.uint8(255)])).save(
        tmp_path / "a.png", icc_profile=WIDE["adobe"]
    )
    loaded = read_image(tmp_path / "a.png")
    assert loaded.alpha_u8 is not None
    assert np.array_equal(loaded.alpha_u8 > 0, mask)
    assert np.abs(loaded.rgb_u8.astype(int) - rgb_u8)[mask].mean() < 3  # saturated stripes leave the gamut
    indexed = Image.fromarray(own_u8).quantize(8)
    indexed.save(tmp_path / "p.png", icc_profile=WIDE["adobe"])
    loaded = read_image(tmp_path / "p.png")
    assert np.array_equal(loaded.own_u8, np.asarray(indexed.convert("RGB")))
    assert not np.array_equal(loaded.own_u8, loaded.rgb_u8)


def test_an_srgb_profile_changes_nothing_and_is_carried(tmp_path: Path) -> None:
    loaded = read_image(profiled(tmp_path / "a.png", room(), SRGB))
    assert np.array_equal(loaded.rgb_u8, room())
    assert (loaded.icc_profile, loaded.stored_u8) == (SRGB, None)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_gray_profiles_are_converted_and_not_carried(tmp_path: Path, mode: str) -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 4, axis=0)
    loaded = read_image(profiled(tmp_path / "a.png", ramp, gray_profile(1.0), mode))
    assert loaded.icc_profile is loaded.stored_u8 is None
    assert (loaded.rgb_u8[..., 0] == loaded.rgb_u8[..., 2]).all()
    if mode != "1":
        assert abs(int(loaded.rgb_u8[0, 55, 0]) - 128) <= 2, "a fifth of the light is half of sRGB"


def test_cmyk_profiles_are_converted(tmp_path: Path) -> None:
    ink = np.zeros((4, 4, 4), np.uint8)
    ink[..., 3] = 255  # black alone: a quarter of all inks in this profile, so L = 75
    for suffix in ("jpg", "tiff"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(ink, "CMYK").save(path, icc_profile=table_profile(b"CMYK"))
        loaded = read_image(path)
        assert np.abs(loaded.rgb_u8.astype(int) - 185).max() <= 4, "CIE L 75 is 185 in sRGB"
        assert loaded.icc_profile is None


def test_a_profile_without_a_way_back_is_converted_and_not_carried(tmp_path: Path) -> None:
    loaded = read_image(
        profiled(tmp_path / "a.png", np.full((4, 4, 3), 191, np.uint8), table_profile(b"RGB "))
    )
    assert np.abs(loaded.rgb_u8.astype(int) - 185).max() <= 4
    assert loaded.icc_profile is loaded.stored_u8 is None


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", b"no profile at all"),
        ("RGB", rgb_profile()[:200]),
        ("RGB", gray_profile(2.2)),
        ("RGB", table_profile(b"CMYK")),
        ("L", rgb_profile()),
        ("CMYK", rgb_profile()),
    ],
)
def test_profiles_that_cannot_hold_count_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str, profile: bytes
) -> None:
    suffix = "tiff" if mode == "CMYK" else "png"
    loaded = read_image(profiled(tmp_path / f"a.{suffix}", room(), profile, mode))
    plain = read_image(profiled(tmp_path / f"b.{suffix}", room(), b"", mode))
    assert np.array_equal(loaded.rgb_u8, plain.rgb_u8)
    assert loaded.icc_profile is None
    assert len(caplog.messages) == 1
    assert f"a.{suffix}: its colour profile cannot be used" in caplog.messages[0]


def painted_over(image: LoadedImage, weight: float = 1.0) -> tuple[LoadedImage, np.ndarray]:
    """A gray square over an image, and where."""
    edit = np.zeros(image.size, bool)
    edit[20:60, 30:70] = True
    gray_u8 = np.full((*image.size, 3), 120, np.uint8)
    return image.painted(gray_u8, np.full(image.size, weight, np.float32), edit), edit


@pytest.mark.parametrize("name", WIDE)
def test_painting_goes_into_the_colours_of_the_file(tmp_path: Path, name: str) -> None:
    saturated = room()
    saturated[::2, ::2] = (255, 0, 20)
    image = read_image(profiled(tmp_path / "a.png", saturated, WIDE[name]))  # outside sRGB in part
    done, edit = painted_over(image)
    assert np.array_equal(done.own_u8[~edit], saturated[~edit]), "outside every byte stays"
    assert np.array_equal(done.rgb_u8[~edit], image.rgb_u8[~edit])
    assert np.abs(done.rgb_u8[edit].astype(int) - 120).max() <= 1
    assert (done.icc_profile, done.alpha_u8) == (WIDE[name], None)
    half, _ = painted_over(image, 0.0)
    assert np.array_equal(half.own_u8, saturated), "weight 0 changes nothing, also outside sRGB"


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("name", ["", *WIDE])
def test_two_paintings_at_once_are_one_after_the_other(tmp_path: Path, name: str, transparent: bool) -> None:
    image = read_image(profiled(tmp_path / "a.png", room(), WIDE.get(name, b"")))
    if transparent:
        image = replace(image, alpha_u8=image.own_u8[..., 0].copy())
    edit, other = np.random.default_rng(0).random((2, 40, 50)) > 0.3
    dark = np.zeros((40, 50, 3), np.uint8), np.full((40, 50), 0.4, np.float32), edit, np.s_[10:50, 20:70]
    light = np.full((40, 50, 3), 200, np.uint8), np.full((40, 50), 0.7, np.float32), other, np.s_[30:70, 5:55]
    together, apart = image.painted(*light, under=dark), image.painted(*dark).painted(*light)
    for field in ("rgb_u8", "own_u8", "alpha_u8"):
        assert np.array_equal(getattr(together, field), getattr(apart, field)), field
    assert not np.array_equal(together.own_u8, image.painted(*light).own_u8)


@pytest.mark.parametrize(("under", "weight", "alpha", "value"), [
    (0, 1.0, 255, 120), (0, 0.5, 128, 120), (128, 1.0, 255, 120), (128, 0.5, 191, 147), (255, 0.5, 255, 160),
    (255, 1.0, 255, 120), (0, 0.0, 0, 200),
])  # fmt: skip
def test_transparent_pixels_become_as_opaque_as_what_lies_over_them(
    under: int, weight: float, alpha: int, value: int
) -> None:
    image = LoadedImage(np.full((96, 128, 3), 200, np.uint8), np.full((96, 128), under, np.uint8))
    done, edit = painted_over(image, weight)
    assert done.alpha_u8 is not None
    assert (done.alpha_u8[~edit] == under).all()
    assert (done.own_u8[~edit] == 200).all()
    assert abs(int(done.alpha_u8[edit].min()) - alpha) <= 1
    assert abs(int(done.own_u8[edit].max()) - value) <= 1
    assert np.array_equal(done.rgb_u8, done.own_u8)
