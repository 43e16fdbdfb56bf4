"""Properties of what a command leaves behind: recipe, report, drift, timings."""

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from ldm.decode import LoadedImage
from ldm.images import encode_png, read_image
from ldm.result import StageTimer, library_versions, measure_drift, read_recipe, result_paths, save_result


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)


RECIPE = {
    "settings": {"steps": 20, "mode": "place", "box": [0.1, 0.2, 0.5, 0.6]},
    "seeds": [7],
    "note": "Bifr\u00f6st",
}


def test_the_recipe_comes_back_from_the_image(tmp_path: Path) -> None:
    png, beside = save_result(tmp_path / "out" / "a.png", noise(), RECIPE, {"seconds": {"denoise": 1.5}})
    assert read_recipe(png) == RECIPE
    report = json.loads(beside.read_text())
    assert report.pop("image_sha256") == hashlib.sha256(png.read_bytes()).hexdigest()
    assert report == {"seconds": {"denoise": 1.5}, "recipe": RECIPE}
    assert np.array_equal(read_image(png).rgb_u8, noise())


def test_the_image_is_there_before_the_report_that_vouches_for_it(tmp_path: Path, monkeypatch) -> None:
    png, beside = save_result(tmp_path / "a.png", noise(), RECIPE, {})
    before, replace, renamed = beside.read_bytes(), os.replace, []

    def killed(source: Path, target: Path) -> None:
        if renamed:
            raise KeyboardInterrupt
        renamed.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_result(tmp_path / "a.png", 255 - noise(), RECIPE, {}, overwrite=True)
    assert renamed == [png]
    assert beside.read_bytes() == before
    assert json.loads(before)["image_sha256"] != hashlib.sha256(png.read_bytes()).hexdigest()
    assert "settings.steps: 20" in Image.open(png).text["parameters"]  # type: ignore[attr-defined]


def test_timings_do_not_reach_the_png(tmp_path: Path) -> None:
    first, _ = save_result(tmp_path / "a.png", noise(), RECIPE, {"seconds": {"denoise": 1.5}})
    second, _ = save_result(tmp_path / "b.png", noise(), RECIPE, {"seconds": {"denoise": 2.5}})
    assert first.read_bytes() == second.read_bytes()


def test_alpha_is_carried(tmp_path: Path) -> None:
    alpha_u8 = noise()[:, :, 0]
    png, _ = save_result(tmp_path / "a.png", LoadedImage(noise(), alpha_u8), RECIPE, {})
    alpha_back = read_image(png).alpha_u8
    assert alpha_back is not None
    assert np.array_equal(alpha_back, alpha_u8)


def test_paths_and_numpy_values_are_recorded(tmp_path: Path) -> None:
    recipe = {
        "model": Path("assets") / "tiny",
        "seed": np.int64(3),
        "depth": np.float32(0.5),
        "box": np.arange(2),
    }
    png, _ = save_result(tmp_path / "a.png", noise(), recipe, {})
    assert read_recipe(png) == {"model": "assets/tiny", "seed": 3, "depth": 0.5, "box": [0, 1]}


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_what_json_cannot_hold_is_refused_and_nothing_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match=r"a\.(png|json) cannot record"):
        save_result(tmp_path / "a.png", noise(), {}, {"value": value})
    assert list(tmp_path.iterdir()) == []


def test_the_pair_is_written_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(ValueError, match=r"a\.json"):
        save_result(tmp_path / "a.png", noise(), RECIPE, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ValueError, match=r"written as \.png, .*got 'a\.bmp'"):
        save_result(tmp_path / "a.bmp", noise(), RECIPE, {})
    assert result_paths("x/y.png") == (Path("x/y.png"), Path("x/y.json"))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_result(tmp_path / "b.png", noise(), RECIPE, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_image_without_recipe_says_so(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match=r"plain\.png carries no recipe"):
        read_recipe(tmp_path / "plain.png")
    Image.fromarray(noise()).save(tmp_path / "photo.jpg")
    with pytest.raises(ValueError, match=r"photo\.jpg is no PNG .*photo\.json does not hold it"):
        read_recipe(tmp_path / "photo.jpg")


@pytest.mark.parametrize("chunk", ["{", "[1]"])
def test_a_damaged_recipe_says_so(tmp_path: Path, chunk: str) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(noise(), text={"bifrost": chunk}))
    with pytest.raises(ValueError, match=r"a\.png carries a damaged recipe"):
        read_recipe(tmp_path / "a.png")


def test_drift_counts_pixels_on_both_sides_of_the_mask() -> None:
    before, mask = noise(), np.zeros((20, 30), bool)
    mask[:10] = True
    after = before.copy()
    after[2, 3, 1] ^= 1
    assert measure_drift(before, after, mask) == {
        "changed_outside": 0,
        "max_abs_outside": 0,
        "changed_inside": 1,
        "edit_fraction": 0.5,
    }
    after[15, 4] = 255 - before[15, 4]
    after[16, 4, 0] ^= 1
    drift = measure_drift(before, after, mask)
    assert drift["changed_outside"] == 2
    assert drift["max_abs_outside"] == np.abs(255 - 2 * before[15, 4].astype(int)).max()


def test_drift_of_a_full_mask_and_of_other_sizes() -> None:
    everything = np.ones((20, 30), bool)
    assert measure_drift(noise(0), noise(1), everything)["changed_outside"] == 0
    with pytest.raises(ValueError, match="one size"):
        measure_drift(noise(), noise()[:10], everything)


def test_stages_add_up() -> None:
    timer = StageTimer()
    for _ in range(2):
        with timer.stage("sleep"):
            time.sleep(0.01)
    with pytest.raises(ValueError, match="x"), timer.stage("fails"):
        raise ValueError("x")
    report = timer.report()
    assert report["sleep"] >= 0.02
    assert set(report) == {"sleep", "fails", "total"}


def test_versions_name_the_libraries_that_decide_the_pixels() -> None:
    assert {"torch", "numpy", "diffusers"} <= set(library_versions())


# Made once: a profile holds the second it was made in.
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def carried(alpha_u8: np.ndarray | None = None) -> LoadedImage:
    """An image with all that a result carries on."""
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    return LoadedImage(noise(), alpha_u8, PROFILE, exif=exif.tobytes(), dpi=(300.0, 300.0))


@pytest.mark.parametrize("suffix", [".png", ".webp", ".PNG", ".WebP"])
def test_lossless_results_keep_every_pixel(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path, beside = save_result(tmp_path / f"a{suffix}", carried(noise(1)[..., 0]), RECIPE, {})
    loaded = read_image(path)
    assert loaded.alpha_u8 is not None
    assert np.array_equal(loaded.rgb_u8, noise())
    assert np.array_equal(loaded.alpha_u8, noise(1)[..., 0])
    assert loaded.icc_profile == carried().icc_profile
    assert read_recipe(path) == RECIPE
    assert "drift_measured" not in json.loads(beside.read_text())
    assert not caplog.messages


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_a_lossy_result_says_when_its_drift_was_measured(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path, beside = save_result(tmp_path / f"a{suffix}", carried(), RECIPE, {"drift": {}})
    with Image.open(path) as image:
        assert (image.format, image.size, image.info["dpi"]) == ("JPEG", (30, 20), (300, 300))
        assert image.info["icc_profile"] == carried().icc_profile
    assert "before" in json.loads(beside.read_text())["drift_measured"]
    assert [message for message in caplog.messages if "lossy; the drift was measured before" in message]
    assert read_recipe(path) == RECIPE


def test_a_recipe_of_another_format_is_not_taken(tmp_path: Path) -> None:
    save_result(tmp_path / "a.jpg", noise(), RECIPE, {})
    save_result(tmp_path / "a.png", noise(), {**RECIPE, "seeds": [8]}, {})
    assert read_recipe(tmp_path / "a.png")["seeds"] == [8]
    with pytest.raises(ValueError, match=r"a\.jpg is no PNG .*a\.json does not hold it"):
        read_recipe(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / "a.old1.jpg")
    assert read_recipe(tmp_path / "a.old1.jpg") == RECIPE


def test_transparency_is_laid_on_white_where_a_format_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = LoadedImage(np.zeros((32, 32, 3), np.uint8), np.full((32, 32), 51, np.uint8))
    path, _ = save_result(tmp_path / "a.jpg", image, RECIPE, {})
    assert np.abs(read_image(path).rgb_u8.astype(int) - 204).max() <= 1
    assert [message for message in caplog.messages if "JPEG has no transparency" in message]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("out", ["png", "jpg", "webp"])
def test_exif_data_and_resolution_of_a_photograph_are_kept(tmp_path: Path, suffix: str, out: str) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    exif.get_ifd(0x8769)[0x829A] = 0.01  # exposure time
    Image.fromarray(noise()).save(tmp_path / f"a.{suffix}", exif=exif, dpi=(240, 240))
    path, _ = save_result(tmp_path / f"b.{out}", read_image(tmp_path / f"a.{suffix}"), RECIPE, {})
    with Image.open(path) as image:
        kept = image.getexif()
        assert (image.size, kept.get(0x0112, 1)) == ((20, 30), 1), "upright once"
        if suffix != "tiff":
            assert kept[0x010F] == "Maker"
            assert float(kept.get_ifd(0x8769)[0x829A]) == 0.01
        if "webp" not in (suffix, out):
            assert round(image.info["dpi"][0]) == 240


def test_damaged_exif_data_are_left_behind(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f", dpi=(0, 0))
    path, _ = save_result(tmp_path / "b.png", read_image(tmp_path / "a.jpg"), RECIPE, {})
    assert read_image(path).size == (20, 30)
