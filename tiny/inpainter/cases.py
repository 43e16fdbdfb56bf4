"""Held-out questions for the small inpainter: images, masks, and the names that are asked for.

random  every mask asks for a solid of another colour than the one that stood there, and no two masks of a
        image ask for the same colour: neither the surroundings nor another prompt gives the answer away
true    every mask asks for what stood there
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiny.inpainter.examples import Example
from tiny.regions import Box, Region, Views, grown, spread_out
from tiny.words import Name, caption_of, random_name

SMALL = 24  # side of the small masks, pixels of an image of 128
MARGIN = 2  # pixels between a solid and its mask
ASKED = ("random", "true")


@dataclass(frozen=True, eq=False)
class PaintCase:
    """One image to paint: `wanted` names one solid per mask, `stood` those that stood there."""

    example: Example
    wanted: tuple[Name, ...]
    stood: tuple[Name, ...]

    @property
    def small(self) -> tuple[bool, ...]:
        """Which masks have SMALL pixels a side."""
        return tuple((box[2] - box[0], box[3] - box[1]) == (SMALL, SMALL) for box in self.example.boxes)


def make_cases(views: Views, asked: str, fewest: int, most: int, seed: int) -> list[PaintCase]:
    """One case for every scene with at least `fewest` solids whose masks hardly overlap.

    The number of masks is drawn from what a scene allows, up to `most`, larger numbers more often.
    """
    cases = []
    for scene in range(len(views)):
        rng = np.random.default_rng((seed, scene))
        regions = views.regions[scene]
        order = rng.permutation(len(regions)).tolist()
        chosen = spread_out(regions, order, most, MARGIN)
        if len(chosen) >= fewest:
            count = max(int(rng.integers(fewest, len(chosen) + 1)) for _ in range(2))
            cases.append(_case(views, scene, chosen[:count], asked, rng))
    return cases


def _case(
    views: Views, scene: int, regions: Sequence[Region], asked: str, rng: np.random.Generator
) -> PaintCase:
    image_u8 = views.images_u8[scene]
    size = (image_u8.shape[0], image_u8.shape[1])
    stood = tuple(region.name for region in regions)
    wanted: list[Name] = []
    for name in stood:
        taken = [name.colour, *(other.colour for other in wanted)]
        wanted.append(name if asked == "true" else random_name(rng, taken))
    boxes = tuple(case_box(region.box_xyxy, size) for region in regions)
    example = Example(scene, image_u8, boxes, tuple(caption_of(name) for name in wanted))
    return PaintCase(example, tuple(wanted), stood)


def case_box(box: Box, size: tuple[int, int]) -> Box:
    """The mask over a solid: its box and a margin, or exactly SMALL pixels a side where that is enough."""
    width, height = box[2] - box[0], box[3] - box[1]
    if max(width, height) > SMALL - 2:
        return grown(box, (MARGIN,) * 4, size)
    left = min(max(0, (box[0] + box[2] - SMALL) // 2), size[1] - SMALL)
    top = min(max(0, (box[1] + box[3] - SMALL) // 2), size[0] - SMALL)
    return (left, top, left + SMALL, top + SMALL)
