"""Images with an EXIF orientation whose annotations fit the stored pixels: read as stored, and counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run_dataset_debug
from datasets.inputs import PairOptions
from datasets.sources.inspection import RejectionStats, accepted_samples
from datasets.sources.readers import read_annotated
from datasets.sources.still import FolderConfig
from ldm.images import read_image, write_depth, write_mask
from ldm.settings.cli import run_app
from llava_bifrost.build_dataset.coco import CocoBuild, CocoSource
from tests.conftest import ROOT
from tests.datasets.photographs import write_coco

EXCHANGES = (5, 6, 7, 8)  # orientations that exchange height and width
SIZE = (24, 36)  # (h, w) of the stored pixels


def stored(size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)


def save(path: Path, rgb_u8: np.ndarray, orientation: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb_u8).save(path, exif=exif, lossless=True)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_the_annotation_decides(tmp_path, orientation, suffix):
    path = tmp_path / f"a{suffix}"
    save(path, stored(), orientation)
    upright_u8 = read_image(path).rgb_u8
    same_size_u8, turn = read_annotated(path, upright_u8.shape[:2])
    assert np.array_equal(same_size_u8, upright_u8)
    assert turn is None
    if orientation in EXCHANGES:
        rgb_u8, turn = read_annotated(path, SIZE)
        assert np.array_equal(rgb_u8, stored())
        assert turn is not None
        assert np.array_equal(turn(upright_u8), stored())
    for size in ((24, 24), (36, 35), SIZE[::-1] if orientation not in EXCHANGES else (72, 48)):
        with pytest.raises(ValueError, match=rf"a{suffix} is .* pixels, its mask is {size[1]} x {size[0]}"):
            read_annotated(path, size)


def own_folder(home: Path, upright_depth: bool) -> FolderConfig:
    """Four images of which two are turned by EXIF; masks of all, made on the stored pixels but for one."""
    h, w = 120, 160
    ramp = np.repeat(np.linspace(0, 1, w, dtype=np.float32)[None], h, 0)
    for name, orientation, as_stored in (("a", 6, True), ("b", 1, True), ("c", 8, False), ("d", 8, True)):
        save(home / f"images/{name}.png", stored((h, w)), orientation)
        mask = np.zeros((h, w), bool)
        mask[30:80, 40:90] = True
        quarters = {1: 0, 6: -1, 8: 1}[orientation]  # from stored to upright
        write_mask(home / f"masks/{name}.png", np.rot90(mask, 0 if as_stored else quarters))
        turned = upright_depth or not as_stored
        write_depth(home / f"depth/{name}.png", np.rot90(ramp, quarters if turned else 0))
    return FolderConfig(root=home)


@pytest.mark.parametrize("upright_depth", [True, False])
def test_examples_show_the_stored_pixels_and_their_depth(tmp_path, upright_depth):
    source = own_folder(tmp_path, upright_depth).open()
    for index, name in enumerate("abcd"):
        inputs = source.example(index, np.random.default_rng(0))
        expected_u8 = stored((120, 160)) if name != "c" else read_image(tmp_path / "images/c.png").rgb_u8
        assert np.array_equal(inputs.background_u8, expected_u8)
        assert inputs.background_u8.shape[:2] == inputs.target_mask.shape == inputs.background_depth_01.shape
        if name != "c":
            assert np.allclose(inputs.background_depth_01[7], np.linspace(0, 1, 160), atol=1e-3)
    assert {path.name for path in source.as_stored} == {"a.png", "d.png"}


def debug(*arguments: str) -> int:
    config = str(ROOT / "configs/datasets.yaml")
    return run_app(run_dataset_debug.build_app, ["--source", "folder", "--config", config, *arguments])


def test_reports_count_what_was_read_as_stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_folder(tmp_path / "mine", upright_depth=True)
    shutil.copy(tmp_path / "mine/masks/a.png", tmp_path / "mine/masks/a_1.png")
    assert debug("--validate", "--out", "r.json", "folder.root=mine") == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["items"], report["sound"], report["read_as_stored"]) == (5, 5, 2)
    assert report["objects"] == {"accepted": 5}
    (tmp_path / "mine/masks/a_1.png").unlink()
    stats, options = RejectionStats("folder"), PairOptions(size=(64, 64), reference_size=56)
    assert len(list(accepted_samples(FolderConfig(root=Path("mine")).open(), stats, options, 4, 0))) == 4
    assert "images read as stored, not by their EXIF orientation: 2" in stats.table()
    (tmp_path / "mine/images/a.png").unlink()
    save(tmp_path / "mine/images/a.png", stored((120, 161)), 6)
    assert debug("--validate", "--out", "r.json", "folder.root=mine") == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["sound"], report["read_as_stored"]) == (3, 1)
    assert "a.png is 120 x 161 pixels, its mask is 160 x 120" in report["problems"]["a"][0]


def test_photographs_of_the_locator_are_read_as_stored(tmp_path, small_depth_network, caplog):
    home = write_coco(tmp_path)
    for path in sorted((home / "images").iterdir()):
        save(path, read_image(path).rgb_u8, 6)
    settings = CocoBuild(
        out=tmp_path / "out", annotations=home / "instances.json", images=home / "images",
        depth=str(small_depth_network), eraser="opencv", device="cpu",
    )  # fmt: skip
    source = CocoSource(settings)
    prepared = [item for item in source.prepare(range(2)) if item.rgb_u8 is not None]
    assert prepared
    assert all(item.rgb_u8.shape[:2] == item.photograph.size_hw for item in prepared)
    assert "is read as stored: its annotations ignore its EXIF orientation" in caplog.text


def test_damaged_exif_data_do_not_turn_an_image(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(stored()).save(
        path, exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\xff"
    )
    assert read_annotated(path, SIZE)[1] is None
    with pytest.raises(ValueError, match="a.jpg is 36 x 24 pixels, its mask is 24 x 36"):
        read_annotated(path, SIZE[::-1])
