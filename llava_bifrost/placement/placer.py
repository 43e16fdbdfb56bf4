"""The geometric placer: a place for an object from relations, anchors and a depth map, no language model.

    request = parse_instruction("Place the dog behind the sofa")
    found = place(request, {"sofa": Place(...)}, depth_01, object_aspect=1.2, candidates=5)

It fits the ground to the depth map, tries feet all over the ground and over the surfaces near the anchors,
gives the object the size that its neighbours and a small table of nouns suggest, and keeps the spots that
are in the image, run into nothing that is known, and satisfy every clause of the request. What is left is
ranked by how safely it satisfies the request, by nearness to the anchors and by how much of the object would
show.
The same input gives the same answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from datasets.geometry import iou
from datasets.relations import Place
from llava_bifrost.language.answer import (
    PHRASES,
    Candidate,
    Location,
    Request,
    clause_text,
    format_answer,
    satisfies,
)
from llava_bifrost.placement.ground import fit_ground
from llava_bifrost.placement.search import (
    AROUND,
    NOWHERE,
    ROOM,
    CandidatePlacements,
    ObjectExtent,
    View,
    clear,
    clipped,
    join,
    on_ground,
    on_plane,
    on_top,
    plan,
    possible,
    surface_below,
    visible_share,
)
from llava_bifrost.placement.sizes import bulge_of, size_at_one

RANKED = 80  # spots that are looked at closely
SAME = 0.55  # boxes that overlap more than this (IoU) are one proposal
SHIFT, DEEPER = 0.012, 0.015  # of the image and in depth: what a safe place can be moved by
UNEVEN = 1.0  # dislike of the top of a thing that shows no level side
FREE = 0.8  # preference for spots that touch not even what the relation allows
AMPLE = 0.3  # preference for spots with some room around them
SAME_SURFACE = 0.4  # preference for the raised surface on which an anchor stands
UPON = ("on", "above")  # relations whose anchor may be touched from above
DECIMALS = 4


class NoPlace(ValueError):
    """Nothing in the image satisfies the request; the message says which part fails."""


@dataclass(frozen=True)
class Item:
    """What is known of the object itself."""

    aspect: float = 1.0  # width / height of its cut-out in pixels
    relative_size: float | None = None  # to the first anchor at equal distance; None: by neighbours, nouns

    def __post_init__(self) -> None:
        if not 0.02 <= self.aspect <= 50:
            raise ValueError(f"the aspect of an object must lie in [0.02, 50], got {self.aspect}")
        if self.relative_size is not None and not 0.02 <= self.relative_size <= 50:
            raise ValueError(f"the relative size must lie in [0.02, 50], got {self.relative_size}")


def place(
    request: Request,
    anchors: Mapping[str, Place],
    depth_01: np.ndarray,
    *,
    item: Item = Item(),  # noqa: B008  frozen
    candidates: int = 1,
) -> list[Candidate]:
    """The best places for a request, best first; at most `candidates` that differ from each other.

    anchors:  name -> place, at least for the names in the request; every other thing is kept clear of
    depth_01: (h, w) of the background, 1 = nearest
    NoPlace when nothing fits, ValueError when an anchor is unknown.
    """
    named = _named(request, anchors)
    if request.replace:
        old = named[request.target]
        location = Location(old.box01_xyxy, old.d)
        return [Candidate(location, 0.0, format_answer(location), 1.0)]
    size_hw = (depth_01.shape[0], depth_01.shape[1])
    view = View(depth_01, fit_ground(depth_01), dict(anchors), size_hw)
    unit_px = size_at_one(request.target, named, anchors, view.ground, size_hw, item.relative_size)
    reasons: list[str] = []
    for factor in (1.0, 0.75, 1.25, 0.5):  # rather another size than no place
        spots = _spots(
            view, request, named, ObjectExtent(unit_px * factor, item.aspect, bulge_of(request.target))
        )
        spots = spots.where(clear(view, spots, _touching(request)))
        if not len(spots):
            reasons.append("the object fits nowhere without running into something")
            continue
        share = visible_share(view, spots)
        if not (share >= ROOM).any():
            reasons.append("nearer things would hide the object everywhere")
            continue
        spots, share = spots.where(share >= ROOM), share[share >= ROOM]
        able = np.logical_and.reduce(
            [possible(PHRASES[phrase], spots, named[name]) for phrase, name in request.relations]
        )
        found = _ranked(view, spots.where(able), share[able], request, named, candidates)
        if found:
            return found
        reasons.append(_failing(spots, request, named))
    raise NoPlace(
        f"no place for the {request.target} satisfies the instruction: {reasons[0]}; "
        "loosen the instruction, or give --box and --depth"
    )


def _named(request: Request, anchors: Mapping[str, Place]) -> dict[str, Place]:
    """The places of the names in a request."""
    known = {" ".join(name.lower().split()): where for name, where in anchors.items()}
    names = (request.target,) if request.replace else request.anchors
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"no place is known for {', '.join(missing)}; known: {', '.join(known) or 'none'}")
    return {name: known[name] for name in names}


def _touching(request: Request) -> list[str]:
    """Anchors that the object stands on or under."""
    return [name for phrase, name in request.relations if PHRASES[phrase] in (*UPON, "under")]


def _spots(
    view: View, request: Request, named: Mapping[str, Place], body: ObjectExtent
) -> CandidatePlacements:
    """All feet that are worth a look, on the surfaces that the relations speak of."""
    relations = {PHRASES[phrase] for phrase, _ in request.relations}
    upon = [name for phrase, name in request.relations if PHRASES[phrase] in UPON]
    parts = [on_top(view, named[name], body) for name in upon]
    if relations - {"on"}:
        parts.append(on_ground(view, body))
        if "under" in relations:
            parts += [on_ground(view, body, factor) for factor in (0.75, 0.55)]
        parts += [_beside(view, where, body) for where in named.values()]
    return join(parts)


def _beside(view: View, anchor: Place, body: ObjectExtent) -> CandidatePlacements:
    """Spots on the raised surface on which an anchor stands; none for an anchor on the ground."""
    plane = surface_below(view, anchor)
    if plane is None:
        return NOWHERE
    x0, _, x1, y1 = anchor.box01_xyxy
    wide = 3 * max(AROUND, x1 - x0)
    return on_plane(view, plane, clipped(x0 - wide, y1 - wide, x1 + wide, y1 + wide), body)


def _ranked(
    view: View,
    spots: CandidatePlacements,
    share: np.ndarray,
    request: Request,
    named: Mapping[str, Place],
    count: int,
) -> list[Candidate]:
    """The best of the spots that satisfy everything, different from each other."""
    liking = _preference_score(view, spots, share, request, named)
    found: list[tuple[float, Location]] = []
    for index in np.argsort(-liking, kind="stable"):
        location = _location(spots.box(int(index)), float(spots.d[index]))
        if location is not None and all(satisfies(location, request, named).values()):
            found.append((float(liking[index]) + _safety(location, request, named), location))
            if len(found) == RANKED:
                break
    kept: list[tuple[float, Location]] = []
    for score, location in sorted(found, key=lambda one: -one[0]):
        if all(iou(location.box01_xyxy, other.box01_xyxy) < SAME for _, other in kept):
            kept.append((score, location))
        if len(kept) == count:
            break
    return [Candidate(location, 0.0, format_answer(location), round(score, 4)) for score, location in kept]


def _location(box01: tuple[float, ...], d: float) -> Location | None:
    """A location in round numbers, None where rounding leaves no box."""
    x0, y0, x1, y1 = (round(value, DECIMALS) for value in box01)
    if x1 <= x0 or y1 <= y0:
        return None
    return Location((x0, y0, x1, y1), min(max(round(d, DECIMALS), 0.0), 1.0))


def _preference_score(
    view: View, spots: CandidatePlacements, share: np.ndarray, request: Request, named: Mapping[str, Place]
) -> np.ndarray:
    """How good spots look apart from the relations themselves, (k,), about 0 to 3."""
    left, right, front, back = plan(view, spots.x, spots.w, spots.foot)
    wide = right - left
    total = np.minimum(share / 0.7, 1.0) - 0.5 * np.abs(np.log(spots.size))
    for phrase, name in request.relations:
        anchor = named[name]
        x0, _, x1, _ = anchor.box01_xyxy
        a0, a1, b0, b1 = (
            float(edge[0])
            for edge in plan(view, np.array([anchor.middle]), np.array([x1 - x0]), np.array([anchor.d]))
        )
        aside = np.abs((left + right) / 2 - (a0 + a1) / 2)
        apart = np.abs((front + back) / 2 - (b0 + b1) / 2)
        reach = (wide + (a1 - a0)) / 2
        relation = PHRASES[phrase]
        if relation in ("left of", "right of", "next to"):
            far, off = np.abs(aside - 1.25 * reach), apart
        elif relation in ("behind", "in front of"):
            far, off = np.abs(apart - 1.4 * reach), aside
        elif relation == "between":
            far, off = 0 * aside, 0.5 * apart
        else:
            far, off = aside, 0.3 * apart
        total = total + np.exp(-(far + off) / reach)
    total = total + SAME_SURFACE * (spots.level > 1) - UNEVEN * (spots.level == 0)
    return total + FREE * clear(view, spots) + AMPLE * clear(view, spots, slim=1.4)


def _safety(location: Location, request: Request, named: Mapping[str, Place]) -> float:
    """Share of small changes of the place that still satisfy the request, in [0, 1]."""
    x0, y0, x1, y1 = location.box01_xyxy
    held, tried = 0, 0
    for step, deeper in ((SHIFT, 0.0), (-SHIFT, 0.0), (0.0, DEEPER), (0.0, -DEEPER)):
        box = (max(0.0, x0 + step), y0, min(1.0, x1 + step), y1)
        moved = Location(box, min(max(location.depth + deeper, 0.0), 1.0))
        tried += 1
        held += all(satisfies(moved, request, named).values())
    return held / tried


def _failing(spots: CandidatePlacements, request: Request, named: Mapping[str, Place]) -> str:
    """Which clause no spot satisfies, or that they exclude each other."""
    step = max(1, len(spots) // 400)
    counts: dict[str, int] = {clause_text(phrase, names): 0 for phrase, names in request.clauses}
    for index in range(0, len(spots), step):
        location = _location(spots.box(index), float(spots.d[index]))
        for clause, true in (satisfies(location, request, named) if location else {}).items():
            counts[clause] += true
    never = [clause for clause, times in counts.items() if not times]
    return f"nowhere is it {' or '.join(never)}" if never else "its parts are never true together"
