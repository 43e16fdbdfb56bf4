"""Questions about a world with one right answer each, drawn from what is true in it.

"Place the dotted red cone behind the table ..." is answered by a typical cone at a place where all stated
relations hold, nothing is touched and the cone is in the image; of such places the plainest is taken, so
that answers are alike where the room allows. "Replace the blue egg ..." is answered by the egg's own place.

Legend: k proposals, m anchors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from datasets.scenes.palette import COLOURS, PATTERN_WORDS
from llava_bifrost.language.answer import PHRASES, Location, Request, satisfies
from llava_bifrost.worlds.relations import (
    Places,
    between_stray,
    between_table,
    relation_table,
    stray_table,
)
from llava_bifrost.worlds.world import SHAPE_NAMES, Standing, World

PROPOSALS = 640  # per image, of which about a fifth can stand
TRIES = 3  # per question; a shape drawn for it may not fit anywhere
FRAME = 0.01  # a place keeps this far from the image's border
CLEAR = 0.03  # metres between a place and its neighbours
HIDDEN = 0.6  # share of a place's box that nearer solids may cover
NEAR = 0.7  # share of the proposals that are made beside, before or behind an anchor
NOISE = 0.3  # of the preference among places that are all right
DECIMALS = 2
SURFACE_ODDS = {"floor": 0.6, "furniture": 0.3, "solid": 0.1}
KINDS = {"one": 0.58, "two": 0.3, "between": 0.12}  # of the questions that place something
BY_RELATION: dict[str, tuple[str, ...]] = {
    name: tuple(phrase for phrase, meaning in PHRASES.items() if meaning == name)
    for name in dict.fromkeys(PHRASES.values())
}
_KIND_STEPS = np.cumsum([*KINDS.values()])[:-1]
_PATTERNS, _COLOURS = tuple(PATTERN_WORDS.values()), tuple(COLOURS)
SINGLE = tuple(name for name in BY_RELATION if name != "between")
MIRRORED = {"to the left of": "to the right of", "left of": "right of"}
MIRRORED |= {right: left for left, right in MIRRORED.items()}


@dataclass(frozen=True)
class Question:
    """A request, its answer, and the solids it names in the order of the sentence."""

    request: Request
    answer: Location
    named: tuple[int, ...]

    def mirrored(self) -> Question:
        """The same question about the mirrored image."""
        x0, y0, x1, y1 = self.answer.box01_xyxy
        pairs = tuple((MIRRORED.get(phrase, phrase), name) for phrase, name in self.request.relations)
        box = (round(1 - x1, DECIMALS), y0, round(1 - x0, DECIMALS), y1)
        return Question(
            replace(self.request, relations=pairs), replace(self.answer, box01_xyxy=box), self.named
        )


def propose(world: World, rng: np.random.Generator, count: int, shape: int | None = None) -> Standing:
    """Places where something can stand: in the image, touching nothing. About a third of `count`.

    shape: index into SHAPE_NAMES; None draws one for each.
    """
    anchors, tops = world.anchors, world.surfaces
    shapes = rng.integers(len(SHAPE_NAMES), size=count) if shape is None else np.full(count, shape)
    odds = np.array([SURFACE_ODDS[_kind(world, top.index)] for top in tops])
    surface = rng.choice(len(tops), size=count, p=odds / odds.sum())
    middle, d = rng.uniform(0.05, 0.95, count), rng.uniform(0.02, 1.0, count)
    hosts = np.array([top.index for top in tops])
    for j in range(1, len(tops)):  # what supports something is a small target
        here, place = surface == j, world.place(hosts[j])
        x0, _, x1, _ = place.box01_xyxy
        middle[here] = rng.uniform(x0, x1, here.sum())
        d[here] = rng.uniform(place.far - 0.03, place.near + 0.03, here.sum())
    if anchors:
        near = np.flatnonzero(rng.random(count) < NEAR)
        surface[near], middle[near], d[near] = _near(world, rng, len(near))
    found = world.stand(shapes, surface, np.clip(middle, 0.02, 0.98), np.clip(d, 0.01, 0.99))
    good = (world.clearance(found) > CLEAR) & (world.footing(found) > 0) & in_frame(found.box, FRAME)
    good &= (found.near < 1) & (_covered(world, found) < HIDDEN)
    return Standing(*(getattr(found, name)[good] for name in Standing.__dataclass_fields__))


def _near(world: World, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Surface, middle and depth of places beside, before or behind anchors, mostly on what these stand on."""
    solids, where = world.solids, {top.index: j for j, top in enumerate(world.surfaces)}
    which = rng.choice(world.anchors, size=count)
    own = np.array([where.get(int(solids.support[i]), 0) for i in which])
    surface = np.where(rng.random(count) < 0.8, own, 0)
    box, depth = solids.box[which], solids.depths[which, 0]
    sideways, sign = rng.random(count) < 0.5, rng.choice([-1.0, 1.0], size=count)
    gap = (box[:, 2] - box[:, 0]) / 2 + rng.uniform(0.04, 0.2, count)
    middle = (box[:, 0] + box[:, 2]) / 2 + np.where(sideways, sign * gap, rng.normal(0, 0.04, count))
    step = rng.uniform(0.08, 0.24, count)
    return surface, middle, depth + np.where(sideways, rng.normal(0, 0.03, count), sign * step)


def _kind(world: World, index: int) -> str:
    return "floor" if index < 0 else ("solid" if world.solids.movable[index] else "furniture")


def in_frame(box: np.ndarray, border: float = 0.0) -> np.ndarray:
    """(k, 4) -> (k,) bool"""
    return (box[:, :2].min(1) >= border) & (box[:, 2:].max(1) <= 1 - border)


def _covered(world: World, things: Standing) -> np.ndarray:
    """(k,) largest share of each box that the box of one nearer solid covers."""
    here = np.flatnonzero(world.present)
    box, depth = world.solids.box[here][None], world.solids.depths[here, 0][None]
    mine = things.box[:, None]
    sides = np.minimum(mine[..., 2:], box[..., 2:]) - np.maximum(mine[..., :2], box[..., :2])
    area = (things.box[:, 2] - things.box[:, 0]) * (things.box[:, 3] - things.box[:, 1])
    share = np.maximum(sides, 0).prod(-1) / np.maximum(area, 1e-6)[:, None]
    return np.where(depth > things.d[:, None] + 0.02, share, 0).max(1)


def new_name(rng: np.random.Generator, shape: int, taken: tuple[str, ...]) -> str:
    """A solid's name of this shape that the scene does not have."""
    while True:
        pattern, colour = _PATTERNS[rng.integers(len(_PATTERNS))], _COLOURS[rng.integers(len(_COLOURS))]
        name = f"{pattern} {colour} {SHAPE_NAMES[shape]}".strip()
        if name not in taken:
            return name


def replace_questions(world: World, rng: np.random.Generator, count: int) -> list[Question]:
    """Up to `count` questions for the place of a solid that is seen."""
    seen = [i for i in world.anchors if world.solids.movable[i]]
    chosen = rng.permutation(seen)[:count]
    return [_replacing(world, int(i)) for i in chosen]


def _replacing(world: World, index: int) -> Question:
    answer = rounded(world.solids.box[index], float(world.solids.depths[index, 0]))
    return Question(Request(world.solids.names[index], replace=True), answer, (index,))


def rounded(box: np.ndarray, d: float) -> Location:
    """A location with the decimals of the small locator's numbers."""
    x0, y0, x1, y1 = (round(min(max(float(value), 0.0), 1.0), DECIMALS) for value in box)
    return Location((x0, y0, max(x1, round(x0 + 0.01, 2)), max(y1, round(y0 + 0.01, 2))), round(d, DECIMALS))


def place_questions(world: World, rng: np.random.Generator, count: int) -> list[Question]:
    """Up to `count` questions that place something new; fewer where the scene has too few anchors."""
    anchors = world.anchors
    things = propose(world, rng, PROPOSALS)
    if not anchors or not len(things.d):
        return []
    known = {world.solids.names[i]: world.place(i) for i in anchors}
    pool = Pool(world, anchors, things)
    found = []
    for _ in range(TRIES * count):
        question = pool.question(rng)
        if question is not None and all(satisfies(question.answer, question.request, known).values()):
            found.append(question)
        if len(found) == count:
            break
    return found


class Pool:
    """Proposals of one scene with everything that is true of them."""

    def __init__(self, world: World, anchors: tuple[int, ...], things: Standing) -> None:
        self.world, self.anchors, self.things = world, anchors, things
        box, d = things.box, things.d
        solids = world.solids
        here = list(anchors)
        others = Places.of(solids.box[here], *solids.depths[here].T)
        mine = Places.answered(box, d)
        self.table = relation_table(mine, others)
        hosts = np.array([top.index for top in world.surfaces])[things.surface]
        self.stray = stray_table(mine, others)
        hosted = hosts[:, None] == np.array(here)
        self.table["on"] = np.where(hosted, self.table["on"], -1)
        self.table["under"] = np.where(hosted, -1, self.table["under"])  # boxes alone cannot tell, at an edge
        self.stacked = np.stack([self.table[name] for name in SINGLE])  # (relations, k, m)
        self.between = between_table(self.table, mine, others)
        self.between_stray = between_stray(mine, others)
        border = np.minimum(box[:, :2].min(1), 1 - box[:, 2:].max(1)) / 0.05
        self.comfort = np.minimum(border, world.clearance(things) / 0.12)

    def question(self, rng: np.random.Generator) -> Question | None:
        """One question of a random kind about a random shape, None when the scene has none of these."""
        kind = list(KINDS)[int(np.searchsorted(_KIND_STEPS, rng.random()))]
        mine = self.things.shape == rng.integers(len(SHAPE_NAMES))
        if kind == "between" and len(self.anchors) > 1:
            return self._between(rng, mine)
        possible = np.array((self.stacked[:, mine] > 0).any(1))  # (relations, m)
        relations = np.flatnonzero(possible.any(1))
        if not len(relations):
            return None
        first = int(rng.choice(relations))
        one = int(rng.choice(np.flatnonzero(possible[first])))
        clauses = [(SINGLE[first], one)]
        if kind == "two":
            more = self._second(rng, mine & (self.stacked[first][:, one] > 0), one)
            clauses += [] if more is None else [more]
        best = self.best(rng, [(name, (column,)) for name, column in clauses], mine)
        pairs = [(self._phrase(rng, name), column) for name, column in clauses]
        return None if best is None else self._answered(rng, best, pairs)

    def best(self, rng: np.random.Generator, clauses: list[tuple[str, tuple[int, ...]]],
             among: np.ndarray) -> int | None:  # fmt: skip
        """The proposal of `among` (k,) bool for which all clauses (relation, columns of its anchors) hold
        most plainly."""
        slack, stray = np.where(among, self.comfort, 0), np.zeros(len(self.comfort))
        for name, at in clauses:
            if name == "between":
                here, far = self.between[:, at[0], at[1]], self.between_stray[:, at[0], at[1]]
            else:
                here, far = self.table[name][:, at[0]], self.stray[name][:, at[0]]
            slack, stray = np.minimum(slack, here), stray + far
        liking = 2 * np.minimum(slack, 1) - stray / len(clauses) + NOISE * rng.random(len(slack))
        found = int(np.argmax(np.where(slack > 0, liking, -np.inf)))
        return found if slack[found] > 0 else None

    def _second(self, rng: np.random.Generator, true: np.ndarray, first: int) -> tuple[str, int] | None:
        """Another clause that holds for some of the proposals for which the first does."""
        both = np.array((self.stacked[:, true] > 0).any(1))  # (relations, m)
        both[:, first] = False
        found = np.argwhere(both)
        if not len(found):
            return None
        name, column = found[rng.integers(len(found))]
        return SINGLE[name], int(column)

    def _between(self, rng: np.random.Generator, mine: np.ndarray) -> Question | None:
        possible = np.argwhere((self.between[mine] > 0).any(0))
        possible = possible[possible[:, 0] != possible[:, 1]]
        if not len(possible):
            return None
        i, j = (int(value) for value in possible[rng.integers(len(possible))])
        best = self.best(rng, [("between", (i, j))], mine)
        return None if best is None else self._answered(rng, best, [("between", i), ("between", j)])

    def _phrase(self, rng: np.random.Generator, relation: str) -> str:
        phrases = BY_RELATION[relation]
        return phrases[int(rng.integers(len(phrases)))]

    def _answered(self, rng: np.random.Generator, best: int, pairs: list[tuple[str, int]]) -> Question:
        """The question to which proposal `best` is the answer."""
        named = tuple(self.anchors[column] for _, column in pairs)
        names = self.world.solids.names
        target = new_name(rng, int(self.things.shape[best]), names)
        request = Request(
            target, tuple((phrase, names[i]) for (phrase, _), i in zip(pairs, named, strict=True))
        )
        return Question(request, rounded(self.things.box[best], float(self.things.d[best])), named)
