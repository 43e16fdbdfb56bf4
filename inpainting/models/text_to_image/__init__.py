"""Painting several masks in one pass with rectified cross-attention.

The published helpers can be imported from here; what they need is loaded with the first of them.
"""

from importlib import import_module
from typing import Any

PUBLISHED = (
    "FreestyleStableDiffusionInpaintPipeline",
    "get_freestyle_layout_mask",
    "get_freestyle_text_inputs",
    "get_pretrained_mm_inpainting_pipe",
)


def __getattr__(name: str) -> Any:
    if name in PUBLISHED:
        return getattr(import_module(f"{__name__}.published"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
