"""What the pipelines share: images in and out, seeds, settings, saving."""

import inspect
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import load_image
from PIL import Image

from ldm.decode import LoadedImage


class HubPipeline(DiffusionPipeline):
    """A pipeline whose code lies in its folder."""

    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> None:
        """With the code, so that the new folder loads like the first one."""
        super().save_pretrained(save_directory, *arguments, **options)
        shutil.copy(inspect.getfile(type(self)), save_directory)

    def to_json_string(self) -> str:
        """The index, which names the file of the code too."""
        code = [Path(inspect.getfile(type(self))).stem, type(self).__name__]
        return json.dumps({**json.loads(super().to_json_string()), "_class_name": code}, indent=2) + "\n"


def as_loaded(image: Any) -> LoadedImage:
    """A path, an address, a PIL image or an array (h, w, 3 or 4) uint8, with its transparency."""
    if not isinstance(image, np.ndarray):
        image = load_image(image, convert_method=lambda each: each)
        clear = "A" in image.getbands() or "transparency" in image.info
        image = np.asarray(image.convert("RGBA" if clear else "RGB"))
    return LoadedImage(np.ascontiguousarray(image[..., :3]), image[..., 3] if image.shape[2] == 4 else None)


def as_mask(mask: Any, size: tuple[int, int]) -> np.ndarray:
    """A path, a PIL image or an array -> (h, w) bool, white = set; ValueError unless (h, w) is `size`."""
    if not isinstance(mask, np.ndarray):
        mask = np.asarray(load_image(mask, convert_method=lambda each: each).convert("L"))
    if mask.shape != size:
        raise ValueError(f"a mask is {mask.shape[::-1]} pixels, its image {size[::-1]} (width, height)")
    return mask if mask.dtype == bool else mask > 127


def as_images(results: Sequence[LoadedImage], output_type: str | None) -> list[Any]:
    """PIL images, or uint8 arrays (h, w, c) for "np"; with the transparency that the image had."""
    layers = [(each.rgb_u8,) if each.alpha_u8 is None else (each.rgb_u8, each.alpha_u8) for each in results]
    arrays = [np.dstack(each) for each in layers]
    return arrays if output_type == "np" else [Image.fromarray(each) for each in arrays]


def first_seed(seed: int, generator: torch.Generator | None) -> int:
    """The seed of the first sample, which a generator draws where one is given."""
    return seed if generator is None else int(torch.randint(2**31, (), generator=generator))


def shows_progress(pipe: Any) -> bool:
    """What `set_progress_bar_config(disable=...)` says."""
    return not getattr(pipe, "_progress_bar_config", {}).get("disable", False)


def setting_values(pipe: Any, part: str) -> dict[str, Any]:
    return as_tuples(pipe.config.settings.get(part, {}))


def as_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
