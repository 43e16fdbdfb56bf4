"""Scenes -> tensors, and what is known about each scene in words and numbers.

Legend: b scenes, n solids (padded to the largest scene), h w pixels, r reference size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.geometry import Box01, bbox_of_mask, box_to_01
from datasets.relations import Place, relation
from datasets.scenes.describe import Scene
from datasets.scenes.image import draw_views
from datasets.scenes.pack import SceneView
from datasets.scenes.settings import SceneOptions


@dataclass(frozen=True)
class SceneFacts:
    """One scene in words and numbers, JSON-able by dataclasses.asdict; one entry per solid in each list."""

    seed: int
    removed: int  # index of the solid that the counterfactual lacks
    names: tuple[str, ...]  # "striped red cone"; unique in the scene
    movable: tuple[bool, ...]  # False for furniture
    supports: tuple[int, ...]  # what each solid stands on, -1 the floor
    boxes01: tuple[Box01, ...]  # amodal box in the rendered frame; zeros when out of frame
    depths: tuple[tuple[float, float, float], ...]  # d (mean of the front), far, near; as depth_01
    visible: tuple[float, ...]  # visible fraction of the amodal mask inside the frame
    area: tuple[float, ...]  # amodal fraction of the frame
    relations: tuple[tuple[int, str, int], ...]  # (a, "left of", b): a is left of b
    captions: tuple[str, ...]  # "a red cone behind a blue cube", relations of the removed solid first
    window01_xyxy: Box01  # rendered part of the full view
    same_pose: bool  # the reference shows the solid in its pose in the scene


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """Rendered scenes. Colours are display values in [0, 1]; depth is 1 = nearest, frame: the full view
    without the removed solid, values beyond it are clipped.
    """

    image_01: Tensor  # (b, 3, h, w)
    without_01: Tensor  # (b, 3, h, w)   the same scene without the removed solid, its shadow and contact gone
    depth_01: Tensor  # (b, h, w)
    without_depth_01: Tensor  # (b, h, w)
    instances: Tensor  # (b, h, w) int64, 0 the room, k solid k - 1, visible
    amodal: Tensor  # (b, n, h, w) bool, whole outline of each solid
    reference_01: Tensor  # (b, 3, r, r)   the removed solid alone on white, another lamp
    reference_mask: Tensor  # (b, r, r) bool
    reference_depth_01: Tensor  # (b, r, r) its own relative inverse depth over the mask, 0 outside
    facts: tuple[SceneFacts, ...]

    @property
    def visible(self) -> Tensor:
        """(b, n, h, w) bool, visible part of each solid."""
        index = torch.arange(1, self.amodal.shape[1] + 1, device=self.instances.device)
        return self.instances[:, None] == index[:, None, None]


def render(scenes: Sequence[Scene], options: SceneOptions, device: torch.device | str = "cpu") -> SceneBatch:
    """Pixels of the scenes. They do not depend on what else is in the batch (bit-equal on a CPU)."""
    if not scenes:
        raise ValueError("render needs at least one scene")
    chunk = options.chunk or (1 if torch.device(device).type == "cpu" else 32)
    n = max(len(scene.solids) for scene in scenes)
    parts = [scenes[start : start + chunk] for start in range(0, len(scenes), chunk)]
    chunks = [_render(part, options, n, device) for part in parts]
    names = [name for name in SceneBatch.__annotations__ if name != "facts"]
    tensors = {name: torch.cat([getattr(part, name) for part in chunks]) for name in names}
    return SceneBatch(**tensors, facts=tuple(fact for part in chunks for fact in part.facts))


def _render(scenes: Sequence[Scene], options: SceneOptions, n: int, device: torch.device | str) -> SceneBatch:
    views, alone = [], []
    for scene in scenes:
        views.append(SceneView(scene.solids, scene.camera, scene.light, scene.room, scene.removed))
        removed = scene.solids[scene.removed]
        alone.append(SceneView([removed], scene.reference_camera, scene.reference_light, None))
    style = options.supersample, options.smooth_edges, device
    main = draw_views(views, options.size, *style)
    reference = draw_views(alone, options.reference_size, *style)
    if options.renderer == "mitsuba":
        from datasets.scenes.path_traced import with_path_tracing

        main, reference = with_path_tracing(views, main), with_path_tracing(alone, reference)
    ranges = torch.tensor([scene.inverse_range for scene in scenes], device=main.inverse.device)
    low, high = ranges.T[:, :, None, None]

    def relative(inverse: Tensor) -> Tensor:
        return ((inverse - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)

    # Part slots -> solids: inverse depth of the front surface, (b, n, h, w), 0 outside the whole outline.
    front = low.new_zeros(len(scenes), n, *options.size)
    every = torch.arange(len(scenes), device=low.device)
    for slot in range(main.part_owner.shape[1]):
        owner = main.part_owner[:, slot].clamp(min=0)  # padding meets no ray, so owner 0 is harmless
        front[every, owner] = torch.maximum(front[every, owner], main.part_inverse[:, slot])
    amodal = front > 0
    depth = torch.where(amodal, (front - low[:, None]) / (high - low)[:, None], 0.0)
    mask = (reference.owner >= 0) & (reference.coverage >= 0.5)
    nearest = torch.where(mask, reference.inverse, 0.0).amax((1, 2), keepdim=True)
    farthest = torch.where(mask, reference.inverse, 1e9).amin((1, 2), keepdim=True)
    own_depth = (reference.inverse - farthest) / (nearest - farthest).clamp(min=1e-6)
    return SceneBatch(
        main.image, main.without, relative(main.inverse), relative(main.inverse_without), main.owner + 1,
        amodal, reference.image, mask, torch.where(mask, own_depth, 0.0),
        _facts(scenes, amodal, main.owner, depth))  # fmt: skip


def _facts(scenes: Sequence[Scene], amodal: Tensor, owner: Tensor, depth: Tensor) -> tuple[SceneFacts, ...]:
    """Numbers of all scenes in a few tensor operations, then words."""
    h, w = owner.shape[1:]
    count = amodal.sum((2, 3))
    index = torch.arange(amodal.shape[1], device=owner.device)
    seen = (owner[:, None] == index[:, None, None]).sum((2, 3)) / count.clamp(min=1)
    nearest = depth.amax((2, 3)).clamp(0, 1)
    farthest = torch.where(amodal, depth, 9.0).amin((2, 3)).clamp(0, 1)
    mean = (depth.sum((2, 3)) / count.clamp(min=1)).clamp(0, 1)
    masks = amodal.cpu().numpy()
    table = torch.stack([count / (h * w), seen, mean, farthest, nearest]).double().cpu().numpy()  # (5, b, n)
    facts = []
    for i, scene in enumerate(scenes):
        boxes, depths = [], []
        area, visible, *extents = table[:, i, : len(scene.solids)].tolist()
        for k, (d, far, near) in enumerate(zip(*extents, strict=True)):
            in_frame = bool(area[k])
            boxes.append(box_to_01(bbox_of_mask(masks[i, k]), (h, w)) if in_frame else (0.0,) * 4)
            depths.append((min(max(d, far), near), far, near) if in_frame else (0.0, 0.0, 0.0))
        supports = tuple(solid.support for solid in scene.solids)
        names = [f"{'an' if solid.name[0] in 'aeiou' else 'a'} {solid.name}" for solid in scene.solids]
        places = {k: Place(box, *depths[k]) for k, box in enumerate(boxes) if box[2]}
        relations = tuple(  # of all solids in the frame, but not of a solid and what stands on it
            (a, word, b)
            for a, place in places.items()
            for b, other in places.items()
            if a != b and supports[b] != a
            for word in sorted(relation(place, other, on=supports[a] == b))
        )
        ordered = sorted(relations, key=lambda triple: triple[0] != scene.removed)
        sides = {"left of": "to the left of", "right of": "to the right of"}
        facts.append(SceneFacts(
            scene.seed, scene.removed, tuple(solid.name for solid in scene.solids),
            tuple(solid.movable for solid in scene.solids), supports, tuple(boxes), tuple(depths),
            tuple(visible), tuple(area), relations,
            tuple(f"{names[a]} {sides.get(word, word)} {names[b]}" for a, word, b in ordered),
            scene.camera.window01_xyxy, scene.same_pose))  # fmt: skip
    return tuple(facts)
