"""Does a locator answer? Numbers on held-out records while it trains, and a check of what was trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from datasets.geometry import iou
from ldm.images import read_image
from ldm.mllm.chat import ChatExample, generate
from llava_bifrost.dataset import LocatorRecord, question_of
from llava_bifrost.language.answer import AnswerError, Location, satisfies
from llava_bifrost.language.codec import frame_of
from llava_bifrost.locator import Locator

log = logging.getLogger(__name__)

LONGEST = 128  # tokens of a free answer


def measure_free_answers(
    locator: Locator, records: Sequence[LocatorRecord], batch: int = 8
) -> dict[str, float]:
    """Of free greedy answers: fraction that parses, mean IoU and depth error, fraction that satisfies its
    instruction.

    An answer that cannot be read counts as IoU 0, depth error 1 and an instruction that is not satisfied.
    """
    ious, errors, held, parsed = [], [], [], 0
    for start in range(0, len(records), batch):
        part = records[start : start + batch]
        for record, (_, location) in zip(part, free_answers(locator, part), strict=True):
            parsed += location is not None
            ious.append(iou(location.box01_xyxy, record.location.box01_xyxy) if location else 0.0)
            errors.append(abs(location.depth - record.location.depth) if location else 1.0)
            if record.request is not None and set(record.request.anchors) <= record.anchors.keys():
                clauses = satisfies(location, record.request, record.anchors) if location else {"": False}
                if clauses:
                    held.append(float(all(clauses.values())))
    return {
        "parsed": parsed / max(len(records), 1),
        "iou": float(np.mean(ious)),
        "depth_error": float(np.mean(errors)),
        "satisfied": float(np.mean(held)) if held else float("nan"),
    }


def check_answers(locator: Locator, records: Sequence[LocatorRecord]) -> dict[str, Any]:
    """Answer a few records freely and constrained; the report for check.json.

    Free answers that do not parse are a warning: constrained decoding repairs the form, not the training.
    ValueError if even a constrained answer cannot be read.
    """
    free = free_answers(locator, records)
    images = [read_image(record.image).rgb_u8 for record in records]
    questions = [question_of(record, locator.codec) for record in records]
    report = [
        {"id": record.id, "asked": question, "free": text, "parses": location is not None,
         "constrained": candidate.text}
        for record, question, (text, location), candidate
        in zip(records, questions, free, locator.answer(images, questions), strict=True)
    ]  # fmt: skip
    good = sum(location is not None for _, location in free)
    log.info("%d of %d free answers parse, all constrained ones do", good, len(free))
    if good < len(free):
        log.warning("free answers that do not parse: train longer, or look at check.json")
    return {"answered": len(records), "free_answers_that_parse": good, "answers": report}


def free_answers(locator: Locator, records: Sequence[LocatorRecord]) -> list[tuple[str, Location | None]]:
    """Greedy answers without any constraint, as one batch, and the places that they say, if readable."""
    images = [read_image(record.image) for record in records]
    asks = [ChatExample(image.rgb_u8, question_of(record, locator.codec))
            for image, record in zip(images, records, strict=True)]  # fmt: skip
    answers: list[tuple[str, Location | None]] = []
    replies = generate(locator.mllm, locator.chat.prompts(asks), longest=LONGEST)
    for image, reply in zip(images, replies, strict=True):
        location = None
        with suppress(AnswerError):
            location = locator.codec.decode(reply.text, frame_of(locator.mllm.processor, image.size))
        answers.append((reply.text, location))
    return answers
