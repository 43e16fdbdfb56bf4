"""Images to compare a composite with, rendered from the stored scene's own description.

Identity: eight objects at the same place under the same light, one of them the right one. Depth order: the
same two objects with the wrong one in front.  Legend: h w pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import safe_open

from datasets.scenes import Scene, SceneFacts, SceneOptions, render, sample_scene
from datasets.scenes.describe import Solid
from datasets.scenes.furnish import solid_at
from datasets.scenes.store import HEADER
from datasets.sources.rendered import shard_files
from ldm.settings.config import Layer, merge_layers

SAME_SHAPE, SAME_COLOUR, RANDOM = 3, 3, 1
MIN_OVERLAP = 64  # pixels of the amodal masks of two neighbours
MIN_GAP = 0.05  # of their depths


def scene_options(folder: Path) -> SceneOptions:
    """The options that the shards of a folder were rendered with."""
    with safe_open(shard_files(folder)[0], "numpy") as shard:
        recipe = json.loads(json.loads(shard.metadata()[HEADER])["recipe"])["options"]
    return merge_layers(SceneOptions, [Layer(recipe, f"{folder}: ")])


def image(scene: Scene, options: SceneOptions) -> np.ndarray:
    """The scene's main view, (h, w, 3) uint8, as the shards hold it."""
    image_01 = render([scene], options).image_01[0]
    return (image_01 * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def with_solid(scene: Scene, index: int, solid: Solid) -> Scene:
    return replace(scene, solids=tuple(solid if i == index else one for i, one in enumerate(scene.solids)))


def in_place_of(new: Solid, old: Solid) -> Solid:
    """`new`, grown or shrunk to the breadth of `old`, standing where `old` stands."""
    part, ratio = new.parts[0], old.radius / new.radius
    foot = np.array([*old.centre[:2], old.bottom + (part.centre[2] - new.bottom) * ratio])
    return replace(new, parts=(replace(part, centre=foot, scale=part.scale * ratio),))


def draw_solid(rng: np.random.Generator, scene: Scene, wanted: Callable[[Solid], bool]) -> Solid:
    """A random solid of the wanted kind in place of the removed one."""
    old = scene.solids[scene.removed]
    for _ in range(2000):
        new = solid_at(rng, old.centre[:2], old.support, scene.solids)
        if wanted(new):
            return in_place_of(new, old)
    raise ValueError(f"scene {scene.seed}: no candidate found for {old.name}")


def other_objects(scene: Scene) -> list[Solid]:
    """Three of the same shape and pose, three others of the same main colour, one that differs in both."""
    old, rng = scene.solids[scene.removed], np.random.default_rng((scene.seed, 8))
    found = []
    for _ in range(SAME_SHAPE):
        new = draw_solid(rng, scene, lambda solid: solid.finish.colour != old.finish.colour)
        found.append(replace(old, finish=new.finish))
    for _ in range(SAME_COLOUR):
        found.append(draw_solid(rng, scene, lambda solid: solid.shape != old.shape
                                and solid.finish.colour == old.finish.colour))  # fmt: skip
    for _ in range(RANDOM):
        found.append(draw_solid(rng, scene, lambda solid: solid.shape != old.shape
                                and solid.finish.colour != old.finish.colour))  # fmt: skip
    return found


def candidates(seed: int, options: SceneOptions, truth_u8: np.ndarray) -> list[np.ndarray]:
    """Eight images (h, w, 3) uint8 of the scene; the first shows the right object."""
    scene = sample_scene(seed, options)
    others = [image(with_solid(scene, scene.removed, solid), options) for solid in other_objects(scene)]
    return [truth_u8, *others]


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A solid whose whole outline overlaps the placed object's at another depth."""

    index: int
    placed_is_nearer: bool
    placed: np.ndarray  # (h, w) bool, visible part of the placed object in the true image
    other: np.ndarray  # (h, w) bool, visible part of the neighbour
    overlap: np.ndarray  # (h, w) bool, both outlines

    def flipped(self) -> Neighbour:
        """The masks of an image with the wrong one in front; what is asked for stays."""
        if self.placed_is_nearer:
            lost = self.overlap & self.placed
            return replace(self, placed=self.placed & ~lost, other=self.other | lost)
        lost = self.overlap & self.other
        return replace(self, placed=self.placed | lost, other=self.other & ~lost)


def neighbours(facts: SceneFacts, instances_u8: np.ndarray, amodal: np.ndarray) -> list[Neighbour]:
    """Neighbours of the removed solid, furniture and what it stands on left out.

    instances_u8: (h, w), amodal: (n, h, w) bool
    """
    me, found = facts.removed, []
    for index in range(len(facts.names)):
        overlap = amodal[me] & amodal[index]
        gap = facts.depths[me][0] - facts.depths[index][0]
        beside = facts.movable[index] and facts.supports[me] != index
        if index == me or not beside or overlap.sum() < MIN_OVERLAP or abs(gap) < MIN_GAP:
            continue
        placed, other = instances_u8 == me + 1, instances_u8 == index + 1
        found.append(Neighbour(index, gap > 0, placed, other, overlap))
    return found


def flipped_image(
    seed: int, options: SceneOptions, neighbour: Neighbour, truth_u8: np.ndarray, without_u8: np.ndarray
) -> np.ndarray:
    """The true image with the wrong one of two overlapping solids in front, (h, w, 3) uint8."""
    if neighbour.placed_is_nearer:
        behind = without_u8
    else:
        scene = sample_scene(seed, options)
        other = scene.solids[neighbour.index]
        below = np.array([0.0, 0.0, -50.0])  # under the floor, out of sight
        parts = tuple(replace(part, centre=part.centre + below) for part in other.parts)
        gone = replace(other, parts=parts)
        behind = image(with_solid(scene, neighbour.index, gone), options)
    return np.where(neighbour.overlap[..., None], behind, truth_u8)
