"""The recipe of a painted image: all that decides its pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from inpainting.models.text_to_image.canvas import Region
from inpainting.models.text_to_image.card import PaintOptions
from inpainting.models.text_to_image.load import Inpainter, weight_file
from ldm.files import file_sha256, hash_folder
from ldm.result import library_versions
from ldm.settings.config import to_plain


def make_recipe(
    image_u8: np.ndarray, regions: Sequence[Region], pipe: Inpainter, options: PaintOptions
) -> dict[str, Any]:
    """All that decides the pixels: image, masks, prompts, options, weights, machine, versions."""
    return {
        "command": "paint",
        "image": _digest(image_u8),
        "regions": [
            {"prompt": region.prompt, "negative": region.negative, "mask": _digest(region.mask)}
            for region in regions
        ],
        "options": to_plain(options),
        "model": {"name": pipe.card.name, "folder": pipe.folder, "lora": pipe.lora},
        "weights": weights_of(pipe),
        "machine": {"device": pipe.device.type, "dtype": str(pipe.dtype).removeprefix("torch.")},
        "versions": library_versions(),
    }


def weights_of(pipe: Inpainter) -> dict[str, Any]:
    """SHA-256 of the weight files that were read; empty for a model that was made in memory."""
    if pipe.folder is None:
        return {}
    found: dict[str, Any] = {"lora": file_sha256(pipe.lora)} if pipe.lora else {}
    for part in ("unet", "text_encoder", pipe.card.vae):
        file = weight_file(pipe.folder / part)
        found[part] = hash_folder(file) if file.is_dir() else file_sha256(file)
    return found


def _digest(array: np.ndarray) -> str:
    """SHA-256 of shape and values."""
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
