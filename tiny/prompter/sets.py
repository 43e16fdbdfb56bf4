"""Scenes whose solids come in sets: words, then a geometry that fits; the best guesses at what is hidden.

Legend: k possible words.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np

from datasets.scenes.describe import Scene, SceneRejected, outline
from datasets.scenes.furnish import finish_of, furniture, lamp, room, solid_at
from datasets.scenes.layout import camera_of, choose_removed, place_solid, reference_setup, solid_fractions
from datasets.scenes.pack import SceneView
from datasets.scenes.settings import SceneOptions
from datasets.scenes.store import render_shards
from tiny.prompter.scenes import SetScenes
from tiny.world import COLOUR_WORDS, SHAPE_WORDS

FOLLOW = 0.85
NAME = "sets: colour of the half, shape of the scene"  # in the recipe of rendered shards
SALT = 77  # keeps these scenes apart from ordinary ones of the same seed
ATTEMPTS, TRIES = 400, 6  # geometries tried per scene, places per solid
MIDDLE = 0.03  # no solid's centre is closer to the border between the halves, as a fraction of the width
# Of every solid: visible fraction; visible part as a fraction of the image.
MIN_VISIBLE, MIN_AREA = 0.5, 0.005


def draw_contents(rng: np.random.Generator, count: int) -> tuple[list[str], list[tuple[str, str]]]:
    """The shape of each of `count` solids, and its colours: if it stands left, if it stands right."""
    halves = rng.choice(COLOUR_WORDS, 2)
    shape = str(rng.choice(SHAPE_WORDS))
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
    """Probability of each word (k,) for one more solid of a set of which `seen` is visible."""
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
    seed: int, rng: np.random.Generator, shapes: list[str], colours: list[tuple[str, str]],
    options: SceneOptions,
) -> Scene:  # fmt: skip
    place = room(rng)
    solids = [*furniture(rng, options.furniture)]
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
    first = len(solids) - len(sides)
    for number, (pair, side) in enumerate(zip(colours, sides, strict=True), first):
        name, finish = f"{pair[side]} {solids[number].shape}", finish_of(rng, pair[side], "solid")
        solids[number] = replace(solids[number], name=name, finish=finish)
    view = SceneView(solids, camera, light, place)
    removed, _, inverse_range = choose_removed(rng, view, options)
    views = reference_setup(rng, solids[removed], camera, same=True)
    return Scene(seed, tuple(solids), place, camera, light, removed, *views, inverse_range, True)


def render_sets(settings: SetScenes) -> None:
    """Render scenes whose solids come in sets; the same command again continues."""
    render_shards(settings, sample_sets, NAME)
