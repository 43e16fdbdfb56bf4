"""Predicted prompts -> all numbers with 95 % intervals, as valid JSON, under the published names.

BLEU is of the whole corpus, so that a region gives counts; no smoothing, words split at spaces. Texts are
compared in lower case. `_last` is over the last region of each image. Intervals resample whole images.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nltk
import numpy as np
import torchmetrics
import typer
from torchmetrics.functional.text.rouge import rouge_score
from torchmetrics.text import BLEUScore

from inpainting.data.steps.texts import ROOTS_STEP
from inpainting.models.image_to_text.evaluation import predictions
from inpainting.models.image_to_text.score import ScoreOptions
from ldm.device import pick_device
from ldm.files import json_bytes
from ldm.journal import JournalReader, stamp_path
from ldm.metrics.numbers import format_estimate, value_of, with_interval
from ldm.result import write_result
from ldm.settings.choices import BOOTSTRAPS

log = logging.getLogger(__name__)

GRAMS = 4
BLEU = {"bleu1": 1, "bleu4": GRAMS}
ROUGE, SIDES = ("rouge1", "rouge2", "rougeL"), ("fmeasure", "precision", "recall")
SENTENCES = "rougeLsum"  # per sentence, which nltk's data must split
NO_PUNKT = "nltk's sentence splitter is not installed; `python -m nltk.downloader punkt_tab` gets it"
LIBRARY = f"torchmetrics {torchmetrics.__version__}"
SOURCES = {  # what decides a number that needs no network
    "accuracy": "noun root as a substring (published)",
    "accuracy_words": "noun root as a whole word",
    **dict.fromkeys(BLEU, f"counts of {LIBRARY}"),
    **{f"{name}_{side}": LIBRARY for name in (*ROUGE, SENTENCES) for side in SIDES},
}
NAMES = (*SOURCES, predictions.CLIPSCORE, *predictions.BERTSCORE)
WITH_INTERVALS, LAST = "with_intervals", "last_region"
# model -> accuracy, B@1, B@4, ROUGE-L, CLIPSim, times 100; accuracy counts substrings.
PUBLISHED: dict[str, tuple[float, ...]] = {
    "LLaVA-Prompt": (7.74, 20.81, 1.30, 19.99, 22.46),
    "LLaVA-1Mask": (36.52, 36.99, 12.58, 34.64, 24.65),
    "MultiMask-1Pred": (35.48, 37.68, 13.15, 34.98, 24.79),
    "MultiMask-LastPred": (33.08, 37.40, 12.61, 34.45, 24.46),
    "MultiMask-All": (31.73, 37.33, 12.43, 34.33, 24.24),
}
COLUMNS = {  # the last one is ours, so that no published model has it
    "Accuracy": "accuracy",
    "B@1": "bleu1",
    "B@4": "bleu4",
    "ROUGE-L": "rougeL_fmeasure",
    "CLIPSim": "clipscore",
    "Accuracy, whole words": "accuracy_words",
}


def measure_prompts(
    rows: Sequence[predictions.Prediction], models: predictions.PromptMetricModels | None = None,
    seed: int = 0, resamples: int = BOOTSTRAPS,
) -> dict[str, Any]:  # fmt: skip
    """Everything about a run. models: networks for CLIPSim and BERTScore; resamples: 0 for no intervals."""
    if not rows:
        raise ValueError("there is no prediction to measure")
    models = models or predictions.PromptMetricModels()
    of_networks, skipped = models.numbers(rows)
    keys: tuple[str, ...] = (*ROUGE, SENTENCES)
    try:  # is nltk's data for sentences on this disk? It is never downloaded from here.
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        keys = ROUGE
        skipped |= {name: NO_PUNKT for name in NAMES if name.startswith(SENTENCES)}
    of_texts, counts = text_numbers(rows, keys)
    numbers = [texts | more for texts, more in zip(of_texts, of_networks, strict=True)]
    images: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        images.setdefault(row.stem, []).append(index)

    def table(groups: Iterable[list[int]]) -> dict[str, dict[str, Any]]:
        groups = [group for group in groups if group]
        if not groups:
            return {}
        sums = {name: np.stack([counts[group].sum(0) for group in groups]) for name in BLEU}
        for name in numbers[0]:
            sums[name] = np.array([np.sum([numbers[index][name] for index in group]) for group in groups])
        sizes = np.array([len(group) for group in groups])

        def value(name: str, chosen: np.ndarray) -> float:
            total = sums[name][chosen].sum(0)
            if name not in BLEU:
                return total / sizes[chosen].sum()
            # BLEU of a corpus (Papineni et al. 2002) from the sum of its rows' counts. The library's own last
            # step wants all texts again for each resample, and is in single precision.
            right, predicted = total[: BLEU[name]], total[GRAMS : GRAMS + BLEU[name]]
            words, words_true = total[2 * GRAMS :]
            if not right.min():
                return 0.0
            brevity = np.exp(min(0.0, 1 - words_true / words))
            return float(brevity * np.exp(np.log(right / predicted).mean()))

        found = {}
        for name in NAMES:
            if name in sums:
                source = {"judge": SOURCES.get(name) or models.source(name)}
                found[name] = with_interval(partial(value, name), groups, seed, resamples) | source
        return found

    whole = table(images.values())
    last = table([index for index in group if rows[index].last] for group in images.values())
    by_masks = {
        str(count): table(group for group in images.values() if len(group) == count)
        for count in sorted({len(group) for group in images.values()})
    }
    # Who found the noun roots, by the journals of the painting data that the regions lie in.
    stamps = {row.crop and stamp_path(Path(row.crop).parent.parent, ROOTS_STEP) for row in rows}
    steps = [(path and JournalReader(Path(path)).inputs) or {} for path in stamps]
    return {
        **{name: value_of(whole, name) for name in NAMES},
        **{f"{name}_last": value_of(last, name) for name in NAMES},
        "images": len(images),
        "regions": len(rows),
        "empty_predictions": sum(not row.prediction.strip() for row in rows),
        WITH_INTERVALS: whole,
        LAST: last,
        "by_number_of_masks": by_masks,
        "judges": models.used,
        "noun_roots": sorted({str(step.get("method", "as given with the data")) for step in steps}),
        "skipped": skipped,
    }


def tracked(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers for a tracker: published name -> value; what was not measured is left out."""
    names = (*NAMES, *(f"{name}_last" for name in NAMES))
    return {name: report[name] for name in names if report[name] is not None}


def text_numbers(
    rows: Sequence[predictions.Prediction], rouge_keys: tuple[str, ...] = ROUGE
) -> tuple[list[dict[str, float]], np.ndarray]:
    """Everything about each row that needs no network but BLEU, and the counts for BLEU.

    counts: (rows, 2 * 4 + 2) matching and all n-grams of the prediction (n = 1..4), its words, the caption's
    """
    metric, numbers, counts = BLEUScore(n_gram=GRAMS), [], []
    for row in rows:
        prediction, caption, root = row.prediction.lower(), row.caption.lower(), row.root.lower()
        # "man" is no word of its own in "a woman".
        whole_word = re.search(rf"(?<!\w){re.escape(root)}(?!\w)", prediction)
        rouge = rouge_score(prediction, caption, rouge_keys=rouge_keys)
        accuracy = {"accuracy": float(root in prediction), "accuracy_words": float(whole_word is not None)}
        numbers.append(accuracy | {name: float(value) for name, value in rouge.items()})
        metric.reset()
        metric.update([prediction], [[caption]])
        parts = (metric.numerator, metric.denominator, metric.preds_len[None], metric.target_len[None])
        counts.append(np.concatenate([part.numpy() for part in parts]))
    return numbers, np.array(counts, np.float64)


def score_prompts(options: ScoreOptions) -> dict[str, Any]:
    """Measure predicted prompts, and print them beside the paper's table."""
    runs = {path.as_posix(): predictions.read_predictions(path) for path in options.predictions}
    models = predictions.PromptMetricModels.load(options, pick_device(options.device))
    seed, resamples = options.seed, options.resamples
    reports = {name: measure_prompts(rows, models, seed, resamples) for name, rows in runs.items()}
    table = [["model", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    for model, values in PUBLISHED.items():
        table.append([f"{model}, published", *(f"{value:.2f}" for value in values), "-"])
    for name, report in reports.items():
        measured = {f"{report['regions']} regions": report[WITH_INTERVALS]}
        if report["regions"] > report["images"] and report[LAST]:
            measured[f"last of {report['images']} images"] = report[LAST]
        for what, numbers in measured.items():
            cells = [format_estimate(numbers.get(key), factor=100) for key in COLUMNS.values()]
            table.append([f"{name}, {what}", *cells])
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in table)
    files = {options.out: json_bytes(reports if len(reports) > 1 else next(iter(reports.values())))}
    if options.table is not None:
        files[options.table] = text.encode()
    write_result(files, options.overwrite)
    typer.echo(text, nl=False)
    log.info("%s", options.out)
    return reports
