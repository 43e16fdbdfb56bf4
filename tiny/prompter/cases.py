"""Held-out questions for the small prompt writer, and what can be answered without a network.

Legend: k masks that are known, f numbers that describe one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiny.prompter.baselines import best_guess
from tiny.prompter.data import Masked, Sets, draw_masks, masks_of
from tiny.regions import Box
from tiny.words import COLOUR_WORDS, SHAPE_WORDS, Name, caption

DRAWS, NEIGHBOURS = 8, 40  # masks per scene, and how many of the nearest vote


@dataclass(frozen=True, eq=False)
class Case:
    """One image with masks, and what they hide."""

    scene: int
    image_u8: np.ndarray  # (h, w, 3)
    masked: Masked
    hidden: tuple[Name, ...]
    mates: tuple[tuple[str, ...], ...]  # visible colours in the half of each mask
    shapes: tuple[str, ...]  # all visible shapes

    @property
    def masks(self) -> list[np.ndarray]:
        return masks_of(self.masked, (self.image_u8.shape[0], self.image_u8.shape[1]))


def make_case(sets: Sets, scene: int, most: int, seed: int) -> Case | None:
    """A scene with masks; None if no solid of it can be masked."""
    masked = draw_masks(sets, scene, most, np.random.default_rng((seed, most, scene)))
    if masked is None:
        return None
    colour, kind, side = sets.colour[scene], sets.kind[scene], sets.side[scene]
    seen = [s for s in np.flatnonzero(colour >= 0) if s not in masked.solids]
    hidden = [Name("", COLOUR_WORDS[colour[s]], SHAPE_WORDS[kind[s]]) for s in masked.solids]
    mates = [
        tuple(COLOUR_WORDS[colour[s]] for s in seen if side[s] == side[solid]) for solid in masked.solids
    ]
    shapes = tuple(SHAPE_WORDS[kind[s]] for s in seen)
    return Case(scene, np.array(sets.images_u8[scene]), masked, tuple(hidden), tuple(mates), shapes)


def bayes_optimal_answers(case: Case) -> list[str]:
    """The captions of a reader that recognises everything."""
    shape = best_guess(case.shapes, SHAPE_WORDS)
    return [caption(Name("", best_guess(mates, COLOUR_WORDS), shape)) for mates in case.mates]


def box_answers(sets: Sets, cases: Sequence[Case], most: int) -> list[list[str]]:
    """Captions by vote of the most similar boxes of other scenes: what the boxes alone give away."""
    rows, scenes, kinds, colours = [], [], [], []
    for scene in range(len(sets)):
        for draw in range(DRAWS):
            masked = draw_masks(sets, scene, most, np.random.default_rng((7, draw, scene)))
            for solid, box in zip(masked.solids, masked.boxes, strict=True) if masked else ():
                rows.append(_described(box))
                scenes.append(scene)
                kinds.append(sets.kind[scene, solid])
                colours.append(sets.colour[scene, solid])
    known, of = np.array(rows), np.array(scenes)
    scale = known.std(0)
    votes = ((np.array(colours), COLOUR_WORDS), (np.array(kinds), SHAPE_WORDS))
    found = []
    for case in cases:
        told = []
        for box in case.masked.boxes:
            far = np.square((known - _described(box)) / scale).sum(1) + 1e9 * (of == case.scene)
            near = np.argpartition(far, NEIGHBOURS)[:NEIGHBOURS]
            colour, shape = (words[int(np.bincount(given[near]).argmax())] for given, words in votes)
            told.append(caption(Name("", colour, shape)))
        found.append(told)
    return found


def _described(box: Box) -> np.ndarray:
    """(f,) sides, their ratio, place."""
    w, h = box[2] - box[0], box[3] - box[1]
    return np.array([w, h, 32 * np.log(w / h), (box[0] + box[2]) / 4, box[1] / 2, box[3] / 2])
