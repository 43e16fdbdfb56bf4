"""Does the point of an answer, the middle of its box's lower edge, lie where a mask says that it may?

{"image": "a.jpg", "sentence": "Place the cup on the table", "mask": "a_mask.png"}   a line of JSONL
Placement/question.json with rgb_path, prompt, mask_path                    RefSpatial-Bench
"""

import logging
from collections.abc import Sequence
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
MASK = ("mask", "mask_path")
NAMES = {"image": ("image", "rgb_path"), "sentence": ("sentence", "instruction", "prompt"), "mask": MASK}
Answers = list[Place | None]


def read_points(path: Path) -> list[dict[str, Any]]:
    """Records; none of a file without masks. ValueError names the line, key or file that is wrong."""
    file = path / "question.json" if path.is_dir() else path
    rows: list[Any] = []
    for number, line in numbered_lines(file) if file.suffix == ".jsonl" else ():
        try:
            rows.append(parse_line(line))
        except ValueError as error:
            raise ValueError(f"{file}: line {number}: {error}") from None
    rows = rows or read_json(file, list)
    if file.suffix != ".jsonl" and not any(isinstance(row, dict) and set(MASK) & row.keys() for row in rows):
        return []
    records = []
    for number, row in enumerate(rows, 1):
        record: dict = {key: next(filter(None, map(row.get, names)), None) for key, names in NAMES.items()}
        if lacking := [key for key, value in record.items() if value is None]:
            raise ValueError(f"{file}: record {number} lacks {', '.join(lacking)}")
        record |= {key: file.parent / record[key] for key in ("image", "mask")}
        if missing := [key for key in ("image", "mask") if not record[key].is_file()]:
            raise ValueError(f"{file}: record {number}: there is no file {record[missing[0]]}")
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
        except ValueError as error:  # an unknown word, or a sentence that is not understood
            log.warning("counted as wrong: %s: %s", text, error)
    numbers = list(questions)
    for start in tqdm(range(0, len(numbers), batch), desc="asking", unit="batch"):
        part = numbers[start : start + batch]
        here, asked = [images[number] for number in part], [questions[number] for number in part]
        try:
            if constrained:
                found: Answers = [candidate.location for candidate in locator.answer(here, asked)]
            else:
                found = [place for _, place in locator.answer_freely(here, asked, batch)]
        except AnswerError:  # one of them lies in the padding
            alone = ([texts[number]] for number in part) if len(part) > 1 else ()
            singles = zip(alone, here, strict=False)
            found = [greedy_answers(locator, text, [image], 1)[0] for text, image in singles] or [None]
        for number, place in zip(part, found, strict=True):
            answers[number] = place
    return answers


def evaluate_points(config: LocatorEvaluation, locator: Locator, records: list[dict]) -> dict[str, Any]:
    """The fraction of answers whose point lies in the mask, beside the same about another image."""
    images = [read_image(record["image"]).rgb_u8 for record in records]
    pairs = zip(records, images, strict=True)
    masks = [read_mask(record["mask"], size=image.shape[:2]) for record, image in pairs]
    texts, half = [record["sentence"] for record in records], len(records) // 2
    table = {}
    for name, shown in ((GREEDY, images), (SHUFFLED, images[half:] + images[:half])):
        places = greedy_answers(locator, texts, shown, config.batch)
        hits = [float(stands_in(place, mask)) for place, mask in zip(places, masks, strict=True)]
        answered = [float(place is not None) for place in places]
        table[name] = {"in_mask": mean_interval(hits), "answered": mean_interval(answered)}
    # What a point anywhere in the image would reach.
    table["any point"] = {"in_mask": mean_interval([float(mask.mean()) for mask in masks])}
    lines = [f"{'point in mask':44}{len(records):>6}"]
    lines += [f"{name:44}{format_estimate(row['in_mask'], '.3f'):>30}" for name, row in table.items()]
    text, result = "\n".join(lines), {"settings": to_plain(config), "points": table}
    files = {config.out: json_bytes(result), config.out.with_suffix(".txt"): text.encode()}
    write_result(files, config.overwrite)
    log.info("%s", text)
    return result


def stands_in(place: Place | None, mask: np.ndarray) -> bool:
    """Whether the middle of a box's lower edge lies in a mask (h, w) bool."""
    if place is None:
        return False
    (h, w), (x0, _, x1, y1) = mask.shape, place.box01_xyxy
    return bool(mask[min(int(y1 * h), h - 1), min(int((x0 + x1) / 2 * w), w - 1)])
