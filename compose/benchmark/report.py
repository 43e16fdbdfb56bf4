"""Numbers of all composites of a benchmark -> means with intervals, paired differences, table, sheet."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import wilcoxon

from datasets.benchmark.manifest import BenchmarkCase
from ldm.images import encode_png
from ldm.metrics.frechet import frechet_distance, kernel_distance
from ldm.metrics.intervals import centred_interval, mean_interval
from ldm.sheet import grid

# Name of a number -> what it is, and whether more is better.
MEASURES = {
    "dino": ("DINO similarity of the box to the object", True),
    "dinov2": ("DINOv2 similarity of the box to the object", True),
    "clip_i": ("CLIP-I similarity of the box to the object", True),
    "dreamsim": ("DreamSim similarity of the box to the object (cosine)", True),
    "depth_order": ("depth order to the anchor as instructed, depth re-estimated", True),
    "drift_pixels": ("fraction of background pixels that changed", False),
    "drift_bytes": ("background bytes that changed", False),
    "drift_psnr_db": ("PSNR of the background, dB (100: unchanged)", True),
    "seam": ("change along the edge of the changed rectangle, gray levels", False),
}
DISTANCES = {"fid": ("FID", False), "kid": ("KID", False)}
ON_SHEET = 5  # best and worst cases each; chosen: ten rows fit on a page
CELL = 192  # pixels


@dataclass(eq=False)
class Scores:
    """The numbers of one folder; index i is case i."""

    folder: str
    cases: list[BenchmarkCase] = field(default_factory=list)
    numbers: list[dict[str, float]] = field(default_factory=list)
    thumbnails: list[list[np.ndarray]] = field(default_factory=list)  # object, background, result
    features: np.ndarray | None = None  # (n, 2048) of the composites
    real: np.ndarray | None = None  # (m, 2048) of real images

    def add(self, case: BenchmarkCase, numbers: dict[str, float], images: Sequence[np.ndarray]) -> None:
        """images: object, background, result."""
        self.cases.append(case)
        self.numbers.append(numbers)
        small = [Image.fromarray(image) for image in images]
        for image in small:
            image.thumbnail((CELL, CELL), Image.Resampling.BOX)
        self.thumbnails.append([np.asarray(image) for image in small])

    def of(self, name: str) -> np.ndarray:
        """(n,) values of a number, nan where a case has none."""
        return np.array([numbers.get(name, np.nan) for numbers in self.numbers])


def finite_summary(values: np.ndarray) -> dict[str, Any]:
    """Number, mean and interval of the finite values; empty without any."""
    finite = values[np.isfinite(values)]
    return mean_interval(finite) if len(finite) else {}


def folder_report(scores: Scores) -> dict[str, Any]:
    """{number: n, mean, low, high}; by relation as well; FID and KID where there is a network for them."""
    means = {name: finite_summary(scores.of(name)) for name in MEASURES}
    relations, orders = np.array([case.relation for case in scores.cases]), scores.of("depth_order")
    by_relation = {str(name): finite_summary(orders[relations == name]) for name in np.unique(relations)}
    distances: dict[str, dict[str, float | int]] = {}
    made, real = scores.features, scores.real
    if made is not None and real is not None and min(len(made), len(real)) >= 2:
        for name, distance in (("fid", frechet_distance), ("kid", kernel_distance)):
            value = distance(real, made)

            def resampled(chosen: np.ndarray, distance: Any = distance) -> float:
                return distance(real, made[chosen])

            low, high = centred_interval(resampled, value, len(made))
            numbers = {"mean": value, "low": low, "high": high}
            rounded = {key: round(float(number), 5) for key, number in numbers.items()}
            distances[name] = {"n": len(made), **rounded}
    return {
        "folder": scores.folder,
        "cases": len(scores.cases),
        **{name: numbers for name, numbers in means.items() if numbers},
        "depth_order_by_relation": {name: numbers for name, numbers in by_relation.items() if numbers},
        **distances,
    }


def paired(first: Scores, second: Scores) -> dict[str, dict[str, float | int]]:
    """Per number: mean difference with interval over the cases that both have, and Wilcoxon's p."""
    differences = {}
    for name in MEASURES:
        difference = first.of(name) - second.of(name)
        difference = difference[np.isfinite(difference)]
        if len(difference):
            moved = np.any(difference != 0)
            p = float(wilcoxon(difference, zero_method="zsplit").pvalue) if moved else 1.0
            differences[name] = {**mean_interval(difference), "p": round(p, 6)}
    return differences


def markdown(body: dict[str, Any]) -> str:
    """The numbers as a table, one column per folder."""
    folders, changes = body["folders"], body.get("first_minus_second")
    head = ["measure", *(report["folder"] for report in folders)]
    head += ["first - second", "p"] if changes is not None else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, (text, more) in {**MEASURES, **DISTANCES}.items():
        if any(name in report for report in folders):
            cells = [f"{text} ({'more' if more else 'less'} is better)"]
            cells += [_cell(report.get(name)) for report in folders]
            if changes is not None:
                change = changes.get(name)
                cells += [_cell(change), f"{change['p']:.3g}" if change else ""]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "95 % bootstrap intervals over cases."]
    lines += [f"{name}: {network['path']}" for name, network in body["networks"].items()]
    lines += [f"skipped, {name}: {why}" for name, why in body["skipped"].items()]
    return "\n".join(lines) + "\n"


def _cell(numbers: dict[str, float] | None) -> str:
    if not numbers or "mean" not in numbers:
        return "-"
    spread = f" [{numbers['low']:.4g}, {numbers['high']:.4g}]" if "low" in numbers else ""
    return f"{numbers['mean']:.4g}{spread}"


def score_sheet(scores: Scores) -> bytes:
    """PNG of the best and the worst cases: object, background, result, with their numbers."""
    similarity = ("dino", "dinov2", "clip_i", "dreamsim")
    name = next((name for name in similarity if np.isfinite(scores.of(name)).any()), "seam")
    values = scores.of(name)
    ranked = np.argsort(-values if MEASURES[name][1] else values, kind="stable").tolist()
    chosen = ranked if len(ranked) <= 2 * ON_SHEET else ranked[:ON_SHEET] + ranked[-ON_SHEET:]
    labels = [f"{scores.cases[i].instruction} {name} {values[i]:.3f}" for i in chosen]
    titles = ("object", "background", "result")
    return encode_png(grid([scores.thumbnails[i] for i in chosen], titles, labels, cell=CELL))
