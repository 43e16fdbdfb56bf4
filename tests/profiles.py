"""Colour profiles built from numbers, and images that look alike in them."""

import io
import struct
from itertools import product

import numpy as np
from PIL import Image, ImageCms

D50 = (0.9642, 1.0, 0.8249)
# Columns of the primaries adapted to D50: Adobe RGB (1998), Display P3, ProPhoto RGB (ROMM, ISO 22028-2).
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
PROPHOTO = ((0.79767, 0.28804, 0.0), (0.13519, 0.71187, 0.0), (0.03134, 0.00009, 0.82491))


def _file(space: bytes, connection: bytes, kind: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    """An ICC profile of version 2.1 from its header fields and tags."""
    named = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78
    tags = [(b"desc", named), (b"cprt", b"text\0\0\0\0none\0"), (b"wtpt", _xyz(D50)), *tags]
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags:
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    header = struct.pack(">I", start + len(body)) + b"\0" * 4 + struct.pack(">I", 0x02100000)
    header += kind + space + connection + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    return (header + _numbers(D50)).ljust(128, b"\0") + table + body


def _numbers(values: tuple[float, ...]) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + _numbers(values)


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(primaries: tuple[tuple[float, ...], ...] = ADOBE, gamma: float = 2.19921875) -> bytes:
    """A display profile of three primaries and one gamma."""
    columns = [
        (name, _xyz(column)) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)
    ]
    curves = [(name, _curve(gamma)) for name in (b"rTRC", b"gTRC", b"bTRC")]
    return _file(b"RGB ", b"XYZ ", b"mntr", [*columns, *curves])


def gray_profile(gamma: float) -> bytes:
    """A gray profile of one gamma."""
    return _file(b"GRAY", b"XYZ ", b"mntr", [(b"kTRC", _curve(gamma))])


def table_profile(space: bytes) -> bytes:
    """A profile with a table from "CMYK" or "RGB " to Lab and none back, as scanners have it; no colour, only
    lightness: L = 100 (1 - ink), a mean of the inks.
    """
    channels = 4 if space == b"CMYK" else 3
    ink = [
        np.mean(corner) if space == b"CMYK" else 1 - np.mean(corner)
        for corner in product((0, 1), repeat=channels)
    ]
    grid = b"".join(bytes((round(255 * (1 - value)), 128, 128)) for value in ink)
    line = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes((channels, 3, 2, 0)) + _numbers((1, 0, 0, 0, 1, 0, 0, 0, 1))
    return _file(space, b"Lab ", b"scnr", [(b"A2B0", table + line * channels + grid + line * 3)])


def in_profile(rgb_u8: np.ndarray, profile: bytes) -> np.ndarray:
    """sRGB (h, w, 3) uint8 -> the numbers that look the same with the profile."""
    srgb, target = ImageCms.createProfile("sRGB"), ImageCms.getOpenProfile(io.BytesIO(profile))
    return np.asarray(ImageCms.profileToProfile(Image.fromarray(rgb_u8), srgb, target, 1))
