"""Vision-language models that write a prompt for each mask of a painting; the published helpers.

    processor, model = get_pretrained_prompt_generator("models/llava/multimask/checkpoint-2884/adapter")
    image, colors = draw_colored_masks(pixel_values, masks)
    inputs = processor(text=[discover_prompt(colors)], images=[image], return_tensors="pt")
    text = processor.batch_decode(model.generate(**inputs, max_new_tokens=512))[0]
    prompts = output_to_color_dict(text, colors)

`writer.PromptWriter` does the same in one call and never lacks a tag.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from inpainting.prompts import COLORS, DEMO_ORDER, paint_masks, read_prompt
from ldm.images import from_pm1

if TYPE_CHECKING:
    from torch import Tensor


def get_pretrained_prompt_generator(adapter_path: str | Path, precision: str = "auto") -> tuple[Any, Any]:
    """(processor, model) of an adapter and the model that it names; precision: see `open_model`."""
    from inpainting.models.image_to_text.writer import PromptWriter

    mllm = PromptWriter.load(adapter_path, precision=precision).mllm
    mllm.processor.tokenizer.padding_side = "left"
    return mllm.processor, mllm.model


def draw_colored_masks(
    pixel_values: "Tensor | Image.Image", masks: "Sequence[Tensor]"
) -> tuple[Image.Image, list[str]]:
    """The image with its masks in solid colours, large ones first, and the names of these colours.

    pixel_values: (3, h, w) in [-1, 1], or a PIL image. masks: (1, h, w) each, above 0.5 = set. The first
    mask is red, then blue, yellow, green, cyan (as published), and five more.
    """
    if isinstance(pixel_values, Image.Image):
        image_u8 = np.array(pixel_values.convert("RGB"))
    else:
        image_u8 = from_pm1(pixel_values)
    if len(masks) > len(COLORS):
        raise ValueError(f"the prompt writer knows {len(COLORS)} colours, got {len(masks)} regions")
    names = [*DEMO_ORDER, *(name for name in COLORS if name not in DEMO_ORDER)][: len(masks)]
    solid = [mask[0].float().cpu().numpy() > 0.5 for mask in masks]
    return Image.fromarray(paint_masks(image_u8, solid, names)), names


def output_to_color_dict(text: str, colors: Sequence[str]) -> dict[str, str] | None:
    """Colour -> prompt, "" where a tag is missing; None for a text without answer."""
    _, mark, answer = text.partition("ASSISTANT:")
    return {color: read_prompt(answer, color) for color in colors} if mark else None
