"""Images that Python code holds, as files: readers, hashes and recipes know files only."""

import functools
import hashlib
import io
import tempfile
from pathlib import Path
from typing import Any

IN_MEMORY = "memory:"  # starts the path of such an image in a recipe
IN_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")  # modes of Pillow that a PNG holds as they are


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="bifrost-images-")


def as_file(image: Any, name: str) -> Path:
    """The path of an image: its own, or for an image in memory a file named by the hash of its contents.

    image: path; PIL image; uint8 (h, w), (h, w, 3) RGB or (h, w, 4); mask (h, w) bool; depth (h, w) float in
           [0, 1]. ValueError names what it is instead. name: of the setting
    """
    if isinstance(image, str | Path):
        return Path(image)
    import numpy as np
    from PIL import Image, ImageOps

    if isinstance(image, np.ndarray):
        layout, kind = image.ndim + (image.shape[2:] not in ((), (3,), (4,))), image.dtype
        flat = layout == 2 and (kind == np.bool_ or np.issubdtype(kind, np.floating))
        if not (flat or (layout in (2, 3) and kind == np.uint8)):
            shown = f"{kind} {image.shape}"
            allowed = "uint8 (h, w), (h, w, 3) or (h, w, 4), bool (h, w), float (h, w)"
            raise ValueError(f"{name}: an array must be {allowed}, got {shown}")
        image = Image.fromarray(image.astype(np.float32) if flat and kind != np.bool_ else image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"{name} must be a path, a PIL image or an array, got a {type(image).__name__}")
    suffix, buffer = (".png", io.BytesIO()) if image.mode in IN_PNG else (".tif", io.BytesIO())
    image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    image.save(buffer, "PNG" if suffix == ".png" else "TIFF", icc_profile=profile)
    path = Path(_folder().name) / (hashlib.sha256(buffer.getvalue()).hexdigest() + suffix)
    if not path.is_file():
        path.write_bytes(buffer.getvalue())
    return path


def is_in_memory(path: Path) -> bool:
    """Whether `as_file` made this file."""
    return path.parent == Path(_folder().name)
