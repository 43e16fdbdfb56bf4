"""Measured prompts beside the paper's table."""

import logging
from typing import Any

import typer

from inpainting.models.image_to_text.evaluation.metric_models import PromptMetricModels
from inpainting.models.image_to_text.evaluation.predictions import read_predictions
from inpainting.models.image_to_text.evaluation.report import LAST, WITH_INTERVALS, measure_prompts
from inpainting.models.image_to_text.score import ScoreOptions
from ldm.device import pick_device
from ldm.files import write_atomic, write_json
from ldm.metrics.intervals import format_estimate

log = logging.getLogger(__name__)


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


def score_prompts(options: ScoreOptions) -> dict[str, Any]:
    """Measure predicted prompts, and print them beside the paper's table."""
    runs = {path.as_posix(): read_predictions(path) for path in options.predictions}
    models = PromptMetricModels.load(options, pick_device(options.device))
    reports = {
        name: measure_prompts(rows, models, options.seed, options.resamples) for name, rows in runs.items()
    }
    write_json(options.out, reports if len(reports) > 1 else next(iter(reports.values())))
    table = [["model", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    table += [
        [f"{model}, published", *(f"{x:.2f}" for x in values), "-"] for model, values in PUBLISHED.items()
    ]
    for name, report in reports.items():
        measured = {f"{report['regions']} regions": report[WITH_INTERVALS]}
        if report["regions"] > report["images"] and report[LAST]:
            measured[f"last of {report['images']} images"] = report[LAST]
        for what, numbers in measured.items():
            table.append(
                [
                    f"{name}, {what}",
                    *(format_estimate(numbers.get(key), factor=100) for key in COLUMNS.values()),
                ]
            )
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in table)
    if options.table is not None:
        write_atomic(options.table, text.encode())
    typer.echo(text, nl=False)
    log.info("%s", options.out)
    return reports
