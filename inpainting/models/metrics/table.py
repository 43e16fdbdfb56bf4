"""The paper's table of inpainting models, and measured runs beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ldm.files import read_json

# model -> FID, LPIPS, PSNR, CLIP-IQA, I2I, T2I on all test images, and on those with several masks.
PUBLISHED: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
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


def shown(number: Mapping[str, float] | None, factor: int = 1) -> str:
    """A number times `factor`, with its interval if it has one, `15.32 [15.01, 15.63]`; a dash for none."""
    if not number:
        return "-"
    spread = ", ".join(f"{factor * number[key]:.2f}" for key in ("low", "high") if key in number)
    return f"{factor * number['value']:.2f}" + (f" [{spread}]" if spread else "")


def paper_table(runs: Mapping[str, Path]) -> str:
    """A Markdown table. runs: model of the paper -> folder of its images with metrics.json.

    Each model has its published row, and one of ours where it was measured; in parentheses, several masks.
    """
    lines = ["| model | " + " | ".join(TITLES) + " |", "|---" * (1 + len(TITLES)) + "|"]
    for model, (everything, several) in PUBLISHED.items():
        values = [f"{a:.2f} ({b:.2f})" for a, b in zip(everything, several, strict=True)]
        lines.append(f"| {model}, published | " + " | ".join(values) + " |")
        if model in runs:
            lines.append(measured_row(model, runs[model]))
    return "\n".join(lines) + "\n"


def measured_row(model: str, folder: Path) -> str:
    """The row of a run."""
    paths = [folder / name for name in (ALL, MULTI)]
    reports = [read_json(path) if path.is_file() else {} for path in paths]
    if not any(reports):
        raise ValueError(f"{folder} holds neither {ALL} nor {MULTI}; run compute for {model} first")
    for path, report in zip(paths, reports, strict=True):
        if report and "with_intervals" not in report:
            raise ValueError(f"{path}: not a report of compute")
    cells = []
    for name in COLUMNS:
        factor = 100 if name in PERCENT else 1
        everything, several = (
            shown(report.get("with_intervals", {}).get(name), factor) for report in reports
        )
        cells.append(everything + ("" if several == "-" else f" ({several})"))
    images = "; ".join(f"n = {report['images']}" for report in reports if report)
    return f"| {model}, here ({images}) | " + " | ".join(cells) + " |"
