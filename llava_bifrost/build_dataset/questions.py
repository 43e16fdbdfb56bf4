"""From places to instructions, and from a photograph with its removals to questions with answers.

The answer's depth is in the frame of the image that the question shows: the filled one for "Place ...", the
original for "Replace ...". It is that of the object's own pixels, never of its box.
Legend: h w pixels; a fact is (relation of datasets.relations, names of its anchors).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from datasets.base import Rejected
from datasets.geometry import Box01, box_from_01
from datasets.relations import ALL_RELATIONS, Place, gap, holds
from llava_bifrost.build_dataset import published
from llava_bifrost.build_dataset.objects import Photograph, Removal, grow, unique_names
from llava_bifrost.build_dataset.records import Built, Sample, metadata_number, rounded_place
from llava_bifrost.language.instruction import PHRASES, PUBLISHED, Request
from llava_bifrost.settings import CocoBuild, RelationRules

# All are chosen.
RANGE = (0.02, 0.98)  # quantiles of an object's depth that are its far and near ends
HIGHEST = 1.2  # median depth in the frame of the background that is still clipped to 1
CENTRE_PIXELS = 25  # pixels of the object around its box's centre whose median is the centre's depth
POINTS = 40000  # pixels that enter the fit
LEAST_POINTS = 100
LEAST_SPREAD = 0.02  # of the depth over these pixels; less tells no scale
ROUNDS = 6
TRIM = 2.5  # residuals above this many (scaled) median residuals are left out of the next round
FLOOR = 1e-4  # smallest residual that counts as one
TOUCH = 0.015  # what stands on an object touches it within this fraction of the image's longer side
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


@dataclass(eq=False)
class PreparedPhotograph:
    """One image before depth is known. rgb_u8 is None when there is nothing to ask."""

    photograph: Photograph
    rng: np.random.Generator
    dropped: list[str]
    rgb_u8: np.ndarray | None = None
    removals: list[Removal] = field(default_factory=list)
    replaced: int | None = None  # index of the object that is asked to be replaced

    def drop(self, error: Rejected | ValueError) -> None:
        self.dropped.append(str(error) if isinstance(error, Rejected) else f"file: {error}")

    def place_sample(
        self, nth: int, original_01: np.ndarray, filled_01: np.ndarray, options: CocoBuild
    ) -> Sample:
        """ "Place the X ..." on the image without X, the nth of those removed."""
        photograph, removal, rules = self.photograph, self.removals[nth], options.thresholds
        target, facts = photograph.objects[removal.index], dict[str, Any]()
        if options.published:
            location, request, anchors = published.question(photograph, removal.index, original_01, self.rng)
        else:
            scale, shift, error = align_depth(filled_01, original_01, ~removal.hole)
            if error > rules.depth_error:
                raise Rejected(f"depth frames: they differ by {error:.3f}, at most {rules.depth_error}")
            values = scale * original_01[removal.mask] + shift
            if np.median(values) > HIGHEST:
                raise Rejected(f"too near: depth {np.median(values):.2f} where the background ends at 1")
            centre, median, facts = measure_object(values, removal.mask, target.tight_box(removal.mask))
            # Nameable once the target is gone; its place in the filled image; what the target touches.
            others = [item for index, item in enumerate(photograph.objects) if index != removal.index]
            near, touching, anchors = grow(removal.mask, TOUCH), set(), {}
            for index, name in unique_names(others, rules.anchor).items():
                mask = others[index].mask()
                left = mask & ~removal.hole
                if mask.any() and left.sum() >= max(1, rules.remaining * mask.sum()):
                    anchors[name] = measure_object(filled_01[left], left, others[index].tight_box(mask))[1]
                    touching |= {name} if (mask & near).any() else set()
            true = true_facts([centre, median], anchors, options.relations)
            true = [fact for fact in true if fact[0] != "on" or fact[1][0] in touching]
            if not true:
                raise Rejected("no relation: nothing can be stated of the target and an object with a name")
            chosen = choose_facts(true, options.relations.most, self.rng)
            request = word_request(target.category, chosen, self.rng)
            location = centre if options.format == "center" else median
            facts["frame"] = [metadata_number(value) for value in (scale, shift, error)]
        name, image = f"{photograph.name}-{nth}", f"{photograph.name}_{nth}.jpg"
        named = {anchor: anchors[anchor] for anchor in request.anchors}
        return Sample(name, image, removal.filled_u8, request, location, named, "coco", facts)

    def samples(self, original_01: np.ndarray, filled_01: Sequence[np.ndarray], options: CocoBuild) -> Built:
        """All questions about an image. original_01 (h, w): its depth; filled_01: of each filled image."""
        photograph, index = self.photograph, self.replaced
        samples: list[Sample] = []
        for nth, depth_01 in enumerate(filled_01):
            try:
                samples.append(self.place_sample(nth, original_01, depth_01, options))
            except Rejected as error:
                self.drop(error)
        if index is None:
            return Built(photograph.name, samples, self.dropped)
        # "Replace the X ..." on the original image, in its own depth frame.
        assert self.rgb_u8 is not None, "an image with a question was read"
        target, facts = photograph.objects[index], dict[str, Any]()
        try:
            if options.published:
                name, place = target.category, published.measured_place(target, original_01)
            else:
                name = unique_names(photograph.objects, options.thresholds.anchor)[index]
                mask = target.mask()
                if not mask.any():
                    raise Rejected("thin target: its mask is empty")
                centre, median, facts = measure_object(original_01[mask], mask, target.tight_box(mask))
                place = centre if options.format == "center" else median
            request, image, item = Request(name, replace=True), self.rgb_u8, photograph.name
            samples.append(Sample(f"{item}-r", f"{item}.jpg", image, request, place, {}, "coco", facts))
        except (Rejected, ValueError) as error:
            self.drop(error)
        return Built(photograph.name, samples, self.dropped)


def measure_object(values: np.ndarray, mask: np.ndarray, box01: Box01) -> tuple[Place, Place, dict[str, Any]]:
    """An object from the depths `values` of its pixels, those of mask (h, w) in row order.

    returns: its place at the depth of its centre and at the median, and both depths for the metadata
    """
    values = np.clip(values, 0, 1)
    far, median, near = np.quantile(values, (RANGE[0], 0.5, RANGE[1]))
    x0, y0, x1, y1 = box_from_01(box01, (mask.shape[0], mask.shape[1]))
    rows, columns = np.nonzero(mask)
    away = (rows + 0.5 - (y0 + y1) / 2) ** 2 + (columns + 0.5 - (x0 + x1) / 2) ** 2
    centre = np.median(values[np.argsort(away, kind="stable")[:CENTRE_PIXELS]])
    at_centre, at_median = (rounded_place(box01, float(d), far, near) for d in (centre, median))
    return at_centre, at_median, {"center": metadata_number(centre), "median": metadata_number(median)}


def align_depth(frame_01: np.ndarray, depth_01: np.ndarray, shared: np.ndarray) -> tuple[float, float, float]:
    """Fit depth_01 (h, w) to frame_01 (h, w) on the pixels shared (h, w) bool, by trimmed least squares.

    returns: scale and shift, depth in the frame = scale * depth + shift, and the median residual.
    Rejected when too few pixels are shared, when they are flat, or when near and far are exchanged.
    """
    indices = np.flatnonzero(shared)
    if len(indices) < LEAST_POINTS:
        raise Rejected(f"depth frames: only {len(indices)} pixels outside the hole")
    indices = indices[:: max(1, len(indices) // POINTS)]
    x, y = depth_01.ravel()[indices].astype(np.float64), frame_01.ravel()[indices].astype(np.float64)
    if min(x.max() - x.min(), y.max() - y.min()) < LEAST_SPREAD:
        raise Rejected("depth frames: the background is flat in depth")
    # Start: the median slope of the pairs that lie half of all points apart in x, and the median offset.
    order, half = np.argsort(x, kind="stable"), len(x) // 2
    low, high = order[:half], order[-half:]
    apart = x[high] - x[low]
    steep = apart > 0.1 * (x.max() - x.min())
    scale = float(np.median((y[high] - y[low])[steep] / apart[steep])) if steep.any() else 1.0
    shift = float(np.median(y - scale * x))
    for _ in range(ROUNDS):
        residual = np.abs(scale * x + shift - y)
        close = residual <= max(TRIM * 1.4826 * float(np.median(residual)), FLOOR)
        centre = x[close].mean()
        spread = ((x[close] - centre) ** 2).sum()
        scale = float(((x[close] - centre) * (y[close] - y[close].mean())).sum() / max(spread, 1e-12))
        shift = float(y[close].mean() - scale * centre)
    residual = np.abs(scale * x + shift - y)
    if scale <= 0:
        raise Rejected("depth frames: near and far are exchanged by the removal")
    return scale, shift, float(np.median(residual))
