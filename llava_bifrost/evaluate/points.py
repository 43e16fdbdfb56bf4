"""Does the answer of a locator lie where a mask says that it may? For photographs with a sentence and a mask.

    {"image": "a.jpg", "sentence": "Place the cup on the table", "mask": "a_mask.png"}   a line of JSONL
    Placement/question.json with rgb_path, prompt, mask_path                    RefSpatial-Bench

The point of an answer is where the object stands: the middle of its box's lower edge.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets.relations import Place
from ldm.files import json_bytes, numbered_lines, read_json
from ldm.images import read_image, read_mask
from ldm.journal import parse_line
from ldm.metrics.intervals import format_estimate, mean_interval
from ldm.result import write_result
from ldm.settings.config import to_plain
from llava_bifrost.language.answer import AnswerError
from llava_bifrost.locator import Locator
from llava_bifrost.settings import LocatorEvaluation

log = logging.getLogger(__name__)

GREEDY, SHUFFLED = "greedy answer", "about another image"
QUESTIONS = "question.json"  # of RefSpatial-Bench
NAMES = {
    "image": ("image", "rgb_path"),
    "sentence": ("sentence", "instruction", "prompt"),
    "mask": ("mask", "mask_path"),
}
Answers = list[Place | None]


@dataclass(frozen=True)
class PointRecord:
    """A sentence about an image, and the mask of the points that are right."""

    image: Path
    sentence: str
    mask: Path


def read_points(path: Path) -> list[PointRecord]:
    """The records of a JSONL or JSON file or of a folder of RefSpatial-Bench; none of a file without masks.

    ValueError names the line and the key, or the file, that is missing.
    """
    file = path / QUESTIONS if path.is_dir() else path
    rows: list[Any]
    if file.suffix == ".jsonl":
        rows = []
        for number, line in numbered_lines(file):
            try:
                rows.append(parse_line(line))
            except ValueError as error:
                raise ValueError(f"{file}: line {number}: {error}") from None
    else:
        rows = read_json(file, list)
        if not rows or not isinstance(rows[0], dict) or not set(NAMES["mask"]) & rows[0].keys():
            return []
    records = []
    for number, row in enumerate(rows, 1):
        values: dict[str, Any] = {
            key: next((row[name] for name in names if row.get(name)), None) for key, names in NAMES.items()
        }
        if lacking := [key for key, value in values.items() if value is None]:
            raise ValueError(f"{file}: record {number} lacks {', '.join(lacking)}")
        record = PointRecord(
            file.parent / values["image"], str(values["sentence"]), file.parent / values["mask"]
        )
        if missing := [each for each in (record.image, record.mask) if not each.is_file()]:
            raise ValueError(f"{file}: record {number}: there is no file {missing[0]}")
        records.append(record)
    return records


def greedy_answers(
    locator: Locator, texts: Sequence[str], images: Sequence[np.ndarray], batch: int, constrained: bool = True
) -> Answers:
    """The greedy answer to each sentence about the image beside it; None where it cannot be read or asked."""
    answers: Answers = [None] * len(texts)
    questions: dict[int, str] = {}
    for number, text in enumerate(texts):
        try:
            questions[number] = locator.question(text, locator.understand(text))
        except (
            ValueError
        ) as error:  # an unknown word, a sentence that is not understood: a failure of its own
            log.warning("counted as wrong: %s: %s", text, error)
    numbers = list(questions)
    for start in tqdm(range(0, len(numbers), batch), desc="asking", unit="batch"):
        part = numbers[start : start + batch]
        here, asked = [images[number] for number in part], [questions[number] for number in part]
        if not constrained:
            found: Answers = [place for _, place in locator.answer_freely(here, asked, batch)]
        else:
            try:
                found = [candidate.location for candidate in locator.answer(here, asked)]
            except AnswerError:  # one of them lies in the padding
                found = [place_or_none(locator, *one) for one in zip(here, asked, strict=True)]
        for number, place in zip(part, found, strict=True):
            answers[number] = place
    return answers


def place_or_none(locator: Locator, image_u8: np.ndarray, question: str) -> Place | None:
    try:
        return locator.answer([image_u8], [question])[0].location
    except AnswerError:
        return None


def evaluate_points(
    config: LocatorEvaluation, locator: Locator, records: Sequence[PointRecord]
) -> dict[str, Any]:
    """The fraction of answers whose point lies in the mask, beside the same about another image."""
    images = [read_image(record.image).rgb_u8 for record in records]
    masks = [
        read_mask(record.mask, size=image.shape[:2]) for record, image in zip(records, images, strict=True)
    ]
    texts, half = [record.sentence for record in records], len(records) // 2
    answers = {
        GREEDY: greedy_answers(locator, texts, images, config.batch),
        SHUFFLED: greedy_answers(locator, texts, images[half:] + images[:half], config.batch),
    }
    table = {}
    for name, places in answers.items():
        hits = [
            place is not None and bool(mask[pixel_of(place, mask)])
            for place, mask in zip(places, masks, strict=True)
        ]
        table[name] = {
            "in_mask": mean_interval([float(hit) for hit in hits]),
            "answered": mean_interval([float(place is not None) for place in places]),
        }
    # What a point anywhere in the image would reach.
    table["any point"] = {"in_mask": mean_interval([float(mask.mean()) for mask in masks])}
    lines = [f"{'point in mask':44}{len(records):>6}"]
    lines += [f"{name:44}{format_estimate(row['in_mask'], '.3f'):>30}" for name, row in table.items()]
    result = {"settings": to_plain(config), "points": table}
    text = "\n".join(lines)
    files = {config.out: json_bytes(result), config.out.with_suffix(".txt"): text.encode()}
    write_result(files, config.overwrite)
    log.info("%s", text)
    return result


def pixel_of(place: Place, mask: np.ndarray) -> tuple[int, int]:
    """(row, column) in the mask of the middle of a box's lower edge."""
    (h, w), (x0, _, x1, y1) = mask.shape, place.box01_xyxy
    return min(int(y1 * h), h - 1), min(int((x0 + x1) / 2 * w), w - 1)
