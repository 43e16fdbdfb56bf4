"""Properties of the image border: what is read, what is refused, and that a write is all or nothing."""

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.decode import MAX_PIXELS
from ldm.images import (
    encode_png,
    from_pm1,
    read_depth,
    read_image,
    read_mask,
    to_01,
    to_pm1,
    write_png,
)


def painted(h: int = 24, w: int = 36) -> np.ndarray:
    """(h, w, 3) uint8: a smooth image in which no two corners look alike."""
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    return np.dstack([255 * x / (w - 1), 255 * y / (h - 1), 128 + 60 * (x > y)]).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_png_keeps_every_colour_and_alpha(tmp_path: Path) -> None:
    rgb_u8 = painted()
    alpha_u8 = rgb_u8[:, :, 0].copy()
    write_png(tmp_path / "a.png", rgb_u8, alpha_u8=alpha_u8)
    loaded = read_image(tmp_path / "a.png")
    assert np.array_equal(loaded.rgb_u8, rgb_u8)
    assert loaded.alpha_u8 is not None
    assert np.array_equal(loaded.alpha_u8, alpha_u8)
    assert loaded.size == (24, 36)
    write_png(tmp_path / "b.png", rgb_u8)
    assert read_image(tmp_path / "b.png").alpha_u8 is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    upright = painted()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "turned.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif.tobytes())
    assert np.array_equal(read_image(path).rgb_u8, upright)


def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 24 * 36).reshape(24, 36).astype(np.uint16)
    (tmp_path / "deep.png").write_bytes(encode_png(values))
    rgb_u8 = read_image(tmp_path / "deep.png").rgb_u8
    assert np.array_equal(rgb_u8[:, :, 0], np.rint(values / 257).astype(np.uint8))
    assert np.array_equal(rgb_u8[:, :, 0], rgb_u8[:, :, 2])


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colour_is_scaled_not_clipped(tmp_path: Path, channels: int) -> None:
    cv2 = pytest.importorskip("cv2")
    deep = np.dstack([painted()[:, :, ::-1], np.full((24, 36), 200)])[:, :, :channels].astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    loaded = read_image(tmp_path / "deep.png")
    assert np.abs(loaded.rgb_u8.astype(int) - painted()).max() <= 1
    assert (loaded.alpha_u8 is None) == (channels == 3)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "P", "LA", "YCbCr"])
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = {"CMYK": "jpg", "YCbCr": "jpg"}.get(mode, "png")
    image = Image.fromarray(painted()).convert("L" if mode == "LA" else "RGB").convert(mode)
    loaded = read_image(saved(tmp_path / f"a.{suffix}", image))
    assert loaded.rgb_u8.shape == (24, 36, 3)
    assert loaded.rgb_u8.dtype == np.uint8
    want = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(loaded.rgb_u8 - want).mean() < 8
    assert (loaded.alpha_u8 is not None) == (mode == "LA")


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_becomes_alpha(tmp_path: Path, mode: str) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2:6, 2:6] = 255
    image = Image.fromarray(pixels).convert(mode)
    key = image.getpixel((0, 0))
    loaded = read_image(saved(tmp_path / "a.png", image, transparency=key))
    assert loaded.alpha_u8 is not None
    assert np.array_equal(loaded.alpha_u8 > 0, pixels[:, :, 0] > 0)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=40, lossless=True)
        assert np.array_equal(read_image(tmp_path / name).rgb_u8[4, 4], [255, 0, 0]), name


@pytest.mark.parametrize("size", [(4000, 3000), (64, 64), (1, 1)])
def test_large_and_small_images_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", size, "teal"), compress_level=1)
    assert read_image(path).size == size[::-1]


def refused(path: Path) -> str:
    """The message of the refusal, which is one line, names the file and shows nothing of the decoder."""
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        read_image(path)
    message = str(caught.value)
    assert str(path) in message
    assert not any(word in message for word in ("PIL", "Errno", "Traceback", "BytesIO", "0x"))
    return message


def test_what_is_no_image_is_refused_with_its_name(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nothing.png")
    assert "folder" in refused(tmp_path)
    (tmp_path / "text.jpg").write_text("this is not a photograph")
    assert "not an image" in refused(tmp_path / "text.jpg")
    (tmp_path / "empty.png").touch()
    assert "zero bytes" in refused(tmp_path / "empty.png")
    (tmp_path / "file").touch()
    assert "cannot read" in refused(tmp_path / "file" / "below.png")


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = saved(tmp_path / "a.png", Image.new("RGB", (8, 8)))
    monkeypatch.setattr(Path, "open", denied)
    assert "permission denied" in refused(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tiff", "bmp"])
def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = saved(tmp_path / f"whole.{suffix}", Image.fromarray(noise)).read_bytes()
    for cut in np.linspace(1, len(whole) * 0.98, 25).astype(int):
        path = tmp_path / f"cut{cut}.{suffix}"
        path.write_bytes(whole[:cut])
        refused(path)


def test_damaged_bytes_raise_nothing_but_value_errors(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for suffix in ("jpg", "png", "gif", "tiff"):
        whole = np.frombuffer(
            saved(tmp_path / f"w.{suffix}", Image.fromarray(painted())).read_bytes(), np.uint8
        )
        for number in range(40):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 6)] = rng.integers(0, 256, 6)
            path = tmp_path / f"{number}.{suffix}"
            path.write_bytes(damaged.tobytes())
            with contextlib.suppress(ValueError):
                read_image(path)


@pytest.mark.parametrize("read", [read_image, read_mask, read_depth])
def test_one_limit_of_pixels_holds_for_every_kind_of_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    pixels = np.zeros((1500, 1500), bool)
    pixels[:20] = True
    path = saved(tmp_path / "large.png", Image.fromarray(pixels))
    read(path)
    for limit, claims in (
        (2_000_000, r"1500 x 1500 pixels \(2 million\), more than 2 million"),
        (1_000_000, "2250000 pixels, more than 1 million"),  # more than twice the limit
    ):
        monkeypatch.setattr("ldm.decode.MAX_PIXELS", limit)
        with pytest.raises(ValueError, match=rf"large\.png claims {claims}; make it smaller first"):
            read(path)


def test_the_largest_phone_photographs_are_below_the_limit_and_bombs_are_not_decoded(tmp_path: Path) -> None:
    assert MAX_PIXELS >= 16384 * 12288
    for size in ((20_000, 20_000), (60_000, 60_000)):
        header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", len(header)) + b"IHDR" + header
        chunk += struct.pack(">I", zlib.crc32(b"IHDR" + header)) + struct.pack(">I", 9) + b"IDAT" + b"x" * 13
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
        assert "more than 250 million" in refused(tmp_path / "bomb.png"), "from its header only"


def test_an_image_beyond_the_limit_of_pillow_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.new("1", (1500, 1500)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    assert read_image(path).size == (1500, 1500)


def test_text_chunks_survive_and_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    text = {"bifrost": '{"seed": 1}', "parameters": "Bifr\u00f6st \u2192 sofa"}
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encode_png(painted(), text=text))
    assert Image.open(tmp_path / "a.png").text == text  # type: ignore[attr-defined]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_tensors_and_bytes_convert_without_loss() -> None:
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert np.array_equal(from_pm1(to_pm1(every)), every)
    assert (to_01(every) * 255 - torch.from_numpy(every).permute(2, 0, 1)).abs().max() < 1e-4
    assert to_pm1(every[::-1, ::-1]).shape == (3, 16, 16)
    assert np.array_equal(from_pm1(torch.full((3, 2, 2), 9.0)), np.full((2, 2, 3), 255, np.uint8))
    with pytest.raises(ValueError, match="NaN"):
        from_pm1(torch.full((3, 2, 2), float("nan")))


def test_a_stream_is_not_kept_open(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(painted()))
    loaded = read_image(path)
    path.write_bytes(b"")
    assert np.array_equal(loaded.rgb_u8, painted())
    assert Image.open(io.BytesIO(encode_png(loaded.rgb_u8))).size == (36, 24)
