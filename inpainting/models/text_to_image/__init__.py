"""Painting several masks in one pass with rectified cross-attention.

The published helpers can be imported from here; what they need is loaded with the first of them.
"""

from ldm.settings.later import later_names

PUBLISHED = (
    "FreestyleStableDiffusionInpaintPipeline",
    "get_freestyle_layout_mask",
    "get_freestyle_text_inputs",
    "get_pretrained_mm_inpainting_pipe",
)
__getattr__ = later_names(__name__, dict.fromkeys(PUBLISHED, "published"))
