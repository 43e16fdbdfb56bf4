"""Language models that write a prompt for each mask of a painting.

The published helpers can be imported from here; what they need is loaded with the first of them.
"""

from importlib import import_module
from typing import Any

PUBLISHED = ("draw_colored_masks", "get_pretrained_prompt_generator", "output_to_color_dict")


def __getattr__(name: str) -> Any:
    if name in PUBLISHED:
        return getattr(import_module(f"{__name__}.published"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
