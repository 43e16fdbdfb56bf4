"""Answers that need no model: another right place for a request, and one by who overlooks third objects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from llava_bifrost.language.answer import PHRASES, Location, Request, satisfies
from llava_bifrost.worlds.questions import PROPOSALS, Pool, propose, rounded
from llava_bifrost.worlds.world import SHAPE_NAMES, World

ROUNDS = 6  # of proposals, each twice as many


def another_place(world: World, request: Request, rng: np.random.Generator) -> Location | None:
    """A right answer drawn as the questions' own answers are; None where none was found."""
    shape = SHAPE_NAMES.index(request.target.split()[-1])
    columns = {world.solids.names[solid]: column for column, solid in enumerate(world.anchors)}
    known = {name: world.place(world.anchors[columns[name]]) for name in request.anchors if name in columns}
    if len(known) < len(request.anchors):
        return None
    for attempt in range(ROUNDS):
        things = propose(world, rng, PROPOSALS * 2**attempt, shape)
        if not len(things.d):
            continue
        pool = Pool(world, world.anchors, things)
        clauses = [
            (PHRASES[phrase], tuple(columns[name] for name in names)) for phrase, names in request.clauses
        ]
        best = pool.best(rng, clauses, np.ones(len(things.d), bool))
        if best is not None:
            answer = rounded(things.box[best], float(things.d[best]))
            if all(satisfies(answer, request, known).values()):
                return answer
    return None


def careless_place(world: World, request: Request, rng: np.random.Generator) -> Location | None:
    """As `another_place`, but in a world in which nothing but the named things and furniture is there."""
    names = np.array(world.solids.names)
    kept = world.present & (np.isin(names, request.anchors) | ~world.solids.movable)
    return another_place(replace(world, present=kept), request, rng)
