"""Measure predicted prompts, and set runs beside the paper's table.

    python -m inpainting.models.image_to_text.score models/llava/multimask/predictions.jsonl
    python -m inpainting.models.image_to_text.score A.jsonl B.jsonl --out metrics.json --table table.md

A network that is missing leaves out its numbers alone; the report names it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from inpainting.models.image_to_text.evaluation.metric_models import JudgeFiles, Judges
from inpainting.models.image_to_text.evaluation.predictions import read_predictions
from inpainting.models.image_to_text.evaluation.report import LAST, WITH_INTERVALS, measure
from inpainting.models.metrics.table import shown
from ldm.device import pick_device
from ldm.files import write_atomic
from ldm.metrics.intervals import RESAMPLES
from ldm.settings.cli import run_module, single_app

log = logging.getLogger(__name__)

OUT = Path("outputs/prompt_metrics.json")
FILES = JudgeFiles()
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


def score(
    predictions: Annotated[list[Path], typer.Argument(help="predictions.jsonl of one or more runs")],
    out: Annotated[Path, typer.Option(help="JSON file of all numbers; of several runs, by file")] = OUT,
    table: Annotated[Path | None, typer.Option(help="Markdown file of the table that is printed")] = None,
    clip: Annotated[Path, typer.Option(help="CLIP folder of CLIPSim")] = FILES.clip,
    roberta: Annotated[Path, typer.Option(help="RoBERTa folder of BERTScore")] = FILES.roberta,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu")] = "auto",
    resamples: Annotated[int, typer.Option(help="of the 95 % intervals; 0 for none", min=0)] = RESAMPLES,
    seed: Annotated[int, typer.Option(help="of the resamples", min=0)] = 0,
) -> None:
    """Measure predicted prompts, and print them beside the paper's table."""
    runs = {path.as_posix(): read_predictions(path) for path in predictions}
    judges = Judges.load(JudgeFiles(clip, roberta), pick_device(device))
    reports = {name: measure(rows, judges, seed, resamples) for name, rows in runs.items()}
    content = reports if len(reports) > 1 else next(iter(reports.values()))
    write_atomic(out, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    text = collate(reports)
    if table is not None:
        write_atomic(table, text.encode())
    typer.echo(text, nl=False)
    log.info("%s", out)


def collate(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table: the published models, then each run over all regions and over the last ones."""
    lines = ["| model | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for model, values in PUBLISHED.items():
        cells = [*(f"{value:.2f}" for value in values), "-"]
        lines.append(table_row(f"{model}, published", cells))
    for name, report in reports.items():
        several = report["regions"] > report["images"]
        lines.append(measured_row(f"{name}, {report['regions']} regions", report[WITH_INTERVALS]))
        if several and report[LAST]:
            lines.append(measured_row(f"{name}, last of {report['images']} images", report[LAST]))
    return "\n".join(lines) + "\n"


def measured_row(title: str, numbers: Mapping[str, Any]) -> str:
    return table_row(title, [shown(numbers.get(name), 100) for name in COLUMNS.values()])


def table_row(title: str, cells: Sequence[str]) -> str:
    return "| " + " | ".join((title, *cells)) + " |"


build_app = single_app(score)

if __name__ == "__main__":
    run_module(build_app)
