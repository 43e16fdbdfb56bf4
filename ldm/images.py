"""The only place where image files become arrays and back.

Legend: h w pixels. Images are RGB uint8 (h, w, 3) `_u8`, masks bool (h, w) and white = edit in a file,
depth `depth_01` float32 (h, w), relative inverse depth, 1 = nearest. Writers are atomic.
"""

import contextlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from ldm import decode
from ldm.files import write_atomic
from ldm.temporary import as_file

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

GRAY_TOLERANCE = 24  # of 255; JPEG leaves up to this much colour on a gray image
MASK_THRESHOLD = 127  # of 255; a larger value is set
# Results by suffix: PNG and WebP keep every pixel, JPEG is written with full colour resolution.
OUTPUT_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {".png": ("PNG", {})}
OUTPUT_FORMATS[".webp"] = ("WEBP", {"lossless": True, "exact": True})
OUTPUT_FORMATS |= dict.fromkeys((".jpg", ".jpeg"), ("JPEG", {"quality": 95, "subsampling": 0}))
Box01 = tuple[float, float, float, float]  # x0, y0, x1, y1 in fractions of the image
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB in [0, 1]
INTERPOLATION = {how: getattr(cv2, f"INTER_{how.upper()}") for how in ("area", "linear", "cubic", "nearest")}


def distinct_values(values: np.ndarray) -> str:
    """The distinct values in words, at most twelve of them."""
    distinct = np.unique(values)
    tail = f", ... ({len(distinct)} in all)" if len(distinct) > 12 else ""
    return ", ".join(f"{value:g}" for value in distinct[:12]) + tail


def read_image(path: Any, data: bytes | None = None, shrink: int = 1) -> decode.LoadedImage:
    """Read any common image file (or what `as_file` takes) as 8-bit sRGB plus its alpha; 16 bits are scaled.

    data: the bytes of the file, where they are not on the disk yet; `path` is its name in errors
    shrink: as in `decode.opened`
    """
    path = as_file(path, "image")
    with decode.opened(path, data, shrink) as image:
        own_u8, alpha_u8 = decode.rgb_and_alpha(image, path)
        rgb_u8, profile = decode.in_srgb(image, own_u8, path)
        stored_u8, exif, dpi = None if profile is None or rgb_u8 is own_u8 else own_u8, None, None
        with contextlib.suppress(*decode.DECODER_ERRORS):  # damaged EXIF data are left behind
            if image.format != "TIFF" and image.getexif():  # those of TIFF say how the file is laid out
                exif = image.getexif().tobytes()
        if all(0 < value < 1e5 for value in image.info.get("dpi", [0])):
            dpi = image.info["dpi"]
        rendered = decode.RENDERED.items() <= image.info.items()
        photograph = image.format in decode.LOSSY or (False if rendered else None)
        return decode.LoadedImage(rgb_u8, alpha_u8, profile, stored_u8, exif, dpi, photograph)


def loaded_image(image: Any) -> decode.LoadedImage:
    """An RGB array (h, w, 3) uint8 as it is, anything else that `read_image` takes or gives."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
        return decode.LoadedImage(image)
    return image if isinstance(image, decode.LoadedImage) else read_image(image)


def rgb_of(image: Any) -> np.ndarray:
    """RGB (h, w, 3) uint8 of what `loaded_image` takes."""
    return loaded_image(image).rgb_u8


def _advice(path: Path, ids: np.ndarray) -> str:
    """A command that makes a mask of one id (h, w) of a file, for messages."""
    label = int(ids.max())
    new = path.with_name(f"{path.stem}_id{label}.png").as_posix()
    call = f"write_mask({new!r}, read_mask({path.as_posix()!r}, label={label}))"
    return f'make a mask of one id first: python -c "from ldm.images import *; {call}"'


def read_mask(path: Any, *, size: tuple[int, int] | None = None, label: int | None = None) -> np.ndarray:
    """Read a mask file as bool (h, w); the one reader of masks.

    A file whose largest value is 1 is 0/1, otherwise values above 127 (of 255) are set; of a coloured file
    the brightest channel counts. Alpha is used when it is the only information: the opaque part has one
    colour, or the file is a coloured cut-out. An indexed file with a gray palette is gray; other palettes and
    id files need `label`, one of their `image_ids`. `size` is the (h, w) that the mask must have.
    """
    path = as_file(path, "mask")
    with decode.opened(path) as image:
        deep, raw = decode.sixteen_bit_rgb(image, path), decode.image_ids(image, path)
        if label is not None:
            levels_u8 = raw
        elif decode.is_deep(image):
            levels_u8 = decode.deep_to_u8(image, path)
        elif image.mode in ("1", "L") and "transparency" not in image.info:
            raw = levels_u8 = raw if image.mode == "L" else np.asarray(image.convert("L"))
        else:
            rgb_u8, alpha_u8 = decode.rgb_and_alpha(image, path)
            levels_u8 = brightest = rgb_u8.max(axis=2)
            spread = int((brightest - rgb_u8.min(axis=2)).max())
            if image.mode in ("P", "PA") and spread > GRAY_TOLERANCE:
                message = f"mask {path} is a palette image with colours, ids {distinct_values(raw)}"
                raise ValueError(f"{message}: {_advice(path, raw)}")
            if alpha_u8 is not None and alpha_u8.min() != alpha_u8.max():
                opaque = brightest[alpha_u8 > MASK_THRESHOLD]
                one_colour = opaque.size == 0 or int(opaque.max()) - int(opaque.min()) <= GRAY_TOLERANCE
                levels_u8 = alpha_u8 if one_colour or spread > GRAY_TOLERANCE else brightest
            raw = deep.max(axis=2) if deep is not None and levels_u8 is brightest else levels_u8
    value = 1 if label is None and raw.max() == 1 else label
    mask = levels_u8 > MASK_THRESHOLD if value is None else raw == value
    if not mask.any():
        ids = distinct_values(raw)
        if label is not None:
            raise ValueError(f"mask {path} has no pixel with the id {label}; present are {ids}")
        hint = f"; its values are {ids}: if they are ids, {_advice(path, raw)}" if raw.any() else ""
        limit = f"{MASK_THRESHOLD} of 255" if raw is levels_u8 else "32767 of 65535"  # 16 bits
        raise ValueError(f"mask {path} is empty: no pixel is above {limit}{hint}")
    _require_size(mask, size, f"mask {path}")
    return mask


def read_depth(path: Any, *, size: tuple[int, int] | None = None, data: bytes | None = None) -> np.ndarray:
    """Read a depth map of any bit depth as depth_01 (h, w) float32, min-max normalised, 1 = nearest.

    Larger values in the file are nearer. A constant file gives zeros. `size` is the (h, w) that it must have.
    data: as in `read_image`
    """
    path = as_file(path, "depth map")
    with decode.opened(path, data) as image:
        deep = decode.sixteen_bit_rgb(image, path)
        if deep is None and (decode.is_deep(image) or image.mode in ("1", "L")):
            values = np.asarray(image).astype(np.float32)
        else:
            rgb = decode.rgb_and_alpha(image, path)[0] if deep is None else deep
            most = GRAY_TOLERANCE if deep is None else 1  # no lossy format has 16 bits
            if int((rgb.max(axis=2) - rgb.min(axis=2)).max()) > most:
                raise ValueError(
                    f"depth map {path} is coloured: its channels differ; larger = nearer is needed in one "
                    "gray channel, so undo the colour map or packing and save it as a 16-bit gray PNG"
                )
            values = rgb.mean(axis=2, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"depth map {path} holds NaN or infinite values")
    _require_size(values, size, f"depth map {path}")
    return normalize(values)


def normalize(values: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Min-max to [0, 1] as float32; constant values give zeros, and such an array is returned itself.

    out: where the result is written, also over the values themselves
    """
    low, high = float(values.min()), float(values.max())
    if (low, high) == (0, 1) and values.dtype == np.float32:
        return values
    result = np.empty(values.shape, np.float32) if out is None else out
    if not high > low:
        result.fill(0)
        return result
    for rows in decode.row_blocks(len(values)):
        result[rows] = (values[rows].astype(np.float64) - low) / (high - low)
    return result


def depth_ends(values: np.ndarray) -> list[float]:
    """1st and 99th percentile of values (n,), as `np.percentile` has them: that is slower than sorting."""
    ordered, last, ends = np.sort(values), len(values) - 1, []
    for place in (0.01 * last, 0.99 * last):
        below, part = int(place), place % 1
        low, high = ordered[below], ordered[min(below + 1, last)]
        step = float(high - low)
        ends.append(float(low) + step * part if part < 0.5 else float(high) - step * (1 - part))
    return ends


def _require_size(values: np.ndarray, size: tuple[int, int] | None, what: str) -> None:
    if size is not None and values.shape != tuple(size):
        (h, w), (want_h, want_w) = values.shape, size
        raise ValueError(f"{what} is {w} x {h} pixels, its image is {want_w} x {want_h} (width x height)")


def write_png(path: Path | str, rgb_u8: np.ndarray, *, alpha_u8: np.ndarray | None = None) -> None:
    """Write RGB (h, w, 3) uint8, with alpha (h, w) when given."""
    write_atomic(path, encode_png(rgb_u8, alpha_u8=alpha_u8))


def write_mask(path: Path | str, mask: np.ndarray) -> None:
    """Write bool (h, w) as a 0/255 PNG."""
    write_atomic(path, encode_png(mask.astype(np.uint8) * 255))


def write_depth(path: Path | str, depth_01: np.ndarray) -> None:
    """Write depth_01 (h, w) as a 16-bit PNG, larger = nearer."""
    write_atomic(path, encode_png(np.rint(np.clip(depth_01, 0, 1) * 65535).astype(np.uint16)))


def encode_png(
    image: np.ndarray, *, alpha_u8: np.ndarray | None = None, text: Mapping[str, str] | None = None
) -> bytes:
    """PNG bytes of (h, w, 3) uint8, (h, w) uint8 or (h, w) uint16; equal input gives equal bytes."""
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"a PNG is written from uint8 or uint16 values, got {image.dtype}")
    return encode_image(decode.LoadedImage(image, alpha_u8), ".png", text or {})


def encode_image(image: decode.LoadedImage, suffix: str, text: Mapping[str, str] | None = None) -> bytes:
    """The bytes of an image in its own colours, with its profile, EXIF data and resolution.

    suffix: one of OUTPUT_FORMATS;  text: text chunks, which only PNG has
    JPEG has no transparency: the image is laid on white, with a warning.
    """
    kind, options = OUTPUT_FORMATS[suffix.lower()]
    carried = {name: getattr(image, name) for name in ("icc_profile", "exif", "dpi")}
    options = {**options, **{name: value for name, value in carried.items() if value is not None}}
    pixels, alpha_u8 = image.own_u8, image.alpha_u8
    if kind == "JPEG" and alpha_u8 is not None:
        if alpha_u8.min() < 255:
            log.warning("JPEG has no transparency: the image is laid on white; .png and .webp keep it")
        white = decode.LoadedImage(np.full_like(pixels, 255))
        pixels = white.painted(pixels, alpha_u8.astype(np.float32) / 255, alpha_u8 >= 0).rgb_u8
    elif alpha_u8 is not None:
        pixels = np.dstack([pixels, alpha_u8])
    if kind == "PNG":
        options["pnginfo"] = info = PngImagePlugin.PngInfo()
        rendered = decode.RENDERED if image.photograph is False else {}
        if text:  # a result: level 6, Pillow's own, takes twice as long for files that are 7 % smaller
            options["compress_level"] = 4
        for key, value in {**rendered, **(text or {})}.items():
            info.add_text(key, value)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


def planes_of(image_u8: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 -> (3, h, w)."""
    planes_u8 = np.empty((3, *image_u8.shape[:2]), np.uint8)
    cv2.split(image_u8, list(planes_u8))  # into these arrays
    return planes_u8


def to_pm1(image_u8: np.ndarray) -> "Tensor":
    """RGB (h, w, 3) uint8 -> (3, h, w) float in [-1, 1]."""
    return _planes(image_u8) / 127.5 - 1


def to_01(image_u8: np.ndarray) -> "Tensor":
    """RGB (h, w, 3) uint8 -> (3, h, w) float in [0, 1]."""
    return _planes(image_u8) / 255


def from_pm1(image_pm1: "Tensor") -> np.ndarray:
    """(3, h, w) in [-1, 1] -> RGB (h, w, 3) uint8, rounded and clipped; undoes `to_pm1` exactly."""
    if not image_pm1.isfinite().all():
        raise ValueError("the image holds NaN or infinite values; try a wider dtype (float32 or bfloat16)")
    values = ((image_pm1.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return values.byte().permute(1, 2, 0).contiguous().cpu().numpy()


def resize(image: np.ndarray, size_hw: tuple[int, int], *, how: str = "area") -> np.ndarray:
    """Resize (h, w) or (h, w, c) of uint8, uint16, float32 or bool, which stays bool.

    `area` averages when it shrinks and is linear where it enlarges; `cubic` may overshoot for floats.
    """
    if how not in INTERPOLATION:
        raise ValueError(f"unknown interpolation {how!r}; allowed: {', '.join(INTERPOLATION)}")
    if image.dtype == bool:
        return resize(image.astype(np.float32), size_hw, how=how) >= 0.5
    if image.shape[:2] == tuple(size_hw):
        return image.copy()
    enlarges = size_hw[0] > image.shape[0] or size_hw[1] > image.shape[1]
    method = INTERPOLATION["linear" if how == "area" and enlarges else how]
    resized = cv2.resize(image, (size_hw[1], size_hw[0]), interpolation=method)
    # OpenCV drops the channel axis of a one-channel image.
    return resized.reshape(*size_hw, *image.shape[2:])


def fitted(size_hw: tuple[int, int], side: int) -> tuple[int, int]:
    """The size (h, w) with its proportions kept and its longer side at most `side` pixels."""
    scale = min(1.0, side / max(size_hw))
    return max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))


def _planes(image_u8: np.ndarray) -> "Tensor":
    """(h, w, 3) -> (3, h, w) float. The copy accepts read-only arrays and negative strides."""
    import torch

    return torch.from_numpy(np.array(image_u8, order="C")).permute(2, 0, 1).float()
