"""Numbers of all composites of a benchmark -> means with intervals, paired differences, table, sheet."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import wilcoxon

from datasets.benchmark import BenchmarkCase
from ldm.files import json_bytes
from ldm.images import encode_png
from ldm.metrics.numbers import SET_DISTANCES, centred_interval, format_estimate, mean_interval
from ldm.result import beside, write_result
from ldm.sheet import grid

# Name of a number -> what it is, and whether more is better.
MEASURES = {
    "dino": ("DINO similarity of the box to the object", True),
    "dinov2": ("DINOv2 similarity of the box to the object", True),
    "clip_i": ("CLIP-I similarity of the box to the object", True),
    "dreamsim": ("DreamSim similarity of the box to the object (cosine)", True),
    "depth_order": ("depth order to the anchor as instructed, depth re-estimated", True),
    "depth_order_flipped": ("the same of a paste in the wrong order (control of the judge)", False),
    "depth_order_all": ("depth order to every object that it meets", True),
    "drift_pixels": ("fraction of background pixels that changed", False),
    "drift_bytes": ("background bytes that changed", False),
    "drift_psnr_db": ("PSNR of the background, dB (100: unchanged)", True),
    "seam": ("step of the change across the edges of the changed piece, gray levels", False),
}
DISTANCES = {"fid": ("FID", False), "kid": ("KID", False)}
# Table 3 of the paper (DreamBooth objects in COCO images): its name of a number -> ours, factor, its value
PUBLISHED = {"DINO": ("dino", 100, 77.746), "CLIP": ("clip_i", 100, 89.722), "FID": ("fid", 1, 15.025)}
ON_SHEET = 5  # best and worst cases each; chosen: ten rows fit on a page
CELL = 192  # pixels


@dataclass(eq=False)
class Scores:
    """The numbers of one folder; index i is case i."""

    folder: Path
    paths: list[Path] = field(default_factory=list)  # of the composites
    cases: list[BenchmarkCase] = field(default_factory=list)
    numbers: list[dict[str, float]] = field(default_factory=list)
    thumbnails: list[list[np.ndarray]] = field(default_factory=list)  # object, background, result
    features: np.ndarray | None = None  # (n, 2048) of the composites

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


def summaries(named: Iterable[tuple[str, np.ndarray]]) -> dict[str, Any]:
    """Number, mean and interval of the finite values (n,) of every name that has some."""
    finite = ((name, values[np.isfinite(values)]) for name, values in named)
    return {name: mean_interval(values) for name, values in finite if len(values)}


def score_tables(scored: Sequence[Scores], real: np.ndarray | None = None) -> dict[str, Any]:
    """Numbers of every folder; of two folders also their paired differences.

    real:               (m, 2048) features of real images
    folders:            {number: n, mean, low, high}; by relation as well; FID and KID with a network
    first_minus_second: per number over the cases that both have: mean, interval, and Wilcoxon's p
    """
    folders = []
    for scores in scored:
        relations, orders = np.array([case.relation for case in scores.cases]), scores.of("depth_order")
        report: dict[str, Any] = {"folder": scores.folder.as_posix(), "cases": len(scores.cases)}
        report |= summaries((name, scores.of(name)) for name in MEASURES)
        by_relation = ((str(name), orders[relations == name]) for name in np.unique(relations))
        report["depth_order_by_relation"] = summaries(by_relation)
        made = scores.features
        if made is not None and real is not None and min(len(made), len(real)) >= 2:
            for name, distance in SET_DISTANCES.items():
                value = distance(real, made)
                resampled = partial(lambda of, made, chosen: of(real, made[chosen]), distance, made)
                low, high = centred_interval(resampled, value, len(made))
                numbers = {"mean": value, "low": low, "high": high}
                report[name] = {"n": len(made), **{key: round(float(x), 5) for key, x in numbers.items()}}
        report["published_names"] = {}
        for name, (ours, factor, _) in PUBLISHED.items():
            if ours in report:
                scaled = {key: report[ours][key] * factor for key in ("mean", "low", "high")}
                report["published_names"][name] = scaled
        folders.append(report)
    if len(scored) != 2:
        return {"folders": folders}
    differences = {}
    for name in MEASURES:
        difference = scored[0].of(name) - scored[1].of(name)
        difference = difference[np.isfinite(difference)]
        if len(difference):
            p = float(wilcoxon(difference, zero_method="zsplit").pvalue) if np.any(difference != 0) else 1.0
            differences[name] = {**mean_interval(difference), "p": round(p, 6)}
    return {"folders": folders, "first_minus_second": differences}


def write_score(body: dict[str, Any], scores: Scores, out: Path | None, overwrite: bool = False) -> None:
    """Log the table; with `out` write numbers, table, and a sheet of the best and worst cases of a folder."""
    folders, changes = body["folders"], body.get("first_minus_second")
    head = ["measure", *(report["folder"] for report in folders)]
    head += ["first - second", "p"] if changes is not None else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, (text, more) in {**MEASURES, **DISTANCES}.items():
        if any(name in report for report in folders):
            cells = [f"{text} ({'more' if more else 'less'} is better)"]
            cells += [format_estimate(report.get(name), ".4g") for report in folders]
            if changes is not None:
                change = changes.get(name)
                cells += [format_estimate(change, ".4g"), f"{change['p']:.3g}" if change else ""]
            lines.append("| " + " | ".join(cells) + " |")
    for name, (*_, value) in PUBLISHED.items():
        numbers = [report.get("published_names", {}).get(name) for report in folders]
        if any(numbers):
            cells = [format_estimate(number, ".4g") for number in numbers]
            cells += ["", ""] if changes is not None else []
            cells = [f"{name} as in the paper's Table 3 (there {value})", *cells]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "95 % bootstrap intervals over cases."]
    lines += [f"{name}: {network['path']}" for name, network in body["networks"].items()]
    lines += [f"skipped, {name}: {why}" for name, why in body["skipped"].items()]
    table = "\n".join(lines) + "\n"
    logging.getLogger(__name__).info("%s", table)
    if out is None:
        return
    similarity = ("dino", "dinov2", "clip_i", "dreamsim")
    name = next((name for name in similarity if np.isfinite(scores.of(name)).any()), "seam")
    values = scores.of(name)
    ranked = np.argsort(-values if MEASURES[name][1] else values, kind="stable").tolist()
    chosen = ranked if len(ranked) <= 2 * ON_SHEET else ranked[:ON_SHEET] + ranked[-ON_SHEET:]
    labels = [f"{scores.cases[i].instruction} {name} {values[i]:.3f}" for i in chosen]
    images, titles = [scores.thumbnails[i] for i in chosen], ("object", "background", "result")
    sheet = encode_png(grid(images, titles, labels, cell=CELL))
    files = {out: json_bytes(body), out.with_suffix(".md"): table.encode(), beside(out, "_sheet.png"): sheet}
    write_result(files, overwrite)
