"""Answers about held-out paintings, and what they are worth."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.models.image_to_text.collate import PromptCollate
from inpainting.models.image_to_text.evaluation.metric_models import Judges
from inpainting.models.image_to_text.evaluation.predictions import Prediction
from inpainting.models.image_to_text.evaluation.report import measure
from inpainting.models.image_to_text.questions import Query
from inpainting.models.image_to_text.settings import ValidationOptions
from inpainting.models.image_to_text.writer import Decoding, PromptWriter
from inpainting.prompts import LLAVA_PROMPT, read_prompt
from ldm.files import write_all_atomic, write_atomic
from ldm.images import encode_png
from ldm.sheet import grid

log = logging.getLogger(__name__)

Item = Mapping[str, Any]
PREDICTIONS, METRICS, SHEET = "predictions.jsonl", "metrics.json", "sheet.png"


class Answering:
    """A prompt writer that is asked about items of LlavaDataset, as the settings say."""

    def __init__(self, writer: PromptWriter, options: ValidationOptions) -> None:
        self.writer, self.options = writer, options
        self.plain = options.question == "plain"
        self.collate = PromptCollate(writer.chat, question=LLAVA_PROMPT if self.plain else None)

    def predictions(self, items: Sequence[Item]) -> list[list[Prediction]]:
        """One Prediction per region of each image, in the order of the answer."""
        decoding = Decoding(self.options.constrained, longest=self.options.max_new_tokens)
        answers = self.writer.answer([self.query(item) for item in items], decoding)
        return [self.read(item, answer) for item, answer in zip(items, answers, strict=True)]

    def query(self, item: Item) -> Query:
        """The question; its tags say where the answer ends."""
        ends_at_full_stop = self.plain and (self.options.first_sentence or self.options.constrained)
        colors = tuple(item["entity_colors"])
        tags = () if ends_at_full_stop else colors
        return Query(self.collate.ask(item), tuple(range(len(colors))), tags, ("",) * len(colors))

    def read(self, item: Item, answer: str) -> list[Prediction]:
        """What an answer says about each region; nothing where a tag is missing."""
        colors = item["entity_colors"]
        said = [answer.strip() if self.plain else read_prompt(answer, color) for color in colors]
        return [
            Prediction(
                stem=item["image_stems"],
                region=item["entity_names"][number],
                prediction=said[number],
                caption=item["entity_captions"][number],
                root=item["entity_noun_chunk_roots"][number],
                last=number == len(colors) - 1,
                color=color,
                crop=Path(item["entity_paths"][number]).as_posix(),
            )
            for number, color in enumerate(colors)
        ]


def write_results(
    folder: Path, rows: Sequence[Prediction], judges: Judges, resamples: int, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """predictions.jsonl and metrics.json; returns the metrics. facts: what else the metrics' file says."""
    report = {**measure(rows, judges, resamples=resamples), **facts}
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    write_all_atomic(
        {
            folder / PREDICTIONS: "".join(row.line() for row in rows).encode(),
            folder / METRICS: text.encode(),
        }
    )
    return report


def write_sheet(path: Path, items: Sequence[Item], predictions: Sequence[Sequence[Prediction]]) -> None:
    """Images beside their masked versions, labelled with the answers."""
    rows, labels = [], []
    for item, said in zip(items, predictions, strict=True):
        rows.append([np.asarray(item["PIL_masked_images"]), np.asarray(item["PIL_images"])])
        labels.append("\n".join(f"{one.color}: {one.prediction or '-'}" for one in said))
    if rows:
        write_atomic(path, encode_png(grid(rows, ("asked", "image"), labels)))
