"""Scenes whose solids come in sets, as painted images with questions: arrays, masks, batches.

A mask is a box that covers one solid; its sides say little about the solid's own. Masks of an image hardly
overlap, and every solid without a mask stays mostly visible.

Legend: n scenes, b images, h w pixels, s solids (padded), m masks (padded), p patches (row-major).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from datasets.scenes.store import read_facts, read_shard
from datasets.sources.rendered import shard_files
from inpainting.prompts import rgb_of
from ldm.files import write_atomic
from tiny.llava import PATCH, pooled
from tiny.prompter.baselines import side_of
from tiny.prompter.words import MASKS
from tiny.regions import Box, overlap
from tiny.words import COLOUR_WORDS, SHAPE_WORDS

SOLIDS = 9  # rows per scene: at most eight and furniture
FURNITURE = ("table", "platform")
KINDS = (*SHAPE_WORDS, *FURNITURE)  # what the vision stage tells apart
KEPT = 0.5  # of the visible pixels of a solid without a mask
OVERLAP = 0.3  # of the smaller of two masks
MASK_SIDES = (0.85, 1.35)  # of the longer side of the solid, each drawn alone
MARGIN = 1  # pixels at least between a solid and the border of its mask
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Sets:
    """Arrays of n scenes; -1 where there is no solid or no such word."""

    images_u8: np.ndarray  # (n, h, w, 3)
    instances_u8: np.ndarray  # (n, h, w) 0 the room, i solid i - 1
    kind: np.ndarray  # (n, s) int8 number into KINDS
    colour: np.ndarray  # (n, s) int8 number into COLOUR_WORDS, -1 for furniture too
    side: np.ndarray  # (n, s) int8 half of the image
    boxes: np.ndarray  # (n, s, 4) int16 box around what is visible, pixels
    pixels: np.ndarray  # (n, s) int32 visible pixels

    def __len__(self) -> int:
        return len(self.images_u8)


def open_sets(data: Path, cache: Path, scenes: int) -> Sets:
    """The first `scenes` scenes of a folder of shards, as memory-mapped arrays that are made once in `cache`.

    Raises ValueError when there are fewer, or the cache was made from other shards.
    """
    files = shard_files(data)
    recipe = {"format": FORMAT, "scenes": scenes, "first": [files[0].name, files[0].stat().st_size]}
    done, names = cache / "recipe.json", Sets.__dataclass_fields__
    if not done.exists():
        _fill(files, cache, scenes, data)
        write_atomic(done, (json.dumps(recipe) + "\n").encode())
    elif json.loads(done.read_text(encoding="utf-8")) != recipe:
        raise ValueError(f"{cache} was made from other scenes than those of {data}; remove it")
    return Sets(**{name: np.load(cache / f"{name}.npy", mmap_mode="r") for name in names})


def _fill(files: list[Path], cache: Path, scenes: int, data: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.memmap] = {}
    start = 0
    for file in tqdm(files, desc="scene arrays", unit="shard"):
        if start == scenes:
            break
        for name, rows in shard_rows(file).items():
            rows = rows[: scenes - start]
            if name not in arrays:
                path, shape = cache / f"{name}.npy", (scenes, *rows.shape[1:])
                arrays[name] = np.lib.format.open_memmap(path, mode="w+", dtype=rows.dtype, shape=shape)
            arrays[name][start : start + len(rows)] = rows
        start += len(rows)
    if start < scenes:
        raise ValueError(f"{data}: {start} scenes, {scenes} are asked for")
    for array in arrays.values():
        array.flush()


def shard_rows(file: Path) -> dict[str, np.ndarray]:
    """The arrays of one shard, as in Sets."""
    shard, facts = read_shard(file), read_facts(file)
    k = len(facts)
    found: dict[str, np.ndarray] = {
        "images_u8": shard.image_u8,
        "instances_u8": shard.instances_u8,
        "kind": np.full((k, SOLIDS), -1, np.int8),
        "colour": np.full((k, SOLIDS), -1, np.int8),
        "side": np.full((k, SOLIDS), -1, np.int8),
        "boxes": np.zeros((k, SOLIDS, 4), np.int16),
        "pixels": np.zeros((k, SOLIDS), np.int32),
    }
    for i, fact in enumerate(facts):
        for j, name in enumerate(fact.names):
            words = name.split()
            found["kind"][i, j] = KINDS.index(words[-1])
            if fact.movable[j]:
                found["colour"][i, j] = COLOUR_WORDS.index(words[-2])
                found["side"][i, j] = side_of((fact.boxes01[j][0] + fact.boxes01[j][2]) / 2)
            rows, columns = np.nonzero(shard.instances_u8[i] == j + 1)
            if len(rows):
                found["boxes"][i, j] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                found["pixels"][i, j] = len(rows)
    return found


@dataclass(frozen=True)
class Masked:
    """One scene's masks in the order of the question: solid, colour (number into MASKS) and box of each."""

    solids: tuple[int, ...]
    colours: tuple[int, ...]
    boxes: tuple[Box, ...]


def mask_box(box: Box, size: tuple[int, int], rng: np.random.Generator) -> Box:
    """A box around a solid's box, inside an image of size (h, w), with sides and place of its own."""
    sides = [box[2] - box[0], box[3] - box[1]]
    wanted = rng.uniform(*MASK_SIDES, 2) * max(sides)
    ends = []
    for axis in range(2):
        spare = max(2 * MARGIN, int(round(wanted[axis])) - sides[axis])
        before = int(rng.integers(MARGIN, spare - MARGIN + 1))
        start = max(0, box[axis] - before)
        ends.append((start, min(size[1 - axis], box[axis + 2] + spare - before)))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def draw_masks(sets: Sets, scene: int, most: int, rng: np.random.Generator) -> Masked | None:
    """Masks over up to `most` solids of a scene; at least two stay free. None if no solid can be masked."""
    movable = np.flatnonzero(sets.colour[scene] >= 0)
    instances = sets.instances_u8[scene]
    count = int(rng.integers(1, max(1, min(most, len(movable) - 2)) + 1))
    solids: list[int] = []
    boxes: list[Box] = []
    left = sets.pixels[scene].astype(np.int64)
    for solid in rng.permutation(movable):
        if len(solids) == count:
            break
        x0, y0, x1, y1 = (int(value) for value in sets.boxes[scene, solid])
        box = mask_box((x0, y0, x1, y1), instances.shape, rng)
        under = instances[box[1] : box[3], box[0] : box[2]]
        lost = np.bincount(under.ravel(), minlength=SOLIDS + 1)[1:]
        others = [other for other in movable if other != solid and other not in solids]
        kept = all(left[other] - lost[other] >= KEPT * sets.pixels[scene, other] for other in others)
        if kept and all(overlap(box, other) <= OVERLAP for other in boxes):
            solids.append(int(solid))
            boxes.append(box)
            left = left - lost
    colours = rng.permutation(len(MASKS))[: len(solids)]
    return Masked(tuple(solids), tuple(int(c) for c in colours), tuple(boxes)) if solids else None


def area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def masks_of(masked: Masked, size: tuple[int, int]) -> list[np.ndarray]:
    """(h, w) bool masks, in the order of the question."""
    found = [np.zeros(size, bool) for _ in masked.boxes]
    for mask, (x0, y0, x1, y1) in zip(found, masked.boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return found


@dataclass(frozen=True, eq=False)
class Painted:
    """Images with painted masks, and what their patches show."""

    images_u8: np.ndarray  # (b, h, w, 3)
    cover: np.ndarray  # (b, p, s + m) float32 share of a patch that shows each solid, then each mask
    kind: np.ndarray  # (b, s)
    colour: np.ndarray  # (b, s)
    side: np.ndarray  # (b, s)
    place: np.ndarray  # (b, s + m, 4) float32 cx, cy, w, h of solids and masks, fractions
    masked: tuple[Masked, ...]


def paint(sets: Sets, index: np.ndarray, most: int, flip: np.ndarray, rng: np.random.Generator) -> Painted:
    """Scenes `index` (b,) with new masks, mirrored where `flip` (b,)."""
    masked = [draw_masks(sets, int(scene), most, rng) or Masked((), (), ()) for scene in index]
    return paint_these(sets, index, flip, masked)


def paint_these(sets: Sets, index: np.ndarray, flip: np.ndarray, masked: list[Masked]) -> Painted:
    """As `paint`, with masks that were drawn before, in the places of the image that is not mirrored."""
    images, instances = sets.images_u8[index], sets.instances_u8[index].astype(np.int64)
    boxes = np.zeros((len(index), SOLIDS + len(MASKS), 4))
    boxes[:, :SOLIDS] = sets.boxes[index]
    for row, one in enumerate(masked):
        for number in sorted(range(len(one.boxes)), key=lambda i: -area(one.boxes[i])):
            x0, y0, x1, y1 = one.boxes[number]
            images[row, y0:y1, x0:x1] = rgb_of(MASKS[one.colours[number]])
            instances[row, y0:y1, x0:x1] = 1 + SOLIDS + number
            boxes[row, SOLIDS + number] = one.boxes[number]
    side = sets.side[index].astype(np.int64)
    h, w = instances.shape[1:]
    if flip.any():
        images[flip], instances[flip] = images[flip][:, :, ::-1], instances[flip][:, :, ::-1]
        boxes[flip] = boxes[flip][..., [2, 1, 0, 3]] * [-1, 1, -1, 1] + [w, 0, w, 0]
        side[flip] = np.where(side[flip] >= 0, 1 - side[flip], -1)
    numbers = np.arange(1, 1 + SOLIDS + len(MASKS))[:, None, None]
    cover = np.stack([pooled((row == numbers)[None], PATCH)[0].T for row in instances])
    boxes = boxes / [w, h, w, h]
    place = np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)
    return Painted(
        images,
        cover.astype(np.float32),
        sets.kind[index].astype(np.int64),
        sets.colour[index].astype(np.int64),
        side,
        place.astype(np.float32),
        tuple(masked),
    )
