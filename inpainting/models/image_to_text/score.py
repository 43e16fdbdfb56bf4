"""Measure predicted prompts, and set runs beside the paper's table.

    python -m inpainting.models.image_to_text.score models/llava/multimask/predictions.jsonl
    python -m inpainting.models.image_to_text.score A.jsonl B.jsonl --out metrics.json --table table.md

A network that is missing leaves out its numbers alone; the report names it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from inpainting.models.image_to_text.evaluation.metric_models import MetricFolders, PromptMetricModels
from inpainting.models.image_to_text.evaluation.predictions import read_predictions
from inpainting.models.image_to_text.evaluation.report import LAST, WITH_INTERVALS, measure_prompts
from inpainting.models.metrics.table import shown
from ldm.device import pick_device
from ldm.files import write_atomic, write_json
from ldm.metrics.intervals import RESAMPLES
from ldm.settings.cli import run_module, single_app

log = logging.getLogger(__name__)

OUT = Path("outputs/prompt_metrics.json")
FOLDERS = MetricFolders()
# model -> accuracy, B@1, B@4, ROUGE-L, CLIPSim, times 100; accuracy counts substrings.
PUBLISHED: dict[str, tuple[float, ...]] = {
    "LLaVA-Prompt": (7.74, 20.81, 1.30, 19.99, 22.46),
    "LLaVA-1Mask": (36.52, 36.99, 12.58, 34.64, 24.65),
    "MultiMask-1Pred": (35.48, 37.68, 13.15, 34.98, 24.79),
    "MultiMask-LastPred": (33.08, 37.40, 12.61, 34.45, 24.46),
    "MultiMask-All": (31.73, 37.33, 12.43, 34.33, 24.24),
}
COLUMNS = {
    "Accuracy": "accuracy",
    "B@1": "bleu1",
    "B@4": "bleu4",
    "ROUGE-L": "rougeL_fmeasure",
    "CLIPSim": "clipscore",
    "Accuracy, whole words": "accuracy_words",  # ours, so that no published model has it
}


def score_prompts(
    predictions: Annotated[list[Path], typer.Argument(help="predictions.jsonl of one or more runs")],
    out: Annotated[Path, typer.Option(help="JSON file of all numbers; of several runs, by file")] = OUT,
    table: Annotated[Path | None, typer.Option(help="Markdown file of the table that is printed")] = None,
    clip: Annotated[Path, typer.Option(help="CLIP folder of CLIPSim")] = FOLDERS.clip,
    roberta: Annotated[Path, typer.Option(help="RoBERTa folder of BERTScore")] = FOLDERS.roberta,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu")] = "auto",
    resamples: Annotated[int, typer.Option(help="of the 95 % intervals; 0 for none", min=0)] = RESAMPLES,
    seed: Annotated[int, typer.Option(help="of the resamples", min=0)] = 0,
) -> None:
    """Measure predicted prompts, and print them beside the paper's table."""
    runs = {path.as_posix(): read_predictions(path) for path in predictions}
    models = PromptMetricModels.load(MetricFolders(clip, roberta), pick_device(device))
    reports = {name: measure_prompts(rows, models, seed, resamples) for name, rows in runs.items()}
    write_json(out, reports if len(reports) > 1 else next(iter(reports.values())))
    text = markdown_table(reports)
    if table is not None:
        write_atomic(table, text.encode())
    typer.echo(text, nl=False)
    log.info("%s", out)


def markdown_table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The published models, then each run over all regions and over the last ones."""
    table = [["model", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    table += [
        [f"{model}, published", *(f"{x:.2f}" for x in values), "-"] for model, values in PUBLISHED.items()
    ]
    for name, report in reports.items():
        measured = {f"{report['regions']} regions": report[WITH_INTERVALS]}
        if report["regions"] > report["images"] and report[LAST]:
            measured[f"last of {report['images']} images"] = report[LAST]
        for what, numbers in measured.items():
            table.append([f"{name}, {what}", *(shown(numbers.get(key), 100) for key in COLUMNS.values())])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in table)


build_app = single_app(score_prompts)

if __name__ == "__main__":
    run_module(build_app)
