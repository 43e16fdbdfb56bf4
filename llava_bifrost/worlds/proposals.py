"""Places of a world where a new object can stand: in the image, touching nothing.

Legend: k proposals.
"""

from __future__ import annotations

import numpy as np

from llava_bifrost.worlds.world import FLOOR, SHAPE_NAMES, Standing, World

FRAME = 0.01  # a place keeps this far from the image's border
CLEAR = 0.03  # metres between a place and its neighbours
HIDDEN = 0.6  # fraction of a place's box that one nearer solid may cover
NEAR = 0.7  # fraction of the proposals that are made beside, before or behind an anchor
SURFACE_ODDS = {"floor": 0.6, "furniture": 0.3, "solid": 0.1}
# All are chosen, as the ranges below: about a third of the proposals can stand and all relations occur.


def propose(world: World, rng: np.random.Generator, count: int, shape: int | None = None) -> Standing:
    """Places where something can stand, about a third of `count`.

    shape: index into SHAPE_NAMES; None draws one for each.
    """
    solids, surfaces = world.solids, world.surfaces
    shapes = rng.integers(len(SHAPE_NAMES), size=count) if shape is None else np.full(count, shape)
    kinds = ["floor" if top.index == FLOOR else "solid" if solids.movable[top.index] else "furniture"
             for top in surfaces]  # fmt: skip
    odds = np.array([SURFACE_ODDS[kind] for kind in kinds])
    surface = rng.choice(len(surfaces), size=count, p=odds / odds.sum())
    middle, d = rng.uniform(0.05, 0.95, count), rng.uniform(0.02, 1.0, count)
    for j, top in enumerate(surfaces[1:], 1):  # a support is a small target
        here, place = surface == j, world.place(top.index)
        middle[here] = rng.uniform(place.x0, place.x1, here.sum())
        d[here] = rng.uniform(place.far - 0.03, place.near + 0.03, here.sum())
    if world.anchors:
        near = np.flatnonzero(rng.random(count) < NEAR)
        surface[near], middle[near], d[near] = _near_anchors(world, rng, len(near))
    found = world.stand(shapes, surface, np.clip(middle, 0.02, 0.98), np.clip(d, 0.01, 0.99))
    inside = (found.box[:, :2].min(1) >= FRAME) & (found.box[:, 2:].max(1) <= 1 - FRAME)
    good = (world.clearance(found) > CLEAR) & (world.footing(found) > 0) & inside
    good &= (found.near < 1) & (_covered(world, found) < HIDDEN)
    return Standing(*(values[good] for values in vars(found).values()))


def _near_anchors(
    world: World, rng: np.random.Generator, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Surface, middle and depth of places beside, before or behind anchors, mostly on what these stand on."""
    solids, where = world.solids, {top.index: j for j, top in enumerate(world.surfaces)}
    which = rng.choice(world.anchors, size=count)
    below = np.array([where.get(int(solids.support[i]), 0) for i in which])
    surface = np.where(rng.random(count) < 0.8, below, 0)
    box, depth = solids.box[which], solids.depths[which, 0]
    sideways, sign = rng.random(count) < 0.5, rng.choice([-1.0, 1.0], size=count)
    gap = (box[:, 2] - box[:, 0]) / 2 + rng.uniform(0.04, 0.2, count)
    middle = (box[:, 0] + box[:, 2]) / 2 + np.where(sideways, sign * gap, rng.normal(0, 0.04, count))
    step = rng.uniform(0.08, 0.24, count)
    return surface, middle, depth + np.where(sideways, rng.normal(0, 0.03, count), sign * step)


def _covered(world: World, objects: Standing) -> np.ndarray:
    """(k,) largest fraction of each box that the box of one nearer solid covers."""
    box, depth = world.solids.box[world.present][None], world.solids.depths[world.present, 0][None]
    mine = objects.box[:, None]
    sides = np.minimum(mine[..., 2:], box[..., 2:]) - np.maximum(mine[..., :2], box[..., :2])
    area = (objects.box[:, 2:] - objects.box[:, :2]).prod(1)
    fraction = np.maximum(sides, 0).prod(-1) / np.maximum(area, 1e-6)[:, None]
    return np.where(depth > objects.d[:, None] + 0.02, fraction, 0).max(1)
