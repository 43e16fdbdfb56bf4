"""The geometric placer: a place for an object from relations, anchors and a depth map, no language model.

    request = parse_instruction("Place the dog behind the sofa")
    found = place_object(request, {"sofa": Place(...)}, depth_01, item=Item(aspect=1.2), candidates=5)

Contact points are tried all over the ground and over the surfaces near the anchors; candidates that are in
the image, run into nothing that is known and satisfy the request are ranked (docs/locator.md).
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from datasets.geometry import iou
from datasets.relations import Place, Places, between_margins, relation_margins
from llava_bifrost.language.answer import Candidate, format_answer, named_places, satisfies
from llava_bifrost.language.instruction import PHRASES, Request, clause_text
from llava_bifrost.placement import search, sizes
from llava_bifrost.placement.ground import EDGE, fit_ground

log = logging.getLogger(__name__)

# All are chosen by looking at answers in rendered rooms and photographs.
FACTORS = (1.0, 0.75, 1.25, 0.5)  # sizes that are tried in turn: rather another size than no place
ALMOST = -0.5  # margin of a clause from which a candidate is worth the exact check of its rounded numbers
RANKED = 80  # candidates that are looked at closely
OCCLUSION = 0.03  # depth by which what is seen in a box may be nearer without hiding the object
SPACE = 0.4  # of a box under an object in which something farther is seen
SAME = 0.55  # boxes that overlap more than this (IoU) are one proposal
SHIFT, DEEPER = 0.012, 0.015  # of the image and in depth: what a safe place can be moved by
UNEVEN = 1.0  # dislike of the top of an object that shows no level side
FREE = 0.8  # preference for candidates that touch not even what the relation allows
CLOSE = 0.5  # of the radius of an object that must be free where it fits nowhere else
OFF_CENTRE = 0.4  # dislike of places behind or in front of an object, but not of its middle
BETWEEN = 0.05  # best distance to what it is behind or in front of, in mean widths of both
DISTANT = 0.5  # dislike of places far from the anchors
AMPLE = 0.3  # preference for candidates with some room around them
SAME_SURFACE = 0.4  # preference for the raised surface on which an anchor stands
DECIMALS = 4
# Points of the ellipse in a box, in its widths and heights from the middle of its lower edge.
_V, _U = (np.mgrid[0:9, 0:9] + 0.5) / 9
_ACROSS, _ALONG = np.stack([_U - 0.5, _V - 1])[:, (_U - 0.5) ** 2 + (_V - 0.5) ** 2 < 0.26]


class NoPlace(ValueError):
    """Nothing in the image satisfies the request; the message says which part fails."""


@dataclass(frozen=True)
class Item:
    aspect: float = 1.0  # width / height of its cut-out in pixels
    relative_size: float | None = None  # to the first anchor at equal distance; None: by neighbours, nouns
    like: Place | None = None  # a place at which it is as large as it is, of an object that is moved

    def __post_init__(self) -> None:
        if not 0.02 <= self.aspect <= 50:
            raise ValueError(f"the aspect of an object must lie in [0.02, 50], got {self.aspect}")


def place_object(
    request: Request,
    anchors: Mapping[str, Place],
    depth_01: np.ndarray,
    *,
    item: Item = Item(),  # noqa: B008  frozen
    candidates: int = 1,
) -> list[Candidate]:
    """The best places for a request, best first; at most `candidates` that differ from each other.

    anchors:  name -> place, at least for the names in the request; every other object is kept clear of
    depth_01: (h, w) of the background, 1 = nearest
    NoPlace when nothing fits, ValueError when an anchor is unknown.
    """
    named = named_places(request, anchors)
    if request.replace:
        old = named[request.target]
        location = Place.of(old.box01_xyxy, old.d)
        return [Candidate(location, 0.0, format_answer(location), 1.0)]
    size_hw = (depth_01.shape[0], depth_01.shape[1])
    ground = fit_ground(depth_01, [place.box01_xyxy for place in anchors.values()])
    if not ground.measured:
        log.warning("the depth map shows no ground: level ground under the camera is assumed")
    view = search.View(depth_01, ground, dict(anchors))
    if item.like is not None and item.relative_size is None:
        unit_px = sizes.size_px(item.like, size_hw) / float(ground.scale(item.like.d))
    else:
        unit_px = sizes.size_at_one(request.target, named, anchors, view.ground, size_hw, item.relative_size)
    relations = [PHRASES[phrase] for phrase, _ in request.relations]
    relief = sizes.ROUND_RELIEF if sizes.is_one_of(sizes.ROUND_NOUNS, request.target) else sizes.RELIEF
    touched = {name for phrase, name in request.relations if PHRASES[phrase] in (*search.UPON, "under")}
    touched |= {name for name, place in anchors.items() if sizes.is_level(name, place)}
    passes = [(touched, search.SLIM), (touched, CLOSE)]
    if "in front of" in relations:  # nothing says how far what the border cuts off reaches
        cut_off = {name for name, place in anchors.items() if place.touches_border(EDGE)}
        passes.append((touched | cut_off, CLOSE))
    reasons: list[str] = []
    for ignored, slim in passes:
        for factor in FACTORS:
            extent = search.ObjectExtent(unit_px * factor, item.aspect, relief)
            found = _attempt(view, request, named, extent, ignored, slim)
            if isinstance(found, list):
                return found[:candidates]
            reasons.append(found)
    wrong = f"no place for the {request.target} satisfies the instruction: {reasons[0]};"
    raise NoPlace(f"{wrong} loosen the instruction, or give --box and --depth")


def _attempt(
    view: search.View,
    request: Request,
    named: Mapping[str, Place],
    extent: search.ObjectExtent,
    ignored: Collection[str],
    slim: float,
) -> list[Candidate] | str:
    """The candidates for an object of one size, best first, or why there are none. Options as in `clear`."""
    relations = [(PHRASES[phrase], name) for phrase, name in request.relations]
    tried = view.placements(relations, named, extent)
    tried = tried.where(search.clear(view, tried, ignored, slim))
    if not len(tried):
        return "the object fits nowhere without running into something"
    # Fraction of each box, its corners left out, in front of which nothing stands.
    x, y = tried.x[:, None] + _ACROSS * tried.w[:, None], tried.y[:, None] + _ALONG * tried.h[:, None]
    seen = search.at(view.depth_01, x, y)
    visible = (seen <= tried.d[:, None] + OCCLUSION).mean(axis=1)
    shown, boxes01 = visible >= search.ROOM, tried.boxes01
    if not shown.any():
        return "nearer objects would hide the object everywhere"
    for name in (name for relation, name in relations if relation == "under"):
        above = named[name]  # between its sides, not before its foot, and where one sees through
        shown &= (boxes01[:, 0] > above.x0) & (boxes01[:, 2] < above.x1) & (boxes01[:, 3] < above.y1 + EDGE)
        shown &= (seen < above.d - OCCLUSION).mean(axis=1) >= SPACE
        if not shown.any():
            return f"there is no space to be seen under the {name}"
    tried, visible = tried.where(shown), visible[shown]
    depths = np.array([(place.d, place.far, place.near) for place in named.values()])
    others = Places(np.array([place.box01_xyxy for place in named.values()]).T, *depths.T)
    places, columns = Places.of(tried.boxes01, tried.d), {name: column for column, name in enumerate(named)}
    single = relation_margins(places, others, surfaces=True)
    double, margins = between_margins(single, places, others), {}  # clause -> (k,) its margin
    for phrase, names in request.clauses:
        pairs = double[:, columns[names[0]]] if len(names) == 2 else single[PHRASES[phrase]]
        margins[clause_text(phrase, names)] = pairs[:, columns[names[-1]]]
    able = np.logical_and.reduce([margin > ALMOST for margin in margins.values()])
    if best := _ranked(view, tried.where(able), visible[able], request, named):
        return best
    never = [clause for clause, margin in margins.items() if not (margin > 0).any()]
    return f"nowhere is it {' or '.join(never)}" if never else "its parts are never true together"


def _ranked(
    view: search.View, able: search.Placements, visible: np.ndarray, request: Request,
    named: Mapping[str, Place],
) -> list[Candidate]:  # fmt: skip
    """Candidates that satisfy everything in the numbers of the answer, best first, each unlike the better."""
    # Apart from the relations themselves: nearness to the anchors, visibility, room; about 0 to 3.
    left, right, front, back = search.plan(view, able.x, able.w, able.contact)
    total = np.minimum(visible / 0.7, 1.0) - 0.5 * np.abs(np.log(able.size))
    for phrase, name in request.relations:
        relation = PHRASES[phrase]
        a0, a1, b0, b1 = search.footprint(view, name)
        aside = np.abs((left + right) / 2 - (a0 + a1) / 2)
        apart = np.abs((front + back) / 2 - (b0 + b1) / 2)
        reach = (right - left + (a1 - a0)) / 2
        if relation in ("left of", "right of", "next to"):
            far, off = np.abs(aside - 1.25 * reach), apart
        elif relation in ("behind", "in front of"):
            far, off = np.abs(np.maximum(front - b1, b0 - back) - BETWEEN * reach), OFF_CENTRE * aside
        elif relation == "between":
            far, off = 0 * aside, 0.5 * apart
        else:
            far, off = aside, 0.3 * apart
        total = total + np.exp(-(far + off) / reach) - DISTANT * np.log1p((far + off) / reach)
    total = total + SAME_SURFACE * (able.level > 1) - UNEVEN * (able.level == 0)
    preference = total + FREE * search.clear(view, able) + AMPLE * search.clear(view, able, slim=1.4)
    boxes01 = able.boxes01
    scored: list[tuple[float, Place]] = []
    for index in np.argsort(-preference, kind="stable"):
        x0, y0, x1, y1 = (round(float(value), DECIMALS) for value in boxes01[index])
        if x1 <= x0 or y1 <= y0:
            continue
        depth = min(max(round(float(able.d[index]), DECIMALS), 0.0), 1.0)
        location = Place.of((x0, y0, x1, y1), depth)
        if not all(satisfies(location, request, named).values()):
            continue
        safe = 0  # of four small changes, those that still satisfy the request
        for step, deeper in ((SHIFT, 0.0), (-SHIFT, 0.0), (0.0, DEEPER), (0.0, -DEEPER)):
            box = (max(0.0, x0 + step), y0, min(1.0, x1 + step), y1)
            moved = Place.of(box, min(max(depth + deeper, 0.0), 1.0))
            safe += all(satisfies(moved, request, named).values())
        scored.append((float(preference[index]) + safe / 4, location))
        if len(scored) == RANKED:
            break
    ranked: list[Candidate] = []
    for score, location in sorted(scored, key=lambda pair: -pair[0]):
        if all(iou(location.box01_xyxy, other.location.box01_xyxy) < SAME for other in ranked):
            ranked.append(Candidate(location, 0.0, format_answer(location), round(score, 4)))
    return ranked
