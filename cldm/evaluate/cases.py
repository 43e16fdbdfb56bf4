"""Held-out scenes as a user gives them to the compositor, with ground truth, and what is measured on them.

Identity: eight objects at the same place under the same light, one of them the right one, rendered from the
stored scene's own description. Depth order: the same two objects, the wrong one in front.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from datasets.geometry import depth_extent
from datasets.inputs import Inputs, PairOptions
from datasets.pairs import Pair, build_pair
from datasets.scenes import Scene, SceneFacts, SceneOptions, render, sample_scene
from datasets.scenes.describe import Solid
from datasets.scenes.furnish import solid_at
from datasets.scenes.store import from_01
from datasets.sources.rendered import RenderedScenes
from ldm.experts.depth import DepthEstimator
from ldm.images import normalize

MIN_PIXELS = 40  # of the object; chosen: fewer make a meaningless PSNR
MIN_OVERLAP = 64  # pixels of the amodal masks of two neighbours; chosen
MIN_GAP = 0.05  # of their depths; chosen
TRIES = 2000  # solids drawn for one candidate; chosen
SURE = 0.05  # difference of true depth from which two pixels have an order; chosen
BELOW = np.array([0.0, 0.0, -50.0])  # metres under the floor, out of sight


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A solid whose whole outline overlaps the placed object's at another depth."""

    index: int
    placed_is_nearer: bool
    placed: np.ndarray  # (h, w) bool, visible part of the placed object in the true image
    other: np.ndarray  # (h, w) bool, visible part of the neighbour
    overlap: np.ndarray  # (h, w) bool, both outlines

    def flipped(self) -> "Neighbour":
        """The masks of an image with the wrong one in front; `placed_is_nearer` stays."""
        swapped = self.overlap & (self.placed if self.placed_is_nearer else self.other)
        return replace(self, placed=self.placed ^ swapped, other=self.other ^ swapped)

    def flipped_image(
        self, seed: int, options: SceneOptions, truth_u8: np.ndarray, without_u8: np.ndarray
    ) -> np.ndarray:
        """The true image of scene `seed` with the wrong one of the two in front, (h, w, 3) uint8."""
        behind = without_u8
        if not self.placed_is_nearer:
            scene = sample_scene(seed, options)
            other = scene.solids[self.index]
            parts = tuple(replace(part, centre=part.centre + BELOW) for part in other.parts)
            behind = scene_image(scene, self.index, replace(other, parts=parts), options)
        return np.where(self.overlap[..., None], behind, truth_u8)


def neighbours(facts: SceneFacts, instances_u8: np.ndarray, amodal: np.ndarray) -> list[Neighbour]:
    """Those of the removed solid, without furniture and its support. amodal: (n, h, w) bool."""
    placed, found = facts.removed, []
    for index in range(len(facts.names)):
        overlap = amodal[placed] & amodal[index]
        gap = facts.depths[placed][0] - facts.depths[index][0]
        beside = facts.movable[index] and facts.supports[placed] != index
        if index == placed or not beside or overlap.sum() < MIN_OVERLAP or abs(gap) < MIN_GAP:
            continue
        masks = (instances_u8 == placed + 1, instances_u8 == index + 1, overlap)
        found.append(Neighbour(index, gap > 0, *masks))
    return found


@dataclass(frozen=True, eq=False)
class SceneCase:
    inputs: Inputs
    pair: Pair
    truth_u8: np.ndarray  # (h, w, 3)
    visible: np.ndarray  # (h, w) bool, object visible in the true image and in the placed cut-out
    same_pose: bool
    seed: int  # of the scene
    neighbours: list[Neighbour]
    depth_error: dict[str, float]  # of the background's estimated depth


def inference_inputs(inputs: Inputs, estimated_01: np.ndarray) -> Inputs:
    """Estimated depth, one depth number in its frame (0 = farthest of the background, 1 = nearest)."""
    low, high = float(inputs.background_depth_01.min()), float(inputs.background_depth_01.max())
    assert inputs.box01_xyxy is not None  # scenes have one
    centre = (sum(inputs.depth_range) / 2 - low) / max(high - low, 1e-6)
    extent = depth_extent(float(np.clip(centre, 0, 1)), inputs.box01_xyxy)
    return replace(inputs, background_depth_01=estimated_01, depth_range=extent, reference_depth_01=None)


def find_cases(
    source: RenderedScenes, options: PairOptions, count: int, estimator: DepthEstimator, given_depth: bool
) -> tuple[list[SceneCase], dict[int, str]]:
    """The first `count` scenes whose object shows enough pixels; by seed, why others before them fail."""
    cases: list[SceneCase] = []
    failed: dict[int, str] = {}
    for index in range(len(source)):
        shown, facts = source.inputs(index), source.facts(index)
        truth = normalize(shown.background_depth_01)
        estimated = estimator.estimate(shown.background_u8)
        order = pixel_order(estimated, truth, np.random.default_rng(index))
        error = {"mae": float(np.abs(estimated - truth).mean()), "order": order}
        inputs = replace(shown if given_depth else inference_inputs(shown, estimated), target_u8=None)
        try:
            pair = build_pair(inputs, options)
        except ValueError as reason:  # such as an object that the estimated depth hides completely
            failed[facts.seed] = str(reason)
            continue
        window, layers = pair.geometry.window, pair.geometry.native_layers
        visible = source.silhouette(index) & window.embed(layers.visible)
        if visible.sum() < MIN_PIXELS:
            failed[facts.seed] = f"{visible.sum()} pixels of the object are visible, fewer than {MIN_PIXELS}"
            continue
        assert shown.target_u8 is not None  # scenes have one
        near = neighbours(facts, source.array("instances_u8", index), source.array("amodal", index))
        truth_u8 = shown.target_u8
        cases.append(SceneCase(inputs, pair, truth_u8, visible, facts.same_pose, facts.seed, near, error))
        if len(cases) == count:
            break
    return cases, failed


def scene_image(scene: Scene, index: int, solid: Solid, options: SceneOptions) -> np.ndarray:
    """The main view (h, w, 3) uint8 of a scene with another solid at `index`, as the shards hold it."""
    solids = tuple(solid if i == index else old for i, old in enumerate(scene.solids))
    return from_01(render([replace(scene, solids=solids)], options).image_01[0])


def draw_solid(rng: np.random.Generator, scene: Scene, accepts: Callable[[Solid], bool]) -> Solid:
    """A random solid that `accepts`, as broad as the removed one and standing in its place."""
    old = scene.solids[scene.removed]
    for _ in range(TRIES):
        new = solid_at(rng, old.centre[:2], old.support, scene.solids)
        if accepts(new):
            part, ratio = new.parts[0], old.radius / new.radius
            centre = np.array([*old.centre[:2], old.bottom + (part.centre[2] - new.bottom) * ratio])
            return replace(new, parts=(replace(part, centre=centre, scale=part.scale * ratio),))
    raise ValueError(f"scene {scene.seed}: no candidate found for {old.name}")


def other_objects(scene: Scene) -> list[Solid]:
    """Three of the same shape and pose, three others of the same main colour, one that differs in both."""
    old, rng = scene.solids[scene.removed], np.random.default_rng((scene.seed, 8))
    colour, shape = old.finish.colour, old.shape
    recoloured = [draw_solid(rng, scene, lambda new: new.finish.colour != colour) for _ in range(3)]
    return [
        *(replace(old, finish=new.finish) for new in recoloured),
        *(draw_solid(rng, scene, lambda new: new.shape != shape and new.finish.colour == colour)
          for _ in range(3)),
        draw_solid(rng, scene, lambda new: new.shape != shape and new.finish.colour != colour)]  # fmt: skip


def rendered_candidates(seed: int, options: SceneOptions, truth_u8: np.ndarray) -> list[np.ndarray]:
    """Eight images (h, w, 3) uint8 of the scene; the first shows the right object."""
    scene = sample_scene(seed, options)
    return [truth_u8, *(scene_image(scene, scene.removed, solid, options) for solid in other_objects(scene))]


def nearest_candidate(result_u8: np.ndarray, candidates_u8: Sequence[np.ndarray], mask: np.ndarray) -> int:
    """Index of the candidate image with the smallest mean absolute RGB difference over mask (h, w) bool."""
    shown = result_u8[mask].astype(np.int16)
    return int(np.argmin([np.abs(shown - image[mask]).mean() for image in candidates_u8]))


def pixel_order(estimated_01: np.ndarray, truth_01: np.ndarray, rng: np.random.Generator) -> float:
    """Fraction of 2000 random pixel pairs, at least SURE apart, that the estimate puts in the right order."""
    first, second = rng.integers(truth_01.size, size=(2, 2000))
    true = truth_01.ravel()[first] - truth_01.ravel()[second]
    estimated = estimated_01.ravel()[first] - estimated_01.ravel()[second]
    sure = np.abs(true) >= SURE
    return float((np.sign(estimated) == np.sign(true))[sure].mean()) if sure.any() else 1.0
