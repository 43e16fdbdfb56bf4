"""Numbers of all composites of a benchmark -> means with intervals, paired differences, table, sheet."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import wilcoxon

from datasets.benchmark.manifest import BenchmarkCase
from ldm.metrics.frechet import frechet_distance, kernel_distance
from ldm.metrics.intervals import centred_interval, mean_interval
from ldm.sheet import grid

# Name of a number -> what it is, and whether more is better.
MEASURES = {
    "dino": ("DINO likeness of the box to the object", True),
    "dinov2": ("DINOv2 likeness of the box to the object", True),
    "clip_i": ("CLIP-I likeness of the box to the object", True),
    "dreamsim": ("DreamSim likeness of the box to the object (cosine)", True),
    "depth_order": ("depth order to the anchor as asked, depth re-estimated", True),
    "drift_pixels": ("share of background pixels that changed", False),
    "drift_bytes": ("background bytes that changed", False),
    "drift_psnr_db": ("PSNR of the background, dB (100: unchanged)", True),
    "seam": ("change along the edge of the changed rectangle, gray levels", False),
}
ON_SHEET = 5
CELL = 192


@dataclass(eq=False)
class Scores:
    """What was found in one folder; index i is case i."""

    folder: str
    cases: list[BenchmarkCase] = field(default_factory=list)
    numbers: list[dict[str, float]] = field(default_factory=list)
    images: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    features: np.ndarray | None = None  # (n, 2048) of the composites
    real: np.ndarray | None = None  # (m, 2048) of real images

    def add(
        self,
        case: BenchmarkCase,
        numbers: dict[str, float],
        images: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        """images: object, background, result; kept small."""
        self.cases.append(case)
        self.numbers.append(numbers)
        small = [
            np.asarray(Image.fromarray(one).resize(_fitted(one.shape), Image.Resampling.BOX))
            for one in images
        ]
        self.images.append((small[0], small[1], small[2]))

    def of(self, name: str) -> np.ndarray:
        """(n,) values of a number, nan where a case has none."""
        return np.array([numbers.get(name, np.nan) for numbers in self.numbers])


def _fitted(shape: tuple[int, ...]) -> tuple[int, int]:
    scale = min(1.0, CELL / max(shape[:2]))
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def score_report(scored: Sequence[Scores]) -> dict[str, Any]:
    """Means of every folder, and for two folders the difference first - second, case by case."""
    body: dict[str, Any] = {"folders": [folder_report(one) for one in scored]}
    if len(scored) == 2:
        body["first_minus_second"] = paired(*scored)
    return body


def folder_report(scores: Scores) -> dict[str, Any]:
    """{number: n, mean, low, high}; by relation as well; FID and KID where there is a network for them."""
    measures = {name: scores.of(name) for name in MEASURES}
    known = {name: values for name, values in measures.items() if np.isfinite(values).any()}
    found: dict[str, Any] = {
        name: mean_interval(values[np.isfinite(values)]) for name, values in known.items()
    }
    relations = np.array([case.relation for case in scores.cases])
    orders = scores.of("depth_order")
    by_relation = {
        str(name): mean_interval(orders[(relations == name) & np.isfinite(orders)])
        for name in np.unique(relations)
        if np.isfinite(orders[relations == name]).any()
    }
    return {"folder": scores.folder, "cases": len(scores.cases), **found,
            "depth_order_by_relation": by_relation, **distances(scores)}  # fmt: skip


def distances(scores: Scores) -> dict[str, dict[str, float | int]]:
    """FID and KID of the composites to the real images; nothing below two of each."""
    made, real = scores.features, scores.real
    if made is None or real is None or min(len(made), len(real)) < 2:
        return {}
    found: dict[str, dict[str, float | int]] = {}
    for name, distance in (("fid", frechet_distance), ("kid", kernel_distance)):
        value = distance(real, made)
        low, high = centred_interval(_resampled(distance, real, made), value, len(made))
        numbers = {"mean": value, "low": low, "high": high}
        found[name] = {"n": len(made), **{key: round(float(one), 5) for key, one in numbers.items()}}
    return found


def _resampled(
    distance: Callable[[np.ndarray, np.ndarray], float], real: np.ndarray, made: np.ndarray
) -> Callable[[np.ndarray], float]:
    """The distance as a function of the chosen composites."""
    return lambda chosen: distance(real, made[chosen])


def paired(first: Scores, second: Scores) -> dict[str, dict[str, float | int]]:
    """Per number: mean difference with interval over the cases that both have, and Wilcoxon's p."""
    found = {}
    for name in MEASURES:
        difference = first.of(name) - second.of(name)
        difference = difference[np.isfinite(difference)]
        if len(difference):
            moved = np.any(difference != 0)
            p = float(wilcoxon(difference, zero_method="zsplit").pvalue) if moved else 1.0
            found[name] = {**mean_interval(difference), "p": round(p, 6)}
    return found


def markdown(body: dict[str, Any]) -> str:
    """The numbers as a table, one column per folder."""
    folders = body["folders"]
    head = ["measure", *(one["folder"] for one in folders)]
    head += ["first - second", "p"] if "first_minus_second" in body else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    names = {**{name: _title(text, more) for name, (text, more) in MEASURES.items()},
             "fid": _title("FID", False), "kid": _title("KID", False)}  # fmt: skip
    for name, text in names.items():
        if any(name in one for one in folders):
            cells = [text, *(_cell(one.get(name)) for one in folders)]
            if "first_minus_second" in body:
                change = body["first_minus_second"].get(name)
                cells += [_cell(change), f"{change['p']:.3g}" if change else ""]
            lines.append("| " + " | ".join(cells) + " |")
    used = [f"{name}: {known['path']}" for name, known in body["networks"].items()]
    absent = [f"{name}: {why}" for name, why in body["skipped"].items()]
    return (
        "\n".join(
            [
                *lines,
                "",
                "95 % bootstrap intervals over cases.",
                *used,
                *(f"skipped, {one}" for one in absent),
            ]
        )
        + "\n"
    )


def _title(text: str, more: bool) -> str:
    return f"{text} ({'more' if more else 'less'} is better)"


def _cell(numbers: dict[str, float] | None) -> str:
    if not numbers or "mean" not in numbers:
        return "-"
    spread = f" [{numbers['low']:.4g}, {numbers['high']:.4g}]" if "low" in numbers else ""
    return f"{numbers['mean']:.4g}{spread}"


def score_sheet(scores: Scores) -> bytes:
    """PNG of the best and the worst cases: object, background, result, with their numbers."""
    name = next(
        (one for one in ("dino", "dinov2", "clip_i", "dreamsim") if np.isfinite(scores.of(one)).any()), "seam"
    )
    values = scores.of(name) * (1 if MEASURES[name][1] else -1)
    ranked = [int(index) for index in np.argsort(-values, kind="stable")]
    chosen = ranked if len(ranked) <= 2 * ON_SHEET else ranked[:ON_SHEET] + ranked[-ON_SHEET:]
    labels = [f"{scores.cases[i].instruction} {name} {scores.of(name)[i]:.3f}" for i in chosen]
    sheet = grid(
        [list(scores.images[i]) for i in chosen], ("object", "background", "result"), labels, cell=CELL
    )
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, "PNG")
    return stream.getvalue()
