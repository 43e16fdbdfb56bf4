"""Colours and question texts of the language models, once. They are part of the released adapters.

The order of COLORS is that of the published dataset; models see colours shuffled, so any order may be used.
"""

from __future__ import annotations

from collections.abc import Sequence

RGB = tuple[int, int, int]

COLORS: dict[str, RGB] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "orange": (255, 165, 0),
    "purple": (128, 0, 128),
    "pink": (255, 192, 203),
    "brown": (165, 42, 42),
}
GRAY: RGB = (128, 128, 128)

# What Kosmos-2 is asked for the description of a whole painting; its answer repeats the question.
PAINTING_QUESTION = "Question: What are the details of this painting? Answer:"
KOSMOS_PROMPT = f"<grounding>{PAINTING_QUESTION}"
ANSWER_MARK = "Answer: "

CHAT = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
    "USER: <image>\n{question} ASSISTANT:"
)
CAPTION_START = "The image shows"  # the caption of a crop continues these words


def caption_prompt(concept: str) -> str:
    """What LLaVA-NeXT is asked about the crop of one object."""
    question = (
        f"What are the details of this image containing {concept} in a short sentence? "
        "Ignore the painting style."
    )
    return f"{CHAT.format(question=question)} {CAPTION_START}"


def discover_prompt(colors: Sequence[str]) -> str:
    """What the prompt writer is asked about masks of these colours, in the order of its answer."""
    question = (
        "Discover and describe the objects hidden behind the masks of the colors: " + ", ".join(colors) + "."
    )
    return CHAT.format(question=question)
