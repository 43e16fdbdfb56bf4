"""Questions about a world with one right answer each, drawn from what is true in it.

"Place the dotted red cone behind the table ..." is answered by a typical cone at a place where all stated
relations hold, nothing is touched and the cone is in the image: of such places the one with large margins
that deviates least from the usual meaning of the words. "Replace the blue egg ...": the egg's own place.
Legend: k proposals (places where an object can stand: in the image, touching nothing), m anchors.
"""

from dataclasses import dataclass, replace

import numpy as np

from datasets.relations import Place, Places, between_margins, gap, relation_margins
from datasets.scenes.palette import COLOURS, PATTERN_WORDS
from llava_bifrost.language.answer import satisfies
from llava_bifrost.language.instruction import PHRASES, Request
from llava_bifrost.worlds.world import FLOOR, SHAPE_NAMES, Standing, World

# All are chosen; of the places below about a third of the proposals can stand, and all relations occur.
FRAME = 0.01  # a place keeps this far from the image's border
CLEAR = 0.03  # metres between a place and its neighbours
HIDDEN = 0.6  # fraction of a place's box that one nearer solid may cover
NEAR = 0.7  # fraction of the proposals that are made beside, before or behind an anchor
SURFACE_ODDS = {"floor": 0.6, "furniture": 0.3, "solid": 0.1}
PROPOSALS = 640  # per image; chosen, about a fifth can stand
TRIES = 3  # per question; a shape drawn for it may not fit anywhere
NOISE = 0.3  # of the preference among places that are all right; chosen
DECIMALS = 2
KINDS = {"one": 0.58, "two": 0.3, "between": 0.12}  # of the questions that place something; chosen
EASE = 3.0  # margin from which a safest place need not be safer; chosen
EDGE = 0.06  # metres to the edge of what it stands on that count as a margin of 1; chosen
USUAL = 0.5  # weight of the usual meaning of the words against safety; chosen
PROTOTYPE_GAP = 0.05  # fraction of the image between neighbours in the usual arrangement; chosen
PROTOTYPE_STEP = 0.16  # depth between objects before and behind each other in the usual arrangement; chosen
BY_RELATION: dict[str, tuple[str, ...]] = {
    name: tuple(phrase for phrase, meaning in PHRASES.items() if meaning == name)
    for name in dict.fromkeys(PHRASES.values())
}
_KIND_STEPS = np.cumsum([*KINDS.values()])[:-1]
_PATTERNS, _COLOURS = tuple(PATTERN_WORDS.values()), tuple(COLOURS)
SINGLE = tuple(name for name in BY_RELATION if name != "between")
MIRRORED = {"to the left of": "to the right of", "left of": "right of"}
MIRRORED |= {right: left for left, right in MIRRORED.items()}
Clause = tuple[str, tuple[int, ...]]  # relation, columns of its anchors


@dataclass(frozen=True)
class Question:
    """A request, its answer, and the solids it names in the order of the sentence."""

    request: Request
    answer: Place
    named: tuple[int, ...]


def replace_questions(world: World, rng: np.random.Generator, count: int) -> list[Question]:
    """Up to `count` questions for the place of a solid that is seen."""
    solids, questions = world.solids, []
    for index in map(int, rng.permutation([i for i in world.anchors if solids.movable[i]])[:count]):
        answer = rounded_location(solids.box[index], float(solids.depths[index, 0]))
        questions.append(Question(Request(solids.names[index], replace=True), answer, (index,)))
    return questions


def rounded_location(box: np.ndarray, d: float) -> Place:
    """A location with the decimals of the small locator's numbers."""
    x0, y0, x1, y1 = (round(min(max(float(value), 0.0), 1.0), DECIMALS) for value in box)
    return Place.of((x0, y0, max(x1, round(x0 + 0.01, 2)), max(y1, round(y0 + 0.01, 2))), round(d, DECIMALS))


def place_questions(world: World, rng: np.random.Generator, count: int) -> list[Question]:
    """Up to `count` questions that place something new; fewer where the scene has too few anchors."""
    objects = standing_places(world, rng, PROPOSALS)
    if not world.anchors or not len(objects.d):
        return []
    known = {world.solids.names[i]: world.place(i) for i in world.anchors}
    pool = Pool(world, objects)
    questions: list[Question] = []
    for _ in range(TRIES * count):
        question = pool.question(rng)
        if question is not None and all(satisfies(question.answer, question.request, known).values()):
            questions.append(question)
        if len(questions) == count:
            break
    return questions


def with_safest_answers(
    world: World, questions: list[Question], rng: np.random.Generator, count: int
) -> list[Question]:
    """Questions answered by the safest of `count` proposals; as they were where none of these is right."""
    columns = {world.solids.names[i]: column for column, i in enumerate(world.anchors)}
    known = {name: world.place(world.anchors[column]) for name, column in columns.items()}
    pools: dict[int, Pool] = {}
    safe = []
    for question in questions:
        request = question.request
        shape = SHAPE_NAMES.index(request.target.split()[-1])
        if shape not in pools:
            pools[shape] = Pool(world, standing_places(world, rng, count, shape))
        pool = pools[shape]
        clauses = [(PHRASES[word], tuple(columns[name] for name in names)) for word, names in request.clauses]
        best = pool.safest(clauses)
        if best is not None and all(satisfies(pool.answer(best), request, known).values()):
            question = replace(question, answer=pool.answer(best))
        safe.append(question)
    return safe


class Pool:
    """Proposals of one scene with everything that is true of them."""

    def __init__(self, world: World, objects: Standing) -> None:
        self.world, self.objects = world, objects
        here, solids = list(world.anchors), world.solids
        anchors = Places(solids.box[here].T, *solids.depths[here].T)
        proposed = Places.of(objects.box, objects.d)
        margins = relation_margins(proposed, anchors)
        self.between = between_margins(margins, proposed, anchors)
        hosted = world.surfaces.index[objects.surface][:, None] == np.array(here)
        margins["on"] = np.where(hosted, margins["on"], -1)
        margins["under"] = np.where(hosted, -1, margins["under"])  # boxes alone cannot tell, at an edge
        self.margins = margins
        self.stacked = np.stack([margins[name] for name in SINGLE])  # (relations, k, m)
        # (k, m) how far a place is from the usual one that the words describe, 1 = far. Beside: at the same
        # depth, a small gap away. Before and behind: straight, one clear step. On: in the middle.
        a, b = proposed.spread(1), anchors.spread(0)
        step = a.d - b.d
        beside = np.abs(gap(a.x0, a.x1, b.x0, b.x1) - PROTOTYPE_GAP) / 0.15 + np.abs(step) / 0.1
        straight = np.abs(b.middle - a.middle) / 0.1
        self.deviations = {
            **dict.fromkeys(("left of", "right of", "next to"), beside),
            "in front of": straight + np.abs(step - PROTOTYPE_STEP) / 0.1,
            "behind": straight + np.abs(step + PROTOTYPE_STEP) / 0.1,
            **dict.fromkeys(("on", "above", "under"), straight + np.abs(step) / 0.2),
        }
        middle, d = anchors.middle, anchors.d
        x = proposed.middle[:, None, None] - (middle[:, None] + middle[None]) / 2
        depth = proposed.d[:, None, None] - (d[:, None] + d[None]) / 2
        self.between_deviation = np.abs(x) / 0.1 + np.abs(depth) / 0.1  # (k, m, m)
        border = np.minimum(objects.box[:, :2].min(1), 1 - objects.box[:, 2:].max(1)) / 0.05
        self.room = np.minimum(border, world.clearance(objects) / 0.12)  # (k,) margin around a proposal

    def question(self, rng: np.random.Generator) -> "Question | None":
        """One question of a random kind about a random shape, None when the scene has none of these."""
        kind = list(KINDS)[int(np.searchsorted(_KIND_STEPS, rng.random()))]
        among = self.objects.shape == rng.integers(len(SHAPE_NAMES))
        if kind == "between" and len(self.world.anchors) > 1:
            pairs = np.argwhere((self.between[among] > 0).any(0))
            pairs = pairs[pairs[:, 0] != pairs[:, 1]]
            if not len(pairs):
                return None
            i, j = (int(value) for value in pairs[rng.integers(len(pairs))])
            best = self.best(rng, [("between", (i, j))], among)
            return None if best is None else self._answered(rng, best, ["between", "between"], [i, j])
        possible = np.array((self.stacked[:, among] > 0).any(1))  # (relations, m)
        relations = np.flatnonzero(possible.any(1))
        if not len(relations):
            return None
        first = int(rng.choice(relations))
        anchor = int(rng.choice(np.flatnonzero(possible[first])))
        clauses: list[Clause] = [(SINGLE[first], (anchor,))]
        if kind == "two":  # another clause that holds for some of the proposals for which the first does
            both = np.array((self.stacked[:, among & (self.stacked[first][:, anchor] > 0)] > 0).any(1))
            both[:, anchor] = False
            pairs = np.argwhere(both)
            if len(pairs):
                second, other = pairs[rng.integers(len(pairs))]
                clauses.append((SINGLE[second], (int(other),)))
        best = self.best(rng, clauses, among)
        phrases = [BY_RELATION[name][int(rng.integers(len(BY_RELATION[name])))] for name, _ in clauses]
        return None if best is None else self._answered(rng, best, phrases, [at[0] for _, at in clauses])

    def best(self, rng: np.random.Generator, clauses: list[Clause], among: np.ndarray) -> int | None:
        """The preferred proposal of `among` (k,) bool for which all clauses hold; None: there is none."""
        margin, deviation = self.fit(clauses)
        margin = np.where(among, margin, 0)
        preference = 2 * np.minimum(margin, 1) - deviation + NOISE * rng.random(len(margin))
        best = int(np.argmax(np.where(margin > 0, preference, -np.inf)))
        return best if margin[best] > 0 else None

    def safest(self, clauses: list[Clause]) -> int | None:
        """The proposal that may be off by most before a clause fails, it touches something or falls."""
        margin, deviation = self.fit(clauses)
        margin = np.minimum(margin, self.world.support_margin(self.objects) / EDGE)
        preference = 2 * np.minimum(margin, EASE) - USUAL * deviation
        possible = np.flatnonzero(margin > 0)
        return int(possible[np.argmax(preference[possible])]) if len(possible) else None

    def fit(self, clauses: list[Clause]) -> tuple[np.ndarray, np.ndarray]:
        """(k,) smallest margin of each proposal, its mean deviation from what the clauses usually mean."""
        margin, deviation = self.room, np.zeros(len(self.room))
        for name, at in clauses:
            if name == "between":
                here, off = self.between[:, at[0], at[1]], self.between_deviation[:, at[0], at[1]]
            else:
                here, off = self.margins[name][:, at[0]], self.deviations[name][:, at[0]]
            margin, deviation = np.minimum(margin, here), deviation + off
        return margin, deviation / len(clauses)

    def answer(self, best: int) -> Place:
        """Proposal `best` with the decimals of an answer."""
        return rounded_location(self.objects.box[best], float(self.objects.d[best]))

    def _answered(self, rng: np.random.Generator, best: int, phrases: list[str], at: list[int]) -> "Question":
        """The question to which proposal `best` is the answer: about a solid that the scene does not have."""
        names = self.world.solids.names
        named = tuple(self.world.anchors[column] for column in at)
        target = names[0]
        while target in names:
            pattern, colour = _PATTERNS[rng.integers(len(_PATTERNS))], _COLOURS[rng.integers(len(_COLOURS))]
            target = f"{pattern} {colour} {SHAPE_NAMES[self.objects.shape[best]]}".strip()
        relations = tuple((phrase, names[i]) for phrase, i in zip(phrases, named, strict=True))
        return Question(Request(target, relations), self.answer(best), named)


def standing_places(world: World, rng: np.random.Generator, count: int, shape: int | None = None) -> Standing:
    """Places where something can stand, about a third of `count`; of one of SHAPE_NAMES, or None: of all."""
    solids, surfaces = world.solids, world.surfaces.index
    shapes = rng.integers(len(SHAPE_NAMES), size=count) if shape is None else np.full(count, shape)
    kinds = ["floor" if i == FLOOR else "solid" if solids.movable[i] else "furniture" for i in surfaces]
    odds = np.array([SURFACE_ODDS[kind] for kind in kinds])
    surface = rng.choice(len(surfaces), size=count, p=odds / odds.sum())
    middle, d = rng.uniform(0.05, 0.95, count), rng.uniform(0.02, 1.0, count)
    for j, index in enumerate(surfaces[1:], 1):  # a support is a small target
        here, place = surface == j, world.place(index)
        middle[here] = rng.uniform(place.x0, place.x1, here.sum())
        d[here] = rng.uniform(place.far - 0.03, place.near + 0.03, here.sum())
    if world.anchors:
        # Places beside, before or behind anchors, mostly on what these stand on.
        near = np.flatnonzero(rng.random(count) < NEAR)
        which = rng.choice(world.anchors, size=len(near))
        on = {index: j for j, index in enumerate(surfaces)}
        below = np.array([on.get(int(solids.support[i]), 0) for i in which])
        surface[near] = np.where(rng.random(len(near)) < 0.8, below, 0)
        box, depth = solids.box[which], solids.depths[which, 0]
        sideways, sign = rng.random(len(near)) < 0.5, rng.choice([-1.0, 1.0], size=len(near))
        aside = (box[:, 2] - box[:, 0]) / 2 + rng.uniform(0.04, 0.2, len(near))
        straight = rng.normal(0, 0.04, len(near))
        middle[near] = (box[:, 0] + box[:, 2]) / 2 + np.where(sideways, sign * aside, straight)
        step = rng.uniform(0.08, 0.24, len(near))
        d[near] = depth + np.where(sideways, rng.normal(0, 0.03, len(near)), sign * step)
    standing = world.stand(shapes, surface, np.clip(middle, 0.02, 0.98), np.clip(d, 0.01, 0.99))
    inside = (standing.box[:, :2].min(1) >= FRAME) & (standing.box[:, 2:].max(1) <= 1 - FRAME)
    good = (world.clearance(standing) > CLEAR) & (world.support_margin(standing) > 0) & inside
    box, depth = solids.box[world.present][None], solids.depths[world.present, 0][None]
    placed = standing.box[:, None]
    sides = np.minimum(placed[..., 2:], box[..., 2:]) - np.maximum(placed[..., :2], box[..., :2])
    area = (standing.box[:, 2:] - standing.box[:, :2]).prod(1)
    covered = np.maximum(sides, 0).prod(-1) / np.maximum(area, 1e-6)[:, None]  # (k, solids) by one box each
    good &= (standing.near < 1) & (np.where(depth > standing.d[:, None] + 0.02, covered, 0).max(1) < HIDDEN)
    return Standing(*(values[good] for values in vars(standing).values()))
