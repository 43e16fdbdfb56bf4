"""The prompts of all masks of an image: those that are given, and those that a prompt writer adds.

Legend: h w pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inpainting.models.image_to_text.questions import colors_of_masks
from inpainting.models.image_to_text.writer import GREEDY, Decoding, PromptWriter
from inpainting.prompts import palette

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompts:
    """Per mask: its prompt, whether it was written here, and the colour in which the writer saw it."""

    texts: list[str]
    written: list[bool]
    colors: list[str]

    def rows(self) -> list[dict[str, Any]]:
        """The same as JSON, one object per mask."""
        parts = zip(self.colors, self.texts, self.written, strict=True)
        return [{"color": color, "prompt": text, "written": new} for color, text, new in parts]


def completed(prompts: Sequence[str], masks: int) -> list[str]:
    """One prompt per mask, "" where none is given; ValueError without masks, and for too many prompts."""
    if not masks:
        raise ValueError("nothing to paint: no mask is given (--masks)")
    if len(prompts) > masks:
        raise ValueError(f"more prompts than masks: {len(prompts)} prompts, {masks} masks (--prompts)")
    return [*(text.strip() for text in prompts), *[""] * (masks - len(prompts))]


def write_missing(
    image_u8: np.ndarray,
    masks: Sequence[np.ndarray],
    prompts: Sequence[str],
    writer: PromptWriter | None,
    decoding: Decoding = GREEDY,
) -> Prompts:
    """The prompts of the masks (h, w) bool of an image (h, w, 3) uint8; given ones stay as they are.

    writer: None when no prompt is missing
    """
    known = completed(prompts, len(masks))
    missing = [not text for text in known]
    if not any(missing):
        return Prompts(known, missing, palette(len(known)))
    if writer is None:
        raise ValueError(f"{sum(missing)} masks have no prompt, and no prompt writer is given")
    for number in hidden(masks):
        log.warning("mask %d lies under smaller masks: the prompt writer does not see its colour", number)
    texts = writer.write([image_u8], [masks], decoding, given=[known])[0]
    for number, text in enumerate(texts, 1):
        if not text:
            log.warning("mask %d: the answer holds no prompt; it is painted without one", number)
    together = writer.card.question == "discover"
    return Prompts(texts, missing, colors_of_masks(writer.card, known) if together else palette(len(known)))


def hidden(masks: Sequence[np.ndarray]) -> list[int]:
    """Numbers, from 1, of masks of which nothing is left to see when smaller ones are painted over them."""
    found: list[int] = []
    covered = np.zeros_like(masks[0])
    for index in sorted(range(len(masks)), key=lambda k: -np.count_nonzero(masks[k]))[::-1]:
        if not (masks[index] & ~covered).any():
            found.append(index + 1)
        covered = covered | masks[index]
    return sorted(found)
