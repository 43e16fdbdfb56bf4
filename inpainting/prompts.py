"""Colours, questions and answers of the prompt writer, for training, tests, commands and notebooks.

The model sees a painting whose regions are painted in solid colours, is asked what hides behind them, and
answers `<red>a dog</red><green>a tree</green>`. Texts and colours are part of the released adapters (paper
section 3.1). An expression fixes the tags of an answer and their order, and the prompts that are known.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldm.decode import LoadedImage
from ldm.images import GRAY_TOLERANCE, MASK_THRESHOLD
from ldm.mllm.templates import LLAVA_SYSTEM, TEMPLATES
from ldm.settings.config import check_settings, setting

RGB = tuple[int, int, int]

# The order of the published dataset; models see colours shuffled, so any order may be used.
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
LEAST_COLOR = 0.0005  # of the image's pixels that lie in blocks of the colour of a mask; chosen
APART = 48  # of 255 between the colours of two masks, in some channel; chosen: JPEG changes less
RED, GRAY_NAME = "red", "gray"  # the region that is tested; the only region
GRAY: RGB = (128, 128, 128)
DEMO_ORDER = ("red", "blue", "yellow", "green", "cyan")  # of the regions in the published notebook and page
# One region alone: (what question and answer call it, its paint). published: asked as gray, painted red.
SINGLE = {"gray": ("gray", "gray"), "red": ("red", "red"), "published": ("gray", "red")}

# What Kosmos-2 is asked for the description of a whole painting; its answer repeats the question.
PAINTING_QUESTION = "Question: What are the details of this painting? Answer:"
KOSMOS_PROMPT = f"<grounding>{PAINTING_QUESTION}"
ANSWER_MARK = "Answer: "

TEMPLATE = "llava_v1"  # name in ldm.mllm.templates.TEMPLATES: renders a question as CHAT does
CHAT = LLAVA_SYSTEM + " USER: <image>\n{question} ASSISTANT:"
CAPTION_START = "The image shows"  # the caption of a crop continues these words
CAPTION_QUESTION = (
    "What are the details of this image containing {concept} in a short sentence? Ignore the painting style."
)
CAPTION_PROMPT = f"{CHAT.format(question=CAPTION_QUESTION)} {CAPTION_START}"  # about the crop of one object
# What a model without adapter is asked (LLaVA-Prompt); its whole answer is the prompt.
LLAVA_PROMPT = "Write 1 text prompt that describes a reasonable object to be inserted in the gray area."

CONFIG_FILE = "prompter.json"  # beside the weights of a model or adapter
# Between the tags: one blank at most, a letter or digit, then anything printable but brackets.
CONTENT = r" ?[A-Za-z0-9][^<>\x00-\x1f\x7f-\x9f]*"
SPACED_TAG = re.compile(r"<\s*(/?)\s*(\w+)\s*>")  # as a tokenizer of words decodes a tag: `< red >`


def discover_question(colors: Sequence[str]) -> str:
    """The question about masks of these colours, in the order of the answer."""
    return f"Discover and describe the objects hidden behind the masks of the colors: {', '.join(colors)}."


def discover_prompt(colors: Sequence[str]) -> str:
    """The same in its conversation, up to where the model speaks."""
    return CHAT.format(question=discover_question(colors))


def target_text(pairs: Sequence[tuple[str, str]]) -> str:
    """The answer for (colour, caption) pairs; ValueError for a caption that holds a tag."""
    for color, caption in pairs:
        if re.search(r"</?(" + "|".join((*COLORS, GRAY_NAME)) + ")>", caption):
            raise ValueError(f"the caption of {color} holds a colour's tag: {caption!r}")
    return "".join(f"<{color}>{caption}</{color}>" for color, caption in pairs)


def read_prompt(answer: str, color: str) -> str:
    """The text between the first <color> and the first </color> after it; empty where a tag is missing."""
    match = re.search(rf"<{color}>(.*?)</{color}>", answer, re.DOTALL)
    return match[1].strip() if match else ""


def rgb_of_color(color: str) -> RGB:
    """ValueError names the colours there are."""
    if color != GRAY_NAME and color not in COLORS:
        raise ValueError(f"unknown colour {color!r}; known: {', '.join((*COLORS, GRAY_NAME))}")
    return GRAY if color == GRAY_NAME else COLORS[color]


def palette(count: int) -> list[str]:
    names = list(COLORS)
    return [names[index % len(names)] for index in range(count)]


def check_masks(image_u8: np.ndarray, masks: Sequence[np.ndarray]) -> None:
    """ValueError for a mask that is not bool, not of the image's size, or empty."""
    size = image_u8.shape[:2]
    for number, mask in enumerate(masks, 1):
        if mask.dtype != bool or mask.shape != size:
            actual = f"{mask.dtype} {mask.shape}, its image {size}; for a 0/255 mask: mask > 127"
            raise ValueError(f"mask {number} must be bool and of the image's size (h, w); it is {actual}")
        if not mask.any():
            raise ValueError(f"mask {number} is empty: no pixel is set")


def paint_masks(
    image_u8: np.ndarray,
    masks: Sequence[np.ndarray],
    colors: Sequence[str],
    alphas: Sequence[float] | None = None,
    large_first: bool = True,
) -> np.ndarray:
    """A copy of the image (h, w, 3) with its masks (h, w) bool in colours; later paint covers earlier.

    alphas: opacity of each mask in [0, 1], default 1; blended as by torchvision's draw_segmentation_masks
    large_first: so that small masks stay visible, else in the given order
    """
    alphas = [1.0] * len(masks) if alphas is None else alphas
    jobs = list(zip(masks, colors, alphas, strict=True))
    if large_first:
        jobs.sort(key=lambda job: -np.count_nonzero(job[0]))
    painted = image_u8.copy()
    for mask, color, alpha in jobs:
        below, paint = painted[mask].astype(np.float32), np.array(rgb_of_color(color), np.float32)
        painted[mask] = (below * np.float32(1 - alpha) + paint * np.float32(alpha)).astype(np.uint8)
    return painted


def split_colors(image: LoadedImage) -> list[np.ndarray]:
    """Masks (h, w) bool of an image of coloured masks, one for each colour, in the order of `COLORS`.

    Gray and transparent pixels belong to none. ValueError where nothing is coloured.
    """
    rgb_u8, (h, w), found = image.rgb_u8, image.size, list[np.ndarray]()
    colored = np.ptp(rgb_u8, axis=2) > GRAY_TOLERANCE
    if image.alpha_u8 is not None:
        colored &= image.alpha_u8 > MASK_THRESHOLD
    blocks = [rgb_u8[:-1, :-1], rgb_u8[1:, :-1], rgb_u8[:-1, 1:], rgb_u8[1:, 1:]]
    flat = np.ptp(blocks, axis=0).max(axis=2) == 0  # not so a soft edge
    solid, counts = np.unique(blocks[0][flat & colored[:-1, :-1]], axis=0, return_counts=True)
    for index in np.argsort(-counts, kind="stable"):
        color = solid[index].astype(int)
        if counts[index] >= LEAST_COLOR * h * w and all(abs(color - one).max() > APART for one in found):
            found.append(color)
    if not found:
        raise ValueError("it holds no coloured mask: every pixel is gray, transparent, or of a rare colour")
    values, inverse = np.unique(rgb_u8[colored], axis=0, return_inverse=True)
    names = np.array(list(COLORS.values()))
    found.sort(key=lambda color: int(abs(names - color).max(axis=1).argmin()))
    nearest = abs(values[:, None].astype(int) - found).max(axis=2).argmin(axis=1)
    nearest[2 * np.ptp(values, axis=1).astype(int) < np.ptp(found, axis=1)[nearest]] = -1  # mostly ground
    owner = np.full((h, w), -1)
    owner[colored] = nearest[inverse.ravel()]
    return [owner == number for number in range(len(found))]


def remove_overlaps(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each mask (h, w) bool without what later masks cover."""
    visible: list[np.ndarray] = []
    covered = np.zeros_like(masks[0]) if len(masks) else np.zeros(0, bool)
    for mask in reversed(masks):
        visible.append(mask & ~covered)
        covered = covered | mask
    return visible[::-1]


@dataclass(frozen=True)
class PrompterConfig:
    """How a prompt writer is asked; without this file, as the released MultiMask adapter."""

    name: str = setting("prompt writer", help="short name for logs and recipes")
    notice: str = setting("", help="message when the model is loaded")
    colors: tuple[str, ...] = setting(tuple(COLORS), help="colours of masks that it knows")
    question: str = setting(
        "discover",
        choices=("discover", "gray", "plain"),
        help="discover: all masks in colours (MultiMask); gray: each alone in gray (1Mask); plain: the same, "
        "and the whole answer is the prompt (a model without adapter)",
    )
    template: str = setting("", help="chat template in ldm.mllm.templates.TEMPLATES; empty: as published")
    longest: int = setting(64, low=1, help="most tokens of one prompt")

    def __post_init__(self) -> None:
        check_settings(self)
        unknown = [name for name in self.colors if name not in COLORS]
        if unknown or not self.colors or len(set(self.colors)) < len(self.colors):
            known = ", ".join(COLORS)
            raise ValueError(f"colors must be different names among {known}; got {', '.join(self.colors)}")
        if self.template and self.template not in TEMPLATES:
            raise ValueError(f"unknown template {self.template!r}; allowed: {', '.join(TEMPLATES)}")


def colors_of_masks(config: PrompterConfig, given: Sequence[str]) -> list[str]:
    """Colours of r masks, in their order. given: r prompts, "" where one is to be written.

    The last mask of the question has the first colour, red (published). Masks with a known prompt come first,
    so that the model knows these prompts when it writes the others. ValueError for too few colours.
    """
    count, known = len(given), config.colors
    if count > len(known):
        raise ValueError(f"{config.name} knows {len(known)} colours ({', '.join(known)}), got {count} masks")
    asked = sorted(range(count), key=lambda mask: not given[mask])
    colors = dict(zip(asked, reversed(known[:count]), strict=True))
    return [colors[mask] for mask in range(count)]


def pattern_of(tags: Sequence[str], given: Sequence[str] = ()) -> str:
    """The expression of an answer: tags with their `given` texts or the model's; without tags one line."""
    if not tags:
        return CONTENT
    texts = [f" ?{re.escape(text)}" if text else CONTENT for text in given or [""] * len(tags)]
    return " ?" + "".join(f"<{tag}>{text}</{tag}>" for tag, text in zip(tags, texts, strict=True))


@dataclass(frozen=True, eq=False)
class Query:
    image_u8: np.ndarray  # (h, w, 3)
    question: str
    masks: tuple[int, ...]  # the masks it is about, in the order of the answer
    tags: tuple[str, ...]  # their colours; none: the whole answer is the prompt
    given: tuple[str, ...]  # their prompts as far as they are known, else ""

    def read(self, answer: str) -> dict[int, str]:
        """Mask -> its prompt, for those that are to be written; empty where a tag is missing."""
        if not self.tags:
            return {self.masks[0]: answer.strip()}
        named = zip(self.masks, self.tags, self.given, strict=True)
        return {mask: read_prompt(answer, tag) for mask, tag, known in named if not known}


def queries_for(
    config: PrompterConfig, image_u8: np.ndarray, masks: Sequence[np.ndarray], given: Sequence[str]
) -> list[Query]:
    """The questions about an image (h, w, 3): one about all r masks, or one about each, as configured."""
    if not len(masks):
        raise ValueError("nothing to write: no mask given")
    check_masks(image_u8, masks)
    if len(given) != len(masks):
        raise ValueError(f"{len(given)} prompts are given for {len(masks)} masks; one each, or empty")
    if all(given):
        return []
    if config.question == "discover":
        colors = colors_of_masks(config, given)
        order = sorted(range(len(masks)), key=lambda mask: config.colors.index(colors[mask]), reverse=True)
        tags, known = tuple(colors[mask] for mask in order), tuple(given[mask] for mask in order)
        painted = paint_masks(image_u8, masks, colors)
        return [Query(painted, discover_question(tags), tuple(order), tags, known)]
    plain = config.question == "plain"
    question, tags = (LLAVA_PROMPT, ()) if plain else (discover_question([GRAY_NAME]), (GRAY_NAME,))
    missing = [index for index, text in enumerate(given) if not text]
    gray = [GRAY_NAME]
    return [Query(paint_masks(image_u8, [masks[i]], gray), question, (i,), tags, ("",)) for i in missing]
