"""Properties of mask and depth files: one meaning for every form in which users save them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.images import read_depth, read_mask, resize, write_depth, write_mask


def painted(h: int = 24, w: int = 36) -> np.ndarray:
    """(h, w, 3) uint8: a smooth image in which no two corners look alike."""
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    return np.dstack([255 * x / (w - 1), 255 * y / (h - 1), 128 + 60 * (x > y)]).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def disk_mask() -> np.ndarray:
    y, x = np.mgrid[0:20, 0:30]
    return (x - 12) ** 2 + (y - 8) ** 2 < 30


def mask_files() -> dict[str, Image.Image]:
    """The same mask as users save it."""
    mask = disk_mask()
    byte = mask.astype(np.uint8)
    gray = Image.fromarray(byte * 255)
    white, black = np.full((20, 30, 3), 255, np.uint8), np.zeros((20, 30, 3), np.uint8)
    photo = resize(painted(), (20, 30))
    return {
        "0_255.png": gray,
        "0_1.png": Image.fromarray(byte),
        "bilevel.png": gray.convert("1"),
        "rgb.png": gray.convert("RGB"),
        "rgb_0_1.png": Image.fromarray(np.dstack([byte] * 3)),
        "red.png": Image.fromarray(np.dstack([byte * 255, byte * 0, byte * 0])),
        "deep.png": Image.fromarray(byte.astype(np.uint16) * 65535),
        "deep_0_1.png": Image.fromarray(byte.astype(np.uint16)),
        "noisy.jpg": gray,
        "white_alpha.png": Image.fromarray(np.dstack([white, byte * 255])),
        "black_alpha.png": Image.fromarray(np.dstack([black, byte * 255])),
        "cutout.png": Image.fromarray(np.dstack([photo, byte * 255])),
        "opaque.png": gray.convert("RGBA"),
        "gray_alpha.png": Image.fromarray(np.dstack([white[:, :, 0], byte * 255]), "LA"),
    }


@pytest.mark.parametrize("name", sorted(mask_files()))
def test_one_mask_in_every_file_form(tmp_path: Path, name: str) -> None:
    assert np.array_equal(read_mask(saved(tmp_path / name, mask_files()[name]), size=(20, 30)), disk_mask())


def test_ids_need_a_label(tmp_path: Path) -> None:
    ids = np.zeros((20, 30), np.uint8)
    ids[disk_mask()] = 3
    ids[-2:] = 7
    palette = Image.fromarray(ids).convert("P")
    palette.putdata(ids.ravel().tolist())
    wide = np.dstack([ids, ids * 0 + 1, ids * 0])
    files = {
        "palette.png": palette,
        "gray.png": Image.fromarray(ids),
        "deep.png": Image.fromarray(ids.astype(np.uint16)),
    }
    for name, image in files.items():
        path = saved(tmp_path / name, image)
        with pytest.raises(ValueError, match=r"0, 3, 7.*label"):
            read_mask(path)
        assert np.array_equal(read_mask(path, label=3), disk_mask()), name
        with pytest.raises(ValueError, match=r"no pixel with the id 5; present are 0, 3, 7"):
            read_mask(path, label=5)
    path = saved(tmp_path / "panoptic.png", Image.fromarray(wide))
    assert np.array_equal(read_mask(path, label=3 + 256), disk_mask())


def test_masks_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    empty = saved(tmp_path / "empty.png", Image.new("L", (30, 20)))
    with pytest.raises(ValueError, match=r"empty\.png is empty"):
        read_mask(empty)
    write_mask(tmp_path / "m.png", disk_mask())
    with pytest.raises(ValueError, match="30 x 20 pixels, its image is 31 x 20"):
        read_mask(tmp_path / "m.png", size=(20, 31))


def test_depth_of_any_bit_depth_is_normalised(tmp_path: Path) -> None:
    ramp = np.linspace(0.2, 0.7, 600).reshape(20, 30).astype(np.float32)
    want = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    saved(tmp_path / "8.png", Image.fromarray((ramp * 255).astype(np.uint8)))
    saved(tmp_path / "rgb.png", Image.fromarray((ramp * 255).astype(np.uint8)).convert("RGB"))
    saved(tmp_path / "16.png", Image.fromarray((ramp * 65535).astype(np.uint16)))
    saved(tmp_path / "f.tiff", Image.fromarray(ramp))
    for name, error in (("8.png", 0.01), ("rgb.png", 0.01), ("16.png", 1e-4), ("f.tiff", 1e-6)):
        depth_01 = read_depth(tmp_path / name, size=(20, 30))
        assert depth_01.dtype == np.float32
        assert (depth_01.min(), depth_01.max()) == (0, 1)
        assert np.abs(depth_01 - want).max() < error, name


def test_depth_edge_cases(tmp_path: Path) -> None:
    flat = saved(tmp_path / "flat.png", Image.new("L", (30, 20), 77))
    assert not read_depth(flat).any()
    with pytest.raises(ValueError, match=r"colour\.png is coloured"):
        read_depth(saved(tmp_path / "colour.png", Image.fromarray(painted())))
    with pytest.raises(ValueError, match="its image is 9 x 9"):
        read_depth(flat, size=(9, 9))
    saved(tmp_path / "nan.tiff", Image.fromarray(np.full((4, 4), np.nan, np.float32)))
    with pytest.raises(ValueError, match="NaN"):
        read_depth(tmp_path / "nan.tiff")


def test_written_depth_is_read_back(tmp_path: Path) -> None:
    depth_01 = np.random.default_rng(0).random((20, 30)).astype(np.float32)
    depth_01[0, 0], depth_01[0, 1] = 0, 1
    write_depth(tmp_path / "d.png", depth_01)
    assert np.abs(read_depth(tmp_path / "d.png") - depth_01).max() < 1e-4


def test_resize_keeps_type_channels_and_mean() -> None:
    for image in (painted(), painted()[:, :, :1], painted()[:, :, 0].astype(np.float32)):
        small = resize(image, (12, 18))
        assert (small.dtype, small.shape) == (image.dtype, (12, 18, *image.shape[2:]))
        assert abs(float(small.mean()) - float(image.mean())) < 1
    mask = disk_mask()
    large = resize(mask, (80, 120), how="linear")
    assert large.dtype == bool
    assert abs(large.mean() - mask.mean()) < 0.01
    with pytest.raises(ValueError, match="allowed: area, linear, cubic, nearest"):
        resize(painted(), (4, 4), how="lanczos")
