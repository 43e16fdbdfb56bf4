"""Predicted prompts -> all numbers with 95 % intervals, as valid JSON, under the published names.

Every number is a share or a cosine up to 1 (the paper's table shows them times 100). `_last` is over the last
region of each image. Intervals resample images, each with all its regions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.data.steps.roots import STEP
from inpainting.models.image_to_text.evaluation.metric_models import BERTSCORE, CLIPSCORE, Judges, judged
from inpainting.models.image_to_text.evaluation.predictions import Prediction, check_rows
from inpainting.models.image_to_text.evaluation.text_metrics import (
    BLEU,
    JUDGES,
    NO_PUNKT,
    ROUGE,
    SENTENCES,
    SIDES,
    bleu,
    bleu_counts,
    splits_sentences,
    text_numbers,
)
from inpainting.models.metrics.report import Number, mean, value_of, with_interval
from ldm.journal import Progress, stamp_path
from ldm.metrics.intervals import RESAMPLES

MEANS = (
    *("accuracy", "accuracy_words"),
    *(f"{name}_{side}" for name in (*ROUGE, SENTENCES) for side in SIDES),
    *(CLIPSCORE, *BERTSCORE),
)
NAMES = (*MEANS[:2], *BLEU, *MEANS[2:])
UNKNOWN = "as given with the data"
WITH_INTERVALS, LAST, BY_MASKS = "with_intervals", "last_region", "by_number_of_masks"


@dataclass(frozen=True, eq=False)
class Scored:
    """The regions of one image that a table is about. counts: (regions, 10) of BLEU."""

    numbers: dict[str, list[float]]
    counts: np.ndarray


def measure(
    rows: Sequence[Prediction], judges: Judges | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Everything about a run. judges: networks for CLIPSim and BERTScore; resamples: 0 for no intervals."""
    if not rows:
        raise ValueError("there is no prediction to measure")
    check_rows(rows, "predictions")
    judges = judges or Judges()
    network_numbers, skipped = judged(rows, judges)
    sentences = splits_sentences()
    if not sentences:
        skipped |= {f"{SENTENCES}_{side}": NO_PUNKT for side in SIDES}
    numbers = [text_numbers(row, sentences) | more for row, more in zip(rows, network_numbers, strict=True)]
    counts = bleu_counts(rows)
    images: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        images.setdefault(row.stem, []).append(index)

    def table(groups: Iterable[Sequence[int]]) -> dict[str, dict[str, Any]]:
        scored = [collected([numbers[i] for i in group], counts[list(group)]) for group in groups if group]
        found = table_of(scored, seed, resamples)
        return {name: {**number, "judge": judge_of(name, judges)} for name, number in found.items()}

    whole = table(images.values())
    last = table([[i for i in group if rows[i].last] for group in images.values()])
    sizes = sorted({len(group) for group in images.values()})
    return {
        **{name: value_of(whole, name) for name in NAMES},
        **{f"{name}_last": value_of(last, name) for name in NAMES},
        "images": len(images),
        "regions": len(rows),
        "empty_predictions": sum(not row.prediction.strip() for row in rows),
        WITH_INTERVALS: whole,
        LAST: last,
        BY_MASKS: {str(n): table([g for g in images.values() if len(g) == n]) for n in sizes},
        "judges": judges.used,
        "noun_roots": root_finders(rows),
        "skipped": skipped,
    }


def root_finders(rows: Sequence[Prediction]) -> list[str]:
    """Who found the noun roots, by the journals of the painting data that the regions lie in."""
    folders: set[Path | None] = {row.own_image and row.own_image.parent.parent for row in rows}
    inputs = [folder and Progress(stamp_path(folder, STEP)).inputs for folder in folders]
    return sorted({str((one or {}).get("method", UNKNOWN)) for one in inputs})


def tracked(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers for a tracker: published name -> value; what was not measured is left out."""
    names = (*NAMES, *(f"{name}_last" for name in NAMES))
    return {name: report[name] for name in names if report[name] is not None}


def collected(numbers: Sequence[Mapping[str, float]], counts: np.ndarray) -> Scored:
    """Regions of one image as one item of the resampling."""
    return Scored({name: [one[name] for one in numbers] for name in numbers[0]}, counts)


def table_of(images: Sequence[Scored], seed: int, resamples: int) -> dict[str, Number]:
    """Everything that was measured on all of `images`."""
    if not images:
        return {}
    sums = np.stack([image.counts.sum(0) for image in images])
    found: dict[str, Number] = {}
    for name in NAMES:
        if name in BLEU:
            grams = BLEU[name]

            def corpus(some: np.ndarray, grams: int = grams) -> float:
                return bleu(sums[some].sum(0), grams)

            found[name] = with_interval(corpus, images, seed, resamples)
        elif name in images[0].numbers:
            found[name] = mean(images, name, seed, resamples)
    return found


def judge_of(name: str, judges: Judges) -> str:
    """What decided a number: a rule, a library, or a network and its folder."""
    if name in JUDGES:
        return JUDGES[name]
    network = "clip" if name == CLIPSCORE else "roberta"
    return f"{network} {judges.used.get(network, {}).get('path', '')}".strip()
