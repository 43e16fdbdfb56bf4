"""Results of `measure_image` -> numbers with 95 % intervals, as valid JSON, in the published names and units.

    psnr dB, pooled over all pixels of all images;  fid as it is;  the rest fractions or cosines up to 1
(the paper's table shows those times 100). `paper_table` puts measured runs beside the published rows.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.models.metrics.measure import ImageMetrics
from ldm.files import read_json
from ldm.metrics.intervals import centred_interval, format_estimate, percentile_interval
from ldm.metrics.similarity import decibels, frechet_distance, kernel_distance

Number = dict[str, float | int]


MEANS = ("lpips", "clip_iqa", "clip_score_text2image", "clip_score_image2image")
GLOBAL = "clip_score_text2image_global"
PUBLISHED = ("psnr", "lpips", "fid", "clip_iqa", GLOBAL, "clip_score_text2image", "clip_score_image2image")
BY_MASKS = ("psnr", "clip_score_text2image")
MOST_MASKS = 5
NEEDS = {"fid": "inception", "kid": "inception", "lpips": "squeezenet", "clip_iqa": "clip_iqa"}
NEEDS |= dict.fromkeys((*MEANS[2:], GLOBAL), "clip")
# model -> FID, LPIPS, PSNR, CLIP-IQA, I2I, T2I on all test images, and on those with several masks.
PAPER_ROWS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "HQPrompt": ((19.18, 22.82, 14.55, 71.51, 84.87, 21.10), (31.86, 24.29, 14.36, 73.89, 85.63, 20.92)),
    "SD-2-Inp": ((15.07, 21.90, 14.66, 73.10, 88.87, 25.70), (27.40, 23.63, 14.35, 75.74, 88.93, 24.91)),
    "RCA, no FT": ((15.39, 21.98, 14.59, 73.24, 88.83, 25.81), (28.03, 23.78, 14.24, 75.83, 88.85, 25.04)),
    "FineTuned": ((15.49, 22.06, 14.44, 74.64, 89.05, 26.31), (27.83, 23.96, 14.06, 77.68, 89.04, 25.40)),
    "RCA-FineTuned": ((15.32, 22.00, 14.46, 74.30, 89.28, 26.72), (27.45, 23.74, 14.13, 77.21, 89.35, 25.93)),
    "RCA-FT-Gen": ((15.30, 22.69, 14.05, 72.80, 87.47, 23.25), (27.94, 24.42, 13.64, 76.01, 87.68, 22.94)),
}
COLUMNS = ("fid", "lpips", "psnr", "clip_iqa", "clip_score_image2image", "clip_score_text2image")
TITLES = ("FID", "LPIPS", "PSNR", "CLIP-IQA", "I2I", "T2I")
PERCENT = {"lpips", "clip_iqa", "clip_score_image2image", "clip_score_text2image"}
ALL, MULTI = "metrics.json", "metrics_multi.json"


def metrics_report(
    rows: Sequence[ImageMetrics], seed: int, resamples: int, fid_resamples: int
) -> dict[str, Any]:
    """All tables of a run: published keys (None where nothing was measured), and the same with intervals."""
    whole = numbers(rows, "", seed, resamples, fid_resamples)
    by_masks = {
        str(count): numbers([row for row in rows if row.regions == count], "", seed, resamples, 0)
        for count in sorted({row.regions for row in rows})
    }
    flat: dict[str, Any] = {name: value_of(whole, name) for name in PUBLISHED}
    for count in range(1, MOST_MASKS + 1):
        for name in BY_MASKS:
            flat[f"n_masks_{name}_{count}"] = value_of(by_masks.get(str(count), {}), name)
    return {
        **flat,
        "images": len(rows),
        "regions": sum(row.regions for row in rows),
        "with_intervals": whole,
        "masked_regions_only": numbers(rows, "masked_", seed, resamples, fid_resamples),
        "by_number_of_masks": by_masks,
    }


def value_of(table: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    value = table.get(name, {}).get("value")
    return None if value is None or not math.isfinite(value) else value


def numbers(
    rows: Sequence[ImageMetrics], view: str, seed: int, resamples: int, fid_resamples: int
) -> dict[str, Number]:
    """Everything that was measured on all of `rows`. view: "" or "masked_".

    PSNR is that of the mean squared error over all pixels of all images, not a mean of decibels. Means are
    over all values; images are resampled with all their regions.
    """
    if not rows:
        return {}
    pixels = np.array([row.masked_pixels if view else row.pixels for row in rows], np.float64)
    errors = np.array([row.numbers[f"{view}squared_error"][0] for row in rows]) * pixels

    def psnr(drawn: np.ndarray) -> float:
        return decibels(errors[drawn].sum() / pixels[drawn].sum())

    table = {"psnr": with_interval(psnr, rows, seed, resamples)}
    for name in (*MEANS, GLOBAL):
        if all(view + name in row.numbers for row in rows):
            sums = np.array([np.sum(row.numbers[view + name]) for row in rows])
            counts = np.array([len(row.numbers[view + name]) for row in rows])

            def mean(drawn: np.ndarray, sums: np.ndarray = sums, counts: np.ndarray = counts) -> float:
                return sums[drawn].sum() / counts[drawn].sum()

            table[name] = with_interval(mean, rows, seed, resamples)
    if not all(f"{view}real" in row.features for row in rows):
        return table
    real, fake = ([row.features[view + side] for row in rows] for side in ("real", "fake"))
    count = sum(map(len, real))
    for name, distance in (("fid", frechet_distance), ("kid", kernel_distance)) if count > 1 else ():

        def between(drawn: np.ndarray, distance: Callable = distance) -> float:
            return distance(*(np.concatenate([side[i] for i in drawn]) for side in (real, fake)))

        value = between(np.arange(len(rows)))
        table[name] = {"value": value, "n": count}
        if fid_resamples > 1 and len(rows) > 2:
            low, high = centred_interval(between, value, len(rows), seed, fid_resamples)
            table[name] |= {"low": low, "high": high}
    return table


def with_interval(statistic: Callable[[np.ndarray], float], rows: Sized, seed: int, resamples: int) -> Number:
    value = float(statistic(np.arange(len(rows))))
    if len(rows) < 2 or not resamples:
        return {"value": value, "n": len(rows)}
    low, high = percentile_interval(statistic, len(rows), seed, resamples)
    return {"value": value, "low": low, "high": high, "n": len(rows)}


def paper_table(runs: Mapping[str, Path]) -> str:
    """A Markdown table. runs: model of the paper -> folder of its images with metrics.json.

    Each model has its published row, and one of ours where it was measured; in parentheses, several masks.
    """
    lines = ["| model | " + " | ".join(TITLES) + " |", "|---" * (1 + len(TITLES)) + "|"]
    for model, (everything, several) in PAPER_ROWS.items():
        values = [f"{a:.2f} ({b:.2f})" for a, b in zip(everything, several, strict=True)]
        lines.append(f"| {model}, published | " + " | ".join(values) + " |")
        if model not in runs:
            continue
        paths = [runs[model] / name for name in (ALL, MULTI)]
        reports = [read_json(path) if path.is_file() else {} for path in paths]
        if not any(reports):
            raise ValueError(f"{runs[model]} holds neither {ALL} nor {MULTI}; run compute for {model} first")
        for path, report in zip(paths, reports, strict=True):
            if report and "with_intervals" not in report:
                raise ValueError(f"{path}: not a report of compute")
        cells = []
        for name in COLUMNS:
            factor = 100 if name in PERCENT else 1
            tables = (report.get("with_intervals", {}) for report in reports)
            of_all, of_several = (format_estimate(table.get(name), factor=factor) for table in tables)
            cells.append(of_all + ("" if of_several == "-" else f" ({of_several})"))
        images = "; ".join(f"n = {report['images']}" for report in reports if report)
        lines.append(f"| {model}, here ({images}) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
