"""What a prompt writer is asked about one image, and which answer belongs to which mask.

Legend: h w pixels, r masks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inpainting.models.image_to_text.prompter import PrompterConfig
from inpainting.prompts import GRAY_NAME, LLAVA_PROMPT, discover_question, paint_masks, read_prompt
from ldm.mllm.chat import ChatExample


@dataclass(frozen=True, eq=False)
class Query:
    """One question about one painted image, and what its answer gives."""

    ask: ChatExample
    masks: tuple[int, ...]  # the masks it is about, in the order of the answer
    tags: tuple[str, ...]  # their colours; none: the whole answer is the prompt
    given: tuple[str, ...]  # their prompts as far as they are known, else ""


def colors_of_masks(card: PrompterConfig, given: Sequence[str]) -> list[str]:
    """Colours of r masks, in their order. given: r prompts, "" where one is to be written.

    As published the last one asked has the first colour, red; those whose prompt is known are asked first, so
    that the others are written in their knowledge. ValueError when the model knows too few colours.
    """
    count, known = len(given), card.colors
    if count > len(known):
        raise ValueError(f"{card.name} knows {len(known)} colours ({', '.join(known)}), got {count} masks")
    order = asked_order(given)
    colors = [""] * count
    for place, mask in enumerate(order):
        colors[mask] = known[count - 1 - place]
    return colors


def asked_order(given: Sequence[str]) -> list[int]:
    """Masks with a prompt first, else in their order."""
    return sorted(range(len(given)), key=lambda mask: not given[mask])


def queries_for(
    card: PrompterConfig, image_u8: np.ndarray, masks: Sequence[np.ndarray], given: Sequence[str]
) -> list[Query]:
    """The questions about an image (h, w, 3): one about all r masks, or one about each, as the card says.

    Raises ValueError for masks that do not fit.
    """
    check_masks(image_u8, masks)
    if len(given) != len(masks):
        raise ValueError(f"{len(given)} prompts are given for {len(masks)} masks; one each, or empty")
    if all(given):
        return []
    if card.question == "discover":
        colors, order = colors_of_masks(card, given), asked_order(given)
        tags = tuple(colors[mask] for mask in order)
        ask = ChatExample(paint_masks(image_u8, masks, colors), discover_question(tags))
        return [Query(ask, tuple(order), tags, tuple(given[mask] for mask in order))]
    plain = card.question == "plain"
    question, tags = (LLAVA_PROMPT, ()) if plain else (discover_question([GRAY_NAME]), (GRAY_NAME,))
    return [
        Query(ChatExample(paint_masks(image_u8, [mask], [GRAY_NAME]), question), (number,), tags, ("",))
        for number, mask in enumerate(masks)
        if not given[number]
    ]


def read_answer(query: Query, answer: str) -> dict[int, str]:
    """Mask -> its prompt, for those that are to be written; empty where a tag is missing."""
    if not query.tags:
        return {query.masks[0]: answer.strip()}
    named = zip(query.masks, query.tags, query.given, strict=True)
    return {mask: read_prompt(answer, tag) for mask, tag, known in named if not known}


def one_line(text: str) -> str:
    """A given prompt as the model may be told it: no brackets, no line breaks."""
    return " ".join(re.sub(r"[<>\x00-\x1f\x7f-\x9f]", " ", text).split())


def check_masks(image_u8: np.ndarray, masks: Sequence[np.ndarray]) -> None:
    """ValueError names the mask that is no bool array, of another size, empty; or says that there is none."""
    if not len(masks):
        raise ValueError("nothing to write: no mask given")
    for number, mask in enumerate(masks, 1):
        if mask.dtype != bool or mask.shape != image_u8.shape[:2]:
            given = f"{mask.dtype} {mask.shape}, its image {image_u8.shape[:2]}"
            raise ValueError(f"mask {number} must be bool and of the image's size (h, w); it is {given}")
        if not mask.any():
            raise ValueError(f"mask {number} is empty: no pixel is set")
