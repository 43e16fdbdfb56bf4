"""Rendered scenes as inpainting examples: boxes over solids, each with the words for what stands there.

Masks are boxes, as in the paper's data. Furniture is never masked: it fills too much of the image.
Legend: n scenes, b batch, r regions, h w pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from datasets.geometry import Box, bbox_of_mask, clip_box, mask_of_box
from datasets.scenes.batch import SceneFacts
from datasets.scenes.settings import EVAL_BIT
from datasets.scenes.store import OpenShard, read_facts
from datasets.sources.rendered import shard_files
from tiny.world import Name, read_name

LEAST_VISIBLE, LEAST_SIDE, MOST_AREA = 0.6, 9, 0.4
MOST_OVERLAP = 0.3  # of the smaller box, between two masks of one example


@dataclass(frozen=True)
class Region:
    """One solid that can be masked: the box around what is visible of it, and its name."""

    box_xyxy: Box
    name: Name


@dataclass(frozen=True, eq=False)
class Views:
    """Images of whole scenes with the solids that can be masked in each; scenes with none are left out."""

    images_u8: np.ndarray  # (n, h, w, 3)
    regions: tuple[tuple[Region, ...], ...]

    def __len__(self) -> int:
        return len(self.regions)


def read_views(folder: Path, count: int | None = None) -> Views:
    """The first scenes of a folder of shards, as far as they have a solid to mask."""
    images, regions = [], list[tuple[Region, ...]]()
    for path in tqdm(shard_files(folder), desc=f"reading {folder.name}", leave=False):
        if count is not None and len(regions) >= count:
            break
        shard = OpenShard(path)
        images.append(shard.array("image_u8"))
        regions += map(regions_of, shard.array("instances_u8"), shard.facts)
    usable = [index for index, chosen in enumerate(regions[:count]) if chosen]
    if not usable:
        raise ValueError(f"{folder}: no scene has a solid to mask")
    return Views(np.concatenate(images)[usable], tuple(regions[index] for index in usable))


def regions_of(instances_u8: np.ndarray, facts: SceneFacts) -> tuple[Region, ...]:
    """Solids of one scene that are mostly visible, neither tiny nor huge. instances: (h, w)."""
    regions = []
    for index, (text, visible) in enumerate(zip(facts.names, facts.visible, strict=True)):
        name, mask = read_name(text), instances_u8 == index + 1
        if name is None or visible < LEAST_VISIBLE or not mask.any():
            continue
        box = bbox_of_mask(mask)
        if min(box[2] - box[0], box[3] - box[1]) >= LEAST_SIDE and box_area(box) <= MOST_AREA * mask.size:
            regions.append(Region(box, name))
    return tuple(regions)


def grown(box: Box, margins: Sequence[int], size: tuple[int, ...]) -> Box:
    """The box with (left, top, right, bottom) more pixels, inside an image of size (h, w)."""
    (x0, y0, x1, y1), (left, top, right, bottom) = box, margins
    return clip_box((x0 - left, y0 - top, x1 + right, y1 + bottom), (size[0], size[1]))


def overlap(first: Box, second: Box) -> float:
    """Fraction of the smaller box that the other covers."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0, width) * max(0, height) / min(box_area(first), box_area(second))


def box_area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def spread_out(regions: Sequence[Region], order: Sequence[int], most: int, margin: int = 2) -> list[Region]:
    """The first regions in `order` whose masks hardly overlap, at most `most`."""
    chosen: list[Region] = []
    size = (1 << 16, 1 << 16)
    for index in order:
        box = grown(regions[index].box_xyxy, (margin,) * 4, size)
        others = (grown(region.box_xyxy, (margin,) * 4, size) for region in chosen)
        if len(chosen) < most and all(overlap(box, other) <= MOST_OVERLAP for other in others):
            chosen.append(regions[index])
    return chosen


def box_masks(boxes: Sequence[Box], size: tuple[int, ...]) -> np.ndarray:
    """(r, h, w) bool, one mask per box in an image of size (h, w)."""
    return np.stack([mask_of_box(box, (size[0], size[1])) for box in boxes])


def refuse_training_scenes(folder: Path, module: str = "datasets.scenes render") -> None:
    """ValueError when a folder that should be held out has no scenes, or scenes with training seeds."""
    for path in shard_files(folder, f"{module} --split eval"):
        if not all(facts.seed & EVAL_BIT for facts in read_facts(path)):
            raise ValueError(f"{path} holds training scenes; render with `--split eval`")
