"""Does a locator answer? Numbers on held-out records while it trains, and a check of what was trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from datasets.geometry import iou
from ldm.images import read_image
from ldm.mllm.chat import ChatExample, generate
from llava_bifrost.dataset import Record, question_of
from llava_bifrost.language.answer import AnswerError, satisfies
from llava_bifrost.language.codec import frame_of
from llava_bifrost.locator import Locator

log = logging.getLogger(__name__)

LONGEST = 128  # tokens of a free answer


def measure_answers(locator: Locator, records: Sequence[Record], batch: int = 8) -> dict[str, float]:
    """Of free greedy answers: share that parses, mean IoU and depth error, share of satisfied instructions.

    An answer that cannot be read counts as IoU 0, depth error 1 and an instruction that is not satisfied.
    """
    ious, errors, held, parsed = [], [], [], 0
    for start in range(0, len(records), batch):
        part = records[start : start + batch]
        for record, text in zip(part, free_answers(locator, part), strict=True):
            location = _read(locator, record, text)
            parsed += location is not None
            ious.append(iou(location.box01_xyxy, record.location.box01_xyxy) if location else 0.0)
            errors.append(abs(location.depth - record.location.depth) if location else 1.0)
            if record.request is not None and all(name in record.anchors for name in record.request.anchors):
                clauses = satisfies(location, record.request, record.anchors) if location else {"": False}
                if clauses:
                    held.append(float(all(clauses.values())))
    numbers = {"parsed": parsed / max(len(records), 1), "iou": float(np.mean(ious))}
    numbers["depth_error"] = float(np.mean(errors))
    numbers["satisfied"] = float(np.mean(held)) if held else float("nan")
    return numbers


def check_answers(locator: Locator, records: Sequence[Record]) -> dict[str, Any]:
    """Answer a few records freely and constrained; the report for check.json.

    Free answers that do not parse are a warning: constrained decoding repairs the form, not the training.
    ValueError if even a constrained answer cannot be read.
    """
    free = free_answers(locator, records)
    good = [_read(locator, record, text) is not None for record, text in zip(records, free, strict=True)]
    images = [read_image(record.image).rgb_u8 for record in records]
    asked = [question_of(record, locator.codec) for record in records]
    constrained = locator.answer(images, asked)
    report = [
        {"id": record.id, "asked": question, "free": text, "parses": fine, "constrained": one.text}
        for record, question, text, fine, one in zip(records, asked, free, good, constrained, strict=True)
    ]
    log.info("%d of %d free answers parse, all constrained ones do", sum(good), len(good))
    if not all(good):
        log.warning("free answers that do not parse: train longer, or look at check.json")
    return {"answered": len(records), "free_answers_that_parse": sum(good), "answers": report}


def free_answers(locator: Locator, records: Sequence[Record]) -> list[str]:
    """Greedy answers without any constraint, as one batch."""
    asks = [
        ChatExample(read_image(record.image).rgb_u8, question_of(record, locator.codec)) for record in records
    ]
    return [answer.text for answer in generate(locator.mllm, locator.chat.prompts(asks), longest=LONGEST)]


def _read(locator: Locator, record: Record, text: str) -> Any:
    size = read_image(record.image).size
    try:
        return locator.codec.decode(text, frame_of(locator.mllm.processor, size))
    except AnswerError:
        return None
