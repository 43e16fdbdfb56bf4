"""From places to an instruction: which relations are true of an object, and which of them are stated.

Legend: a fact is (relation of datasets.relations, names of its anchors).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from datasets.geometry import Box01
from datasets.relations import ALL_RELATIONS, Place, gap, holds
from llava_bifrost.language.instruction import PHRASES, PUBLISHED, Request
from llava_bifrost.settings import RelationRules

Fact = tuple[str, tuple[str, ...]]


def true_facts(
    targets: Sequence[Place],
    anchors: Mapping[str, Place],
    rules: RelationRules,
    known: Mapping[str, frozenset[str]] | None = None,
) -> list[Fact]:
    """Everything that holds for an object, in a fixed order.

    targets: the object with each depth that may stand for it (centre, median); a fact must hold for all
    known:   relations to each anchor that are known to be true; then only these are stated, and "between"
    """
    box = targets[0].box01_xyxy
    near = {name: anchor for name, anchor in anchors.items() if reaches(box, anchor.box01_xyxy, rules.reach)}

    def sure(word: str, target: Place, anchor: Place) -> bool:
        """Whether a relation holds with the margin that estimated depth needs."""
        step = abs(target.d - anchor.d)
        if word in ("in front of", "behind"):
            enough = step >= rules.depth_step
        else:
            enough = word not in ("on", "above", "under") or step <= rules.same_depth
        return enough and holds(word, target, anchor)

    facts: list[Fact] = []
    for name, anchor in near.items():
        words = [word for word in ALL_RELATIONS[:-1] if known is None or word in known.get(name, ())]
        facts += [(word, (name,)) for word in words if all(sure(word, target, anchor) for target in targets)]
    for pair in combinations(near, 2) if rules.between else ():
        if all(holds("between", target, *(near[name] for name in pair)) for target in targets):
            facts.append(("between", pair))
    return facts


def reaches(box: Box01, other: Box01, reach: float) -> bool:
    """Whether two boxes are at most `reach` apart, along either axis."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = box, other
    return max(gap(ax0, ax1, bx0, bx1), gap(ay0, ay1, by0, by1)) <= reach


def choose_facts(facts: Sequence[Fact], most: int, rng: np.random.Generator) -> list[Fact]:
    """Up to `most` facts, each anchor in one of them only. Rare relations are as likely as frequent ones."""
    count = int(rng.integers(1, most + 1))
    left = list(facts)
    chosen: list[Fact] = []
    while left and len(chosen) < count:
        words = sorted({word for word, _ in left})
        word = words[int(rng.integers(len(words)))]
        options = [fact for fact in left if fact[0] == word]
        fact = options[int(rng.integers(len(options)))]
        chosen.append(fact)
        left = [other for other in left if not set(other[1]) & set(fact[1])]
    return chosen


def word_request(target: str, facts: Sequence[Fact], rng: np.random.Generator) -> Request:
    """State the facts, each with one of its phrases."""
    pairs: list[tuple[str, str]] = []
    for word, names in facts:
        surfaces = [phrase for phrase, relation in PUBLISHED.items() if relation == word]
        surfaces = surfaces or [phrase for phrase, relation in PHRASES.items() if relation == word]
        phrase = surfaces[int(rng.integers(len(surfaces)))]
        pairs += [(phrase, name) for name in names]
    return Request(target, tuple(pairs))
