"""Image files decoded: upright (h, w), in sRGB, which networks know. What is painted goes back into the
colours of the file, whose profile, EXIF data and resolution the result carries on.
"""

import contextlib
import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms, ImageOps

from ldm.files import first_line, same_file

log = logging.getLogger(__name__)

# Raster formats only: Pillow would also hand EPS to an external program.
RASTER_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF", "JPEG2000")
TURNING = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where Pillow finds an orientation
# Pillow's decoders raise all of these on damaged files, depending on the format and on where the damage is.
DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error, zlib.error)  # fmt: skip
MAX_PIXELS = 250_000_000  # chosen: the largest phone sensors have 200 million; RGB then takes 750 MB
MAX_SRGB_STEP = 1  # of 255; a profile that moves no colour further is sRGB up to rounding
BLOCK_ROWS = 64  # of an image; several arrays of so many rows stay in the cache
SCENE_SIDE = 192  # pixels of the longer side; the small networks were trained on scenes of 64 to 128
LOSSY = ("JPEG", "MPO", "HEIF", "AVIF")  # formats of photographs; rendered scenes are stored without loss
RENDERED = {"Software": "datasets.scenes"}  # text of the PNG file of a rendered scene
SIXTEEN_BITS = "bytes of a file with several 16-bit channels"  # key in Image.info


def row_blocks(height: int) -> Iterator[slice]:
    """Blocks of rows that stay in the processor's cache; large images are several times faster by them."""
    return (slice(top, top + BLOCK_ROWS) for top in range(0, height, BLOCK_ROWS))


Overlay = tuple[np.ndarray, np.ndarray, np.ndarray, Any]  # what `LoadedImage.painted` lays over an image


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """A decoded image, upright."""

    rgb_u8: np.ndarray  # (h, w, 3) uint8, sRGB
    alpha_u8: np.ndarray | None = None  # (h, w) uint8, None when the file has no transparency
    icc_profile: bytes | None = None  # of an RGB file that has one; None: sRGB
    stored_u8: np.ndarray | None = None  # (h, w, 3) uint8 in the profile's colours, None: they are sRGB
    exif: bytes | None = None  # without the orientation
    dpi: tuple[float, float] | None = None
    photograph: bool | None = None  # by the format or RENDERED of its file; None: neither says anything

    @property
    def is_photograph(self) -> bool:
        """Whether the small networks of rendered scenes are of no use for it.

        Where its file does not say so, every image of more than SCENE_SIDE pixels a side is a photograph.
        """
        return max(self.size) > SCENE_SIDE if self.photograph is None else self.photograph

    @property
    def size(self) -> tuple[int, int]:  # (h, w)
        return self.rgb_u8.shape[0], self.rgb_u8.shape[1]

    @property
    def own_u8(self) -> np.ndarray:
        """(h, w, 3) uint8 in the colours of the file."""
        return self.rgb_u8 if self.stored_u8 is None else self.stored_u8

    def cut(self, part: Any) -> "LoadedImage":
        names = ("rgb_u8", "alpha_u8", "stored_u8")
        held = {name: pixels for name in names if (pixels := getattr(self, name)) is not None}
        return replace(self, **{name: pixels[part] for name, pixels in held.items()})

    def painted(
        self, image_u8: np.ndarray, weight_01: np.ndarray, edit: np.ndarray, part: Any = np.s_[:, :],
        under: Overlay | None = None,
    ) -> "LoadedImage":  # fmt: skip
        """The image with another one laid over it; every pixel outside `edit` keeps its bytes.

        image_u8: (n, m, 3) sRGB;  weight_01: (n, m), its opacity;  edit: (n, m) bool;  part: where n m lies
        under: these four of an image that is laid over this one before, and whose edit counts too
        Transparent pixels become as opaque as what lies over them (Porter and Duff 1984, "over").
        """
        own_u8, alpha_u8 = self.own_u8.copy(), None if self.alpha_u8 is None else self.alpha_u8.copy()
        paints = [*([] if under is None else [under]), (image_u8, weight_01, edit, part)]
        for image_u8, weight_01, edit, part in paints:
            for rows in row_blocks(len(edit)):
                if not (inside := edit[rows].astype(np.uint8)).any():
                    continue
                over_u8, weight, under_u8 = image_u8[rows], weight_01[rows], own_u8[part][rows]
                if self.stored_u8 is not None:
                    over_u8 = _transformed(over_u8, profile_transform(self.icc_profile or b"", "RGB", True))
                if alpha_u8 is not None:
                    opacity = 1 - (1 - weight) * (1 - alpha_u8[part][rows].astype(np.float32) / 255)
                    cv2.copyTo(np.rint(255 * opacity).astype(np.uint8), inside, alpha_u8[part][rows])
                    weight = weight / np.maximum(opacity, 1e-6)
                before = under_u8.astype(np.float32)
                mixed = before + cv2.merge([weight] * 3) * (over_u8 - before)
                cv2.copyTo(np.rint(mixed).astype(np.uint8), inside, under_u8)
        return self.with_own(own_u8, alpha_u8, *(paint[-1] for paint in paints))

    def with_own(self, own_u8: np.ndarray, alpha_u8: np.ndarray | None, *parts: Any) -> "LoadedImage":
        """With other pixels (h, w, 3) in the file's colours, and alpha (h, w), that differ in `parts`."""
        if self.stored_u8 is None:
            return replace(self, rgb_u8=own_u8, alpha_u8=alpha_u8)
        rgb_u8 = self.rgb_u8.copy()
        for part in parts:
            rgb_u8[part] = _transformed(own_u8[part], profile_transform(self.icc_profile or b"", "RGB"))
        return replace(self, rgb_u8=rgb_u8, alpha_u8=alpha_u8, stored_u8=own_u8)


def _transformed(pixels_u8: np.ndarray, transform: ImageCms.ImageCmsTransform | None) -> np.ndarray:
    """(h, w, 3) uint8 through a transform of profiles; None: as they are."""
    if transform is None:
        return pixels_u8
    return np.asarray(ImageCms.applyTransform(Image.fromarray(np.ascontiguousarray(pixels_u8)), transform))


@lru_cache(maxsize=32)
def profile_transform(profile: bytes, mode: str, back: bool = False) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours in a Pillow mode to sRGB, or back; None where both are the same.

    ImageCms.PyCMSError for a damaged profile, and for one that has no way back.
    """
    ends: list[Any] = [ImageCms.getOpenProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")]
    (source, target), flags = ends[::-1] if back else ends, ImageCms.Flags.BLACKPOINTCOMPENSATION
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    transform = ImageCms.buildTransform(source, target, mode, "RGB", intent, flags)
    if mode == "RGB":
        colours = np.stack(np.meshgrid(*[np.linspace(0, 255, 18, dtype=np.uint8)] * 3), axis=-1)
        moved = _transformed(colours.reshape(18, -1, 3), transform).reshape(colours.shape)
        if np.abs(moved.astype(int) - colours).max() <= MAX_SRGB_STEP:
            return None
    return transform


def in_srgb(image: Image.Image, own_u8: np.ndarray, path: Path) -> tuple[np.ndarray, bytes | None]:
    """The decoded pixels (h, w, 3) uint8 of an image in sRGB, and its profile where a result can carry it.

    Colours of a gray, CMYK or one-way profile are converted and the profile is not carried. A profile that is
    damaged, or made for another kind of image, counts as none.
    """
    profile, gray = image.info.get("icc_profile"), image.mode in ("1", "L", "LA") or is_deep(image)
    if not profile:
        return own_u8, None
    pixels = image if image.mode == "CMYK" else Image.fromarray(own_u8[:, :, 0] if gray else own_u8)
    try:
        if profile[16:20] != {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}[pixels.mode]:
            raise ValueError(f"it is of the kind {profile[16:20]!r}, the image {pixels.mode}")
        if (transform := profile_transform(profile, pixels.mode)) is None:
            return own_u8, profile
        rgb_u8 = np.asarray(ImageCms.applyTransform(pixels, transform))
    except (ImageCms.PyCMSError, *DECODER_ERRORS) as error:
        log.warning("%s: its colour profile cannot be used (%s), taken as sRGB", path, first_line(error))
        return own_u8, None
    with contextlib.suppress(ImageCms.PyCMSError):
        if pixels.mode == "RGB" and profile_transform(profile, "RGB", back=True):
            return rgb_u8, profile
    return rgb_u8, None


@contextlib.contextmanager
def opened(path: Path, data: bytes | None = None, shrink: int = 1) -> Iterator[Image.Image]:
    """The decoded first frame of an image file, upright.

    data: its bytes, where they do not lie at `path`
    shrink: 1, 2, 4 or 8, by which JPEG is decoded smaller, its sides rounded up; other formats are not
    """
    try:
        if data is None and path.is_dir():
            raise ValueError(f"{path} is a folder, expected an image file")
        handle: Any = same_file(path).open("rb") if data is None else io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {(error.strerror or 'unreadable').lower()}") from error
    with handle:
        if not handle.peek(1):
            raise ValueError(f"{path} is empty (zero bytes)")
        image: Image.Image | None = None
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow refuses from twice that number on
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = Image.open(handle, formats=RASTER_FORMATS)  # the header only
                w, h = image.size
                if w * h > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{w} x {h} pixels ({w * h / 1e6:.0f} million)")
                tiles: Any = image.tile
                deep = re.search(r";16|'RGB', \d{4}", str(tiles))  # the second is PPM's largest value
                if image.format == "BMP" and image.mode == "1" and tiles[0].args[1] > (w + 31) // 32 * 4:
                    # Pillow 12.3 takes the bytes of a black and white palette for bits.
                    image.tile = [tiles[0]._replace(args=("1;8", *tiles[0].args[1:]))]
                if shrink > 1:
                    image.draft(None, (max(1, w // shrink), max(1, h // shrink)))
                image.load()  # all pixels, so that no later step meets a damaged file
                if deep and image.mode in ("RGB", "RGBA", "LA"):
                    image.info[SIXTEEN_BITS] = handle.seek(0) or handle.read()
        except Image.DecompressionBombError as error:
            claims = re.sub(r".*?\((\d+ pixels)\).*", r"\1", first_line(error))
            most = f"more than {MAX_PIXELS / 1e6:.0f} million; make it smaller first"
            raise ValueError(f"{path} claims {claims}, {most}") from None
        except DECODER_ERRORS:
            reason = f"is not an image, or is damaged at its start; readable are {', '.join(RASTER_FORMATS)}"
            if image is not None:
                reason = f"is truncated or damaged: its {image.format} data cannot be decoded"
            elif handle.seek(0) == 0 and handle.read(4) in (b"II*\0", b"MM\0*"):
                reason = "is damaged, or a kind of TIFF that is not read; save it as PNG, depth as gray"
            raise ValueError(f"{path} {reason}") from None
        try:
            if image.format not in ("JPEG", "PNG") or TURNING & image.info.keys():  # slow
                ImageOps.exif_transpose(image, in_place=True)
        except DECODER_ERRORS:  # damaged EXIF data do not make the pixels unreadable
            log.warning("%s: unreadable EXIF data, taken as upright", path)
        yield image


def is_deep(image: Image.Image) -> bool:
    """Whether Pillow keeps this image as one channel of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def rgb_and_alpha(image: Image.Image, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """(h, w, 3) uint8 and (h, w) uint8 or None. 16-bit gray is scaled; Pillow scales 16-bit colour itself."""
    if is_deep(image):
        return np.repeat(deep_to_u8(image, path)[:, :, None], 3, axis=2), None
    transparent = any(band in "Aa" for band in image.getbands()) and image.mode != "LAB"
    target = "RGBA" if transparent or "transparency" in image.info else "RGB"
    try:
        pixels = np.array(image if image.mode == target else image.convert(target))
    except DECODER_ERRORS:
        raise ValueError(f"{path} has the unknown colour mode {image.mode}; save it as RGB") from None
    return np.ascontiguousarray(pixels[:, :, :3]), pixels[:, :, 3].copy() if target == "RGBA" else None


def deep_to_u8(image: Image.Image, path: Path) -> np.ndarray:
    """16-bit gray (h, w) -> uint8 over the full 16-bit range."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{path} has 32-bit values, which have no agreed range; save it with 8 or 16 bits")
    return np.rint(values / 257).astype(np.uint8)


def sixteen_bit_rgb(image: Image.Image, path: Path) -> np.ndarray | None:
    """(h, w, 3) uint16, upright, of a file with several channels of 16 bits; None for all other files."""
    if (data := image.info.get(SIXTEEN_BITS)) is None:
        return None
    # Pillow keeps 8 bits, OpenCV all.
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
    if pixels is None or pixels.dtype != np.uint16 or pixels.shape[:2] != image.size[::-1]:
        raise ValueError(f"{path}: its 16-bit channels cannot be decoded; save it as a 16-bit gray PNG")
    return pixels[:, :, ::-1]


def image_ids(image: Image.Image, path: Path) -> np.ndarray:
    """(h, w) of any integer type: palette index, gray value, or R + 256 G + 65536 B."""
    deep = sixteen_bit_rgb(image, path)
    pixels = np.atleast_3d(np.asarray(image) if deep is None else deep)
    if pixels.shape[2] < 3:
        return pixels[..., 0]
    return pixels[..., :3].astype(np.int64) @ np.array([1, 256, 65536])
