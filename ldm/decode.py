"""Image files to Pillow images and the meaning of their modes; `ldm.images` is what other code calls.

Legend: h w pixels. Every refusal is a ValueError of one line that names the file.
"""

import contextlib
import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

log = logging.getLogger(__name__)

# Raster formats only: Pillow would also hand EPS to an external program.
RASTER_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF", "JPEG2000")
# Pillow's decoders raise all of these on damaged files, depending on the format and on where the damage is.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)
GRAY_TOLERANCE = 24  # of 255; JPEG leaves up to this much colour on a gray image


@contextlib.contextmanager
def opened(path: Path, *, upright: bool = True) -> Iterator[Image.Image]:
    """The decoded first frame of an image file, turned as its EXIF orientation says."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected an image file")
    try:
        handle = path.open("rb")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {(error.strerror or 'unreadable').lower()}") from error
    with handle:
        image = _decode(handle, path)
        if upright:
            try:
                ImageOps.exif_transpose(image, in_place=True)
            except DECODER_ERRORS:  # damaged EXIF data do not make the pixels unreadable
                log.warning("%s: unreadable EXIF data, taken as upright", path)
        yield image


def _decode(handle: io.BufferedReader, path: Path) -> Image.Image:
    """Decode all pixels here, so that no later step meets a damaged file."""
    if not handle.peek(1):
        raise ValueError(f"{path} is empty (zero bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(handle, formats=RASTER_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"{path} claims more than {limit} million pixels; make it smaller first") from None
    except DECODER_ERRORS:
        known = ", ".join(RASTER_FORMATS)
        raise ValueError(
            f"{path} is not an image, or is damaged at its start; readable are {known}"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except DECODER_ERRORS:
        raise ValueError(
            f"{path} is truncated or damaged: its {image.format} data cannot be decoded"
        ) from None
    return image


def is_deep(image: Image.Image) -> bool:
    """Whether Pillow keeps this image as one channel of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def rgb_and_alpha(image: Image.Image, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """(h, w, 3) uint8 and (h, w) uint8 or None. 16-bit gray is scaled; Pillow scales 16-bit colour itself."""
    if is_deep(image):
        gray_u8 = deep_to_u8(image, path)
        return np.repeat(gray_u8[:, :, None], 3, axis=2), None
    transparent = any(band in "Aa" for band in image.getbands()) and image.mode != "LAB"
    target = "RGBA" if transparent or "transparency" in image.info else "RGB"
    try:
        pixels = np.array(image.convert(target))
    except DECODER_ERRORS:
        raise ValueError(
            f"{path} has the colour mode {image.mode}, which is not supported; save it as RGB"
        ) from None
    return np.ascontiguousarray(pixels[:, :, :3]), pixels[:, :, 3].copy() if target == "RGBA" else None


def deep_to_u8(image: Image.Image, path: Path) -> np.ndarray:
    """16-bit gray (h, w) -> uint8 over the full 16-bit range."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{path} has 32-bit values, which have no agreed range; save it with 8 or 16 bits")
    return np.rint(values / 257).astype(np.uint8)


def distinct_values(values: np.ndarray, limit: int = 12) -> str:
    """The distinct values in words, shortened."""
    distinct = np.unique(values)
    tail = f", ... ({len(distinct)} in all)" if len(distinct) > limit else ""
    return ", ".join(f"{value:g}" for value in distinct[:limit]) + tail
