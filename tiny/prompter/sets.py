"""Scenes whose solids come in sets: words, then a geometry that fits; arrays and painted masks of them.

Legend: n scenes, b images, h w pixels, s solids (padded), m masks (padded), p patches (row-major).
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator

from datasets.geometry import Box, bbox_of_mask
from datasets.scenes.describe import Scene, SceneRejected, outline
from datasets.scenes.furnish import finish_of, furniture, lamp, room, solid_at
from datasets.scenes.layout import camera_of, choose_removed, place_solid, reference_setup, solid_fractions
from datasets.scenes.pack import SceneView
from datasets.scenes.settings import SceneOptions
from datasets.scenes.store import read_shard, render_shards
from datasets.sources.rendered import shard_files
from inpainting.prompts import rgb_of_color
from tiny.prompter.scenes import SetScenes
from tiny.settings import MASK_COLORS, PATCH
from tiny.world import COLOUR_WORDS, KINDS, SHAPE_WORDS, box_area, cached_arrays, grown, overlap, pooled

FOLLOW = 0.85
NAME = "sets: colour of the half, shape of the scene"  # in the recipe of rendered shards
SALT = 77  # keeps these scenes apart from ordinary ones of the same seed
ATTEMPTS, TRIES = 400, 6  # geometries tried per scene, places per solid
MIDDLE = 0.03  # no solid's centre is closer to the border between the halves, as a fraction of the width
# Of every solid: visible fraction; visible part as a fraction of the image.
MIN_VISIBLE, MIN_AREA = 0.5, 0.005
SOLIDS = 9  # rows per scene: at most eight and furniture
KEPT = 0.5  # of the visible pixels of a solid without a mask
OVERLAP = 0.3  # of the smaller of two masks
MASK_SIDES = (0.85, 1.35)  # of the longer side of the solid, each drawn alone
MARGIN = 1  # pixels at least between a solid and the border of its mask
FORMAT = 1


def draw_contents(rng: Generator, count: int) -> tuple[list[str], list[tuple[str, str]]]:
    """The shape of each of `count` solids, and its colours: if it stands left, if it stands right."""
    halves, shape = rng.choice(COLOUR_WORDS, 2), str(rng.choice(SHAPE_WORDS))
    shapes, colours = [], []
    for _ in range(count):
        own_colour, own_shape = str(rng.choice(COLOUR_WORDS)), str(rng.choice(SHAPE_WORDS))
        follows = rng.random(2) < FOLLOW
        colours.append((str(halves[0]), str(halves[1])) if follows[0] else (own_colour, own_colour))
        shapes.append(shape if follows[1] else own_shape)
    return shapes, colours


def side_of(x01: float) -> int:
    """0 for a place in the left half of the image, 1 in the right."""
    return int(x01 >= 0.5)


def predictive(seen: Sequence[str], words: Sequence[str]) -> np.ndarray:
    """Probability of each of k words, (k,), for one more solid of a set of which `seen` is visible."""
    count, other = Counter(seen), (1 - FOLLOW) / len(words)
    likelihood = np.array([(FOLLOW / other + 1) ** count[word] for word in words])
    return other + FOLLOW * likelihood / likelihood.sum()


def best_guess(seen: Sequence[str], words: Sequence[str]) -> str:
    """The most probable word; of equally probable ones that which is seen first, or the first of all."""
    chances = predictive(seen, words)
    best = [word for word, chance in zip(words, chances, strict=True) if chance > chances.max() - 1e-9]
    return min(best, key=lambda word: list(seen).index(word) if word in seen else len(seen))


def sample_sets(seed: int, options: SceneOptions) -> Scene:
    """The scene of this seed. SceneRejected if no geometry fits its words, which hardly ever happens."""
    rng = np.random.default_rng((seed, SALT))
    shapes, colours = draw_contents(rng, int(rng.integers(options.objects[0], options.objects[1] + 1)))
    for attempt in range(ATTEMPTS):
        with suppress(SceneRejected):
            return _attempt(seed, np.random.default_rng((seed, SALT, attempt)), shapes, colours, options)
    raise SceneRejected(f"seed {seed}: no geometry fits in {ATTEMPTS} attempts")


def _attempt(
    seed: int, rng: Generator, shapes: list[str], colours: list[tuple[str, str]], options: SceneOptions
) -> Scene:
    place, solids = room(rng), [*furniture(rng, options.furniture)]
    camera, light = camera_of(rng, place, solids, options), lamp(rng, place)
    sides = []
    for shape in shapes:
        for _ in range(TRIES):
            added = place_solid(rng, solids, camera, place, partial(solid_at, shape=shape))
            if added is None:
                raise SceneRejected("too few solids fit")
            left, _, right, _ = outline(added.parts, camera)
            middle = (left + right) / 2
            if abs(middle - 0.5) >= MIDDLE:
                break
        else:
            raise SceneRejected("too few solids fit")
        solids.append(added)
        sides.append(side_of(middle))
    fractions, _ = solid_fractions(SceneView(solids, camera, light, place))
    for solid, (area, visible) in zip(solids, fractions, strict=True):
        if solid.movable and (visible < MIN_VISIBLE or area * visible < MIN_AREA):
            raise SceneRejected("a solid is hidden or too small")
    for number, (pair, side) in enumerate(zip(colours, sides, strict=True), len(solids) - len(sides)):
        name, finish = f"{pair[side]} {solids[number].shape}", finish_of(rng, pair[side], "solid")
        solids[number] = replace(solids[number], name=name, finish=finish)
    removed, _, inverse_range = choose_removed(rng, SceneView(solids, camera, light, place), options)
    views = reference_setup(rng, solids[removed], camera, same=True)
    return Scene(seed, tuple(solids), place, camera, light, removed, *views, inverse_range, True)


def render_sets(settings: SetScenes) -> None:
    """Render scenes whose solids come in sets; the same command again continues."""
    render_shards(settings, sample_sets, NAME)


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


def open_sets(data: Path, folder: Path, scenes: int) -> Sets:
    """The first scenes of a folder as memory-mapped arrays, made once; ValueError for others, or too few."""
    files = shard_files(data, "tiny.prompter.scenes")
    recipe = {"format": FORMAT, "scenes": scenes, "first": [files[0].name, files[0].stat().st_size]}

    def arrays_of(file: Path) -> dict[str, np.ndarray]:
        shape = (len((shard := read_shard(file)).facts), SOLIDS)
        kind, colour, side = (np.full(shape, -1, np.int8) for _ in range(3))
        boxes, pixels = np.zeros((*shape, 4), np.int16), np.zeros(shape, np.int32)
        for i, fact in enumerate(shard.facts):
            for j, name in enumerate(fact.names):
                words = name.split()
                kind[i, j] = KINDS.index(words[-1])
                if fact.movable[j]:
                    colour[i, j] = COLOUR_WORDS.index(words[-2])
                    side[i, j] = side_of((fact.boxes01[j][0] + fact.boxes01[j][2]) / 2)
                mask = shard.instances_u8[i] == j + 1
                pixels[i, j], boxes[i, j] = mask.sum(), bbox_of_mask(mask) if mask.any() else 0
        return {
            "images_u8": shard.image_u8, "instances_u8": shard.instances_u8,
            "kind": kind, "colour": colour, "side": side, "boxes": boxes, "pixels": pixels}  # fmt: skip

    return cached_arrays(Sets, folder, recipe, scenes, files, arrays_of)


@dataclass(frozen=True)
class DrawnMasks:
    """Masks of a scene in the order of the question: solid, colour (number into MASK_COLORS), box of each."""

    solids: tuple[int, ...]
    colours: tuple[int, ...]
    boxes: tuple[Box, ...]


def draw_masks(sets: Sets, scene: int, most: int, rng: Generator) -> DrawnMasks:
    """Masks over up to `most` solids of a scene, where any can be masked; at least two solids stay free.

    A mask is a box that covers one solid; its sides say little about the solid's own. Masks of an image
    hardly overlap, and every solid without a mask stays mostly visible.
    """
    movable = np.flatnonzero(sets.colour[scene] >= 0)
    instances, pixels = sets.instances_u8[scene], sets.pixels[scene].astype(np.int64)
    count = int(rng.integers(1, max(1, min(most, len(movable) - 2)) + 1))
    solids, boxes, visible = list[int](), list[Box](), pixels
    for solid in rng.permutation(movable):
        if len(solids) == count:
            break
        tight = sets.boxes[scene, solid].tolist()
        sides = (tight[2] - tight[0], tight[3] - tight[1])
        wanted = rng.uniform(*MASK_SIDES, 2) * max(sides)
        spare = [max(2 * MARGIN, int(round(wanted[axis])) - sides[axis]) for axis in (0, 1)]
        before = [int(rng.integers(MARGIN, spare[axis] - MARGIN + 1)) for axis in (0, 1)]
        box = grown(tight, (*before, spare[0] - before[0], spare[1] - before[1]), instances.shape)
        under = instances[box[1] : box[3], box[0] : box[2]]
        left = visible - np.bincount(under.ravel(), minlength=SOLIDS + 1)[1:]
        others = [other for other in movable if other != solid and other not in solids]
        apart = all(overlap(box, other) <= OVERLAP for other in boxes)
        if apart and all(left[other] >= KEPT * pixels[other] for other in others):
            solids.append(int(solid))
            boxes.append(box)
            visible = left
    colours = rng.permutation(len(MASK_COLORS))[: len(solids)]
    return DrawnMasks(tuple(solids), tuple(int(c) for c in colours), tuple(boxes))


@dataclass(frozen=True, eq=False)
class Painted:
    images_u8: np.ndarray  # (b, h, w, 3)
    cover: np.ndarray  # (b, p, s + m) float32 fraction of a patch that shows each solid, then each mask
    kind: np.ndarray  # (b, s)
    colour: np.ndarray  # (b, s)
    side: np.ndarray  # (b, s)
    place: np.ndarray  # (b, s + m, 4) float32 cx, cy, w, h of solids and masks, fractions
    masks: tuple[DrawnMasks, ...]


def paint_scenes(sets: Sets, index: np.ndarray, flip: np.ndarray, masks: Sequence[DrawnMasks]) -> Painted:
    """Scenes `index` (b,) with their masks, mirrored where `flip` (b,); masks: before the mirroring."""
    images, instances = sets.images_u8[index], sets.instances_u8[index].astype(np.int64)
    boxes = np.zeros((len(index), SOLIDS + len(MASK_COLORS), 4))
    boxes[:, :SOLIDS] = sets.boxes[index]
    for row, drawn in enumerate(masks):
        for number in sorted(range(len(drawn.boxes)), key=lambda i: -box_area(drawn.boxes[i])):
            x0, y0, x1, y1 = drawn.boxes[number]
            images[row, y0:y1, x0:x1] = rgb_of_color(MASK_COLORS[drawn.colours[number]])
            instances[row, y0:y1, x0:x1] = 1 + SOLIDS + number
            boxes[row, SOLIDS + number] = drawn.boxes[number]
    side = sets.side[index].astype(np.int64)
    h, w = instances.shape[1:]
    if flip.any():
        images[flip], instances[flip] = images[flip][:, :, ::-1], instances[flip][:, :, ::-1]
        boxes[flip] = boxes[flip][..., [2, 1, 0, 3]] * [-1, 1, -1, 1] + [w, 0, w, 0]
        side[flip] = np.where(side[flip] >= 0, 1 - side[flip], -1)
    numbers = np.arange(1, 1 + SOLIDS + len(MASK_COLORS))[:, None, None]
    cover = np.stack([pooled((row == numbers)[None], PATCH)[0].T for row in instances])
    low, high = np.split(boxes / [w, h, w, h], 2, -1)
    place = np.concatenate([(low + high) / 2, high - low], -1)
    return Painted(
        images, cover.astype(np.float32), sets.kind[index].astype(np.int64),
        sets.colour[index].astype(np.int64), side, place.astype(np.float32), tuple(masks))  # fmt: skip
