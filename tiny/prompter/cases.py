"""Held-out questions for the small prompt writer, and what can be answered without a network.

Legend: k masks that are known, f numbers that describe one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiny.prompter.data import DrawnMasks, Sets, draw_masks
from tiny.prompter.distribution import best_guess
from tiny.regions import Box, box_masks
from tiny.words import COLOUR_WORDS, KINDS, SHAPE_WORDS, Name, caption_of

DRAWS, NEIGHBOURS = 8, 40  # masks per scene, and how many of the nearest vote; chosen


@dataclass(frozen=True, eq=False)
class PromptCase:
    """One image with masks, and what they hide."""

    scene: int
    image_u8: np.ndarray  # (h, w, 3)
    drawn: DrawnMasks
    hidden: tuple[Name, ...]
    mates: tuple[tuple[str, ...], ...]  # visible colours in the half of each mask
    shapes: tuple[str, ...]  # all visible shapes

    @property
    def masks(self) -> list[np.ndarray]:
        """(h, w) bool, in the order of the question."""
        return list(box_masks(self.drawn.boxes, self.image_u8.shape[:2]))


def prompt_case(sets: Sets, scene: int, most: int, seed: int) -> PromptCase | None:
    """A scene with masks; None if no solid of it can be masked."""
    drawn = draw_masks(sets, scene, most, np.random.default_rng((seed, most, scene)))
    if not drawn.solids:
        return None
    side = sets.side[scene]
    colours = [COLOUR_WORDS[number] if number >= 0 else "" for number in sets.colour[scene]]
    shapes = [KINDS[number] for number in sets.kind[scene]]
    seen = [solid for solid, colour in enumerate(colours) if colour and solid not in drawn.solids]
    return PromptCase(
        scene, np.array(sets.images_u8[scene]), drawn,
        hidden=tuple(Name("", colours[solid], shapes[solid]) for solid in drawn.solids),
        mates=tuple(
            tuple(colours[other] for other in seen if side[other] == side[solid]) for solid in drawn.solids
        ),
        shapes=tuple(shapes[solid] for solid in seen),
    )  # fmt: skip


def bayes_optimal_answers(case: PromptCase) -> list[str]:
    """The captions of a reader that recognises everything."""
    shape = best_guess(case.shapes, SHAPE_WORDS)
    return [caption_of(Name("", best_guess(mates, COLOUR_WORDS), shape)) for mates in case.mates]


def box_answers(sets: Sets, cases: Sequence[PromptCase], most: int) -> list[list[str]]:
    """Captions by vote of the most similar boxes of other scenes: what the boxes alone give away."""
    known, scenes, colours, shapes = [], [], [], []
    for scene in range(len(sets)):
        for draw in range(DRAWS):
            drawn = draw_masks(sets, scene, most, np.random.default_rng((7, draw, scene)))
            for solid, box in zip(drawn.solids, drawn.boxes, strict=True):
                known.append(_described(box))
                scenes.append(scene)
                colours.append(sets.colour[scene, solid])
                shapes.append(sets.kind[scene, solid])
    votes = ((np.array(colours), COLOUR_WORDS), (np.array(shapes), SHAPE_WORDS))
    descriptions, scale = np.array(known), np.std(known, 0)

    def answer(case: PromptCase, box: Box) -> str:
        same = np.array(scenes) == case.scene
        distance = np.square((descriptions - _described(box)) / scale).sum(1) + 1e9 * same
        near = np.argpartition(distance, NEIGHBOURS)[:NEIGHBOURS]
        colour, shape = (words[int(np.bincount(given[near]).argmax())] for given, words in votes)
        return caption_of(Name("", colour, shape))

    return [[answer(case, box) for box in case.drawn.boxes] for case in cases]


def _described(box: Box) -> np.ndarray:
    """(f,) sides, their ratio, place."""
    w, h = box[2] - box[0], box[3] - box[1]
    return np.array([w, h, 32 * np.log(w / h), (box[0] + box[2]) / 4, box[1] / 2, box[3] / 2])
