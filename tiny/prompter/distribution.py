"""The distribution of the prompter's scenes: what hides behind a mask depends on what is visible.

The left and the right half of a scene each have a colour, and the scene has a shape, all drawn uniformly. A
solid has the colour of its half with probability FOLLOW, else any; it has the scene's shape with probability
FOLLOW, else any; colour and shape are drawn apart. So the best guess at a hidden colour is the most frequent
colour among the visible solids of the same half, and the best guess at a hidden shape is the most frequent
shape of all visible solids; `predictive` says how often these are right.

Legend: k possible words.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiny.words import COLOUR_WORDS, SHAPE_WORDS

FOLLOW = 0.85
NAME = "sets: colour of the half, shape of the scene"  # in the recipe of rendered shards


@dataclass(frozen=True)
class Contents:
    """The words of a scene's solids, before any geometry. `colours` if a solid stands left, if it stands
    right."""

    shapes: tuple[str, ...]
    colours: tuple[tuple[str, str], ...]


def draw_contents(rng: np.random.Generator, count: int) -> Contents:
    """Words of `count` solids."""
    halves = rng.choice(COLOUR_WORDS, 2)
    shape = str(rng.choice(SHAPE_WORDS))
    shapes, colours = [], []
    for _ in range(count):
        own_colour, own_shape = str(rng.choice(COLOUR_WORDS)), str(rng.choice(SHAPE_WORDS))
        follows = rng.random(2) < FOLLOW
        colours.append(tuple(map(str, halves)) if follows[0] else (own_colour, own_colour))
        shapes.append(shape if follows[1] else own_shape)
    return Contents(tuple(shapes), tuple((left, right) for left, right in colours))


def side_of(x01: float) -> int:
    """0 for a place in the left half of the image, 1 in the right."""
    return int(x01 >= 0.5)


def predictive(seen: Sequence[str], words: Sequence[str], follow: float = FOLLOW) -> np.ndarray:
    """Probability of each word (k,) for one more solid of a set of which `seen` is visible."""
    count, other = Counter(seen), (1 - follow) / len(words)
    likelihood = np.array([(follow / other + 1) ** count[word] for word in words])
    return other + follow * likelihood / likelihood.sum()


def best_guess(seen: Sequence[str], words: Sequence[str]) -> str:
    """The most probable word; of equally probable ones that which is seen first, or the first of all."""
    chances = predictive(seen, words)
    best = [word for word, chance in zip(words, chances, strict=True) if chance > chances.max() - 1e-9]
    return min(best, key=lambda word: list(seen).index(word) if word in seen else len(seen))
