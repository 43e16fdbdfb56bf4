"""Properties of mask and depth files: one meaning for every form in which users save them."""

import re
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from ldm.images import normalize, read_depth, read_mask, resize, write_depth, write_mask


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


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("levels", [(0, 255), (20, 235), (0, 1)])
def test_an_indexed_mask_with_a_gray_palette_is_gray(
    tmp_path: Path, suffix: str, levels: tuple[int, int]
) -> None:
    for order in (1, -1):  # the index says nothing: white may come first
        image = Image.fromarray((disk_mask()[:, :] ^ (order < 0)).astype(np.uint8), "P")
        image.putpalette([value for level in levels[::order] for value in [level] * 3])
        path = saved(tmp_path / f"m.{suffix}", image)
        assert np.array_equal(read_mask(path, size=(20, 30)), disk_mask()), order


def test_an_indexed_mask_with_transparency_is_read_as_any_other(tmp_path: Path) -> None:
    image = Image.fromarray(disk_mask().astype(np.uint8), "P")
    image.putpalette([255] * 6)
    assert np.array_equal(read_mask(saved(tmp_path / "m.png", image, transparency=0)), disk_mask())


@pytest.mark.parametrize("kind", ["palette.png", "palette.gif", "palette.bmp", "gray.png"])
def test_the_advice_for_an_id_file_can_be_followed(tmp_path: Path, kind: str) -> None:
    ids = Image.fromarray(disk_mask().astype(np.uint8) * 3, "P")
    ids.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    path = saved(tmp_path / kind, ids if "palette" in kind else Image.fromarray(np.asarray(ids)))
    with pytest.raises(ValueError, match=rf"{kind} is .*0, [13].* make a mask of one id first: ") as caught:
        read_mask(path)
    command = re.search('python -c "(.*)"', str(caught.value))
    assert command is not None
    exec(command[1], {})
    assert np.array_equal(read_mask(next(tmp_path.glob("*_id*.png"))), disk_mask())


def deep_png(path: Path, values: np.ndarray, orientation: int = 1) -> Path:
    """(h, w, c) uint16 as PNG, c = 2 to 4, which Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    h, w, c = values.shape
    header = struct.pack(">IIBBBBB", w, h, 16, {2: 4, 3: 2, 4: 6}[c], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    exif = Image.Exif()
    exif[0x0112] = orientation
    parts = [(b"IHDR", header), (b"eXIf", exif.tobytes()[6:]), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


def deep_ramp() -> np.ndarray:
    """(20, 30) uint16: 600 values in a range of which 8 bits would keep three."""
    return np.arange(1000, 1600, dtype=np.uint16).reshape(20, 30)


def deep_files(folder: Path) -> dict[str, Path]:
    gray, solid = deep_ramp(), np.full((20, 30), 65535, np.uint16)
    files = {
        "gray.png": saved(folder / "gray.png", Image.fromarray(gray)),
        "gray.tiff": saved(folder / "gray.tiff", Image.fromarray(gray)),
        "gray.pgm": saved(folder / "gray.pgm", Image.fromarray(gray)),
        "rgb.tiff": folder / "rgb.tiff",
        "rgb.ppm": folder / "rgb.ppm",
        "rgba.tiff": folder / "rgba.tiff",
    }
    for name in ("rgb.tiff", "rgb.ppm"):
        cv2.imwrite(str(files[name]), np.dstack([gray] * 3))
    cv2.imwrite(str(files["rgba.tiff"]), np.dstack([gray] * 3 + [solid]))
    for name, planes in (("la", [gray, solid]), ("rgb", [gray] * 3), ("rgba", [gray] * 3 + [solid])):
        files[f"{name}.png"] = deep_png(folder / f"{name}.png", np.dstack(planes))
    return files


def test_deep_depth_keeps_every_bit_in_any_number_of_channels(tmp_path: Path) -> None:
    want = np.arange(600).reshape(20, 30) / 599
    for name, path in deep_files(tmp_path).items():
        assert np.abs(read_depth(path, size=(20, 30)) - want).max() < 1e-6, name


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_deep_depth_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    turned = {3: deep_ramp()[::-1, ::-1], 6: np.rot90(deep_ramp(), 1), 8: np.rot90(deep_ramp(), -1)}
    path = deep_png(tmp_path / "a.png", np.dstack([turned[orientation]] * 3), orientation)
    assert np.array_equal(np.rint(read_depth(path) * 599), np.arange(600).reshape(20, 30))


@pytest.mark.parametrize("difference", [3, 500, 40000])
def test_deep_depth_with_different_channels_is_refused(tmp_path: Path, difference: int) -> None:
    gray = deep_ramp()
    path = deep_png(tmp_path / "packed.png", np.dstack([gray, gray, gray + np.uint16(difference)]))
    with pytest.raises(ValueError, match=r"packed\.png is coloured: .*save it as a 16-bit gray PNG"):
        read_depth(path)


def test_a_deep_gray_alpha_tiff_is_refused_with_advice(tmp_path: Path) -> None:
    tags = [(256, 30), (257, 20), (258, 16 | 16 << 16), (259, 1), (262, 1), (273, 138), (277, 2), (278, 20),
            (279, 2400), (338, 2)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 3, 2 if tag == 258 else 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4
    pixels = np.dstack([deep_ramp(), np.full((20, 30), 65535, np.uint16)]).tobytes()
    (tmp_path / "la.tiff").write_bytes(head.ljust(138, b"\0") + pixels)
    with pytest.raises(ValueError, match=r"la\.tiff is damaged, or a kind of TIFF .* depth as gray"):
        read_depth(tmp_path / "la.tiff")


def test_deep_masks_and_ids_keep_small_values_in_several_channels(tmp_path: Path) -> None:
    mask = disk_mask().astype(np.uint16)
    for c in (2, 3):
        path = deep_png(tmp_path / f"{c}.png", np.dstack([mask] * c))
        assert np.array_equal(read_mask(path), disk_mask()), c
    ids = deep_png(tmp_path / "ids.png", np.dstack([mask * 3, mask * 0 + 1, mask * 0]))
    assert np.array_equal(read_mask(ids, label=3 + 256), disk_mask())


@pytest.mark.parametrize(
    ("dtype", "channels", "largest", "limit"),
    [
        (np.uint8, 1, 100, "127 of 255"),
        (np.uint8, 4, 100, "127 of 255"),
        (np.uint16, 1, 255, "32767 of 65535"),
        (np.uint16, 3, 255, "32767 of 65535"),
    ],
)
def test_an_empty_mask_names_the_limit_of_its_bit_depth(
    tmp_path: Path, dtype: type, channels: int, largest: int, limit: str
) -> None:
    pixels = np.zeros((20, 30, channels), dtype)
    pixels[5:9, 5:9] = largest
    pixels[..., 3:] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), pixels)
    with pytest.raises(ValueError, match=rf"no pixel is above {limit}; its values are 0, {largest}: if they"):
        read_mask(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", label=largest * (1 if channels == 1 else 65793)).sum() == 16


@pytest.mark.parametrize(
    "values", [[[2, 5], [3, 4]], [[7, 7], [7, 7]], [[0, 1], [0.5, 1]], [[0, np.nan], [1, 2]]]
)
def test_normalised_in_place_as_in_a_new_array(values: list[list[float]]) -> None:
    depth = np.array(values, np.float32)
    expected = normalize(depth.copy())
    assert expected.min() == 0
    assert expected.max() == float(np.isfinite(depth).all() and np.ptp(depth) > 0)
    assert np.array_equal(normalize(depth, depth), expected)
