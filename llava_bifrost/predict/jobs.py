"""Many questions from a JSONL file, answered into another one that only ever grows.

A job:     {"id": "kitchen-1", "image": "kitchen.png", "instruction": "Place the cup on the table"}
           "anchors" (see anchors.py) may be given; without an id the line's number is used.
An answer: {"id", "image", "instruction", "candidates": [...]}, or "error" instead of candidates.

Jobs whose answer is there are skipped, so an interrupted run continues; a line that was cut off is removed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ldm.experts.depth import DepthEstimator
from ldm.images import read_image
from ldm.journal import append_line, numbered_lines, parse_line, read_lines
from ldm.settings.config import setting
from ldm.shards import shard_of
from llava_bifrost.language.answer import Candidate
from llava_bifrost.locator import Locator
from llava_bifrost.placement.anchors import parse_anchors
from llava_bifrost.predict.image import LocatorSettings, candidate_report

log = logging.getLogger(__name__)

Job = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PredictJobs(LocatorSettings):
    """Many images."""

    jobs: Path = setting(help="JSONL file: {id, image, instruction} a line; image relative to the file")
    out: Path | None = setting(None, help="JSONL file to append answers to; without it JOBS.answers.jsonl")
    batch: int = setting(8, low=1, help="greedy answers computed together")
    shard: str = setting("0/1", help="i/n: this machine answers every n-th job from the i-th")


def predict_jobs(settings: PredictJobs) -> None:
    """Answer a JSONL file of jobs. Run again to continue; answers that are there stay."""
    out = settings.out or settings.jobs.with_name(settings.jobs.stem + ".answers.jsonl")
    if out.resolve() == settings.jobs.resolve():
        raise ValueError(f"--out {out} is the file of jobs")
    index, count = shard_of(settings.shard)
    jobs = read_questions(settings.jobs)[index::count]
    try:
        done = {str(answer["id"]) for answer in read_lines(out, repair=True)}
    except (KeyError, ValueError):
        raise ValueError(f"{out} is not a file of answers; name another one with --out") from None
    todo = [job for job in jobs if job["id"] not in done]
    log.info("%d of %d jobs have answers in %s", len(jobs) - len(todo), len(jobs), out)
    if not todo:
        return
    locator, estimator = settings.load(), settings.load_depth()
    size = 1 if settings.candidates > 1 else settings.batch
    failed = 0
    with tqdm(total=len(todo), desc="answers") as bar:
        for start in range(0, len(todo), size):
            for answer in answers_of(todo[start : start + size], locator, settings, estimator):
                failed += "error" in answer
                append_line(out, answer)
                bar.update()
    if failed:
        log.warning("%d jobs could not be answered; their lines in %s say why", failed, out)


def read_questions(path: Path) -> list[Job]:
    """The jobs of a file; images relative to its folder. ValueError names the line that is wrong."""
    jobs: list[Job] = []
    for number, line in numbered_lines(path):
        try:
            job = parse_line(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        if any(not isinstance(job.get(key), str) for key in ("image", "instruction")):
            raise ValueError(f"{path}:{number}: a job has an image and an instruction, got {line[:80]}")
        jobs.append({**job, "id": str(job.get("id", number)), "folder": path.parent})
    for name, times in sorted(Counter(job["id"] for job in jobs).items()):
        if times > 1:
            raise ValueError(f"{path}: the id {name!r} is there {times} times")
    return jobs


def answers_of(
    group: list[Job], locator: Locator, settings: PredictJobs, estimator: DepthEstimator | None
) -> Iterator[dict[str, Any]]:
    """Answers of a group of jobs, in order; a group that fails is tried job by job."""
    try:
        found = _locate(group, locator, settings, estimator)
    except (ValueError, OSError) as error:
        if len(group) > 1:
            for job in group:
                yield from answers_of([job], locator, settings, estimator)
            return
        results: list[dict[str, Any]] = [{"error": " ".join(str(error).split())}]
    else:
        results = [{"candidates": list(map(candidate_report, candidates))} for candidates in found]
    for job, result in zip(group, results, strict=True):
        yield {**{key: job[key] for key in ("id", "image", "instruction")}, **result}


def _locate(
    group: list[Job], locator: Locator, settings: PredictJobs, estimator: DepthEstimator | None
) -> list[list[Candidate]]:
    images = [read_image(job["folder"] / job["image"]).rgb_u8 for job in group]
    if settings.candidates == 1:
        candidates = locator.locate_many(images, [job["instruction"] for job in group])
        return [[candidate] for candidate in candidates]
    (job,), (image_u8,) = group, images
    anchors = parse_anchors(job["anchors"], f"job {job['id']}") if "anchors" in job else None
    depth_01 = None if estimator is None else estimator.estimate(image_u8)
    return [
        locator.locate(
            image_u8, job["instruction"], settings.candidates, settings.seed,
            depth_01=depth_01, anchors=anchors, temperature=settings.temperature,
        )
    ]  # fmt: skip
