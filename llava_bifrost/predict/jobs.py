"""Many questions from a JSONL file, answered into another one that only ever grows.

A job:     {"id": "kitchen-1", "image": "kitchen.png", "instruction": "Place the cup on the table"}
           "anchors" (see anchors.py) may be given; without an id the line's number is used.
An answer: {"id", "image", "instruction", "candidates": [...]}, or "error" instead of candidates.

Jobs whose answer is there are skipped, so an interrupted run continues; a line that was cut off is removed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm.auto import tqdm

from ldm.images import read_image
from ldm.shards import shard_of
from llava_bifrost.language.answer import Candidate
from llava_bifrost.locator import Locator
from llava_bifrost.placement.anchors import anchors_of
from llava_bifrost.predict.settings import JobSettings

log = logging.getLogger(__name__)

Report = Callable[[Candidate], dict[str, Any]]
Job = dict[str, Any]


def answer_jobs(settings: JobSettings, report_of: Report) -> Path:
    """Answer every job of the file that has no answer yet; returns the file of answers."""
    out = settings.out or settings.jobs.with_name(settings.jobs.stem + ".answers.jsonl")
    if out.resolve() == settings.jobs.resolve():
        raise ValueError(f"--out {out} is the file of jobs")
    index, count = shard_of(settings.shard)
    jobs = read_jobs(settings.jobs)[index::count]
    done = answered(out)
    todo = [job for job in jobs if job["id"] not in done]
    log.info("%d of %d jobs have answers in %s", len(jobs) - len(todo), len(jobs), out)
    if not todo:
        return out
    locator = settings.load()
    depth = settings.load_depth() if settings.candidates > 1 else None
    out.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    with out.open("a", encoding="utf-8") as file, tqdm(total=len(todo), desc="answers") as bar:
        for group in groups(todo, 1 if settings.candidates > 1 else settings.batch):
            for answer in answers_of(group, locator, settings, depth, report_of):
                failed += "error" in answer
                append(file, answer)
            bar.update(len(group))
    if failed:
        log.warning("%d jobs could not be answered; their lines in %s say why", failed, out)
    return out


def read_jobs(path: Path) -> list[Job]:
    """The jobs of a file; images relative to its folder. ValueError names the line that is wrong."""
    jobs: list[Job] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            job = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not a JSON object ({error})") from None
        wanted = ("image", "instruction")
        if not isinstance(job, dict) or any(not isinstance(job.get(key), str) for key in wanted):
            raise ValueError(f"{path}:{number}: a job has an image and an instruction, got {line[:80]}")
        jobs.append({**job, "id": str(job.get("id", number)), "folder": path.parent})
    seen = [job["id"] for job in jobs]
    twice = sorted({name for name in seen if seen.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: the id {twice[0]!r} is there {seen.count(twice[0])} times")
    return jobs


def answered(out: Path) -> set[str]:
    """The ids in a file of answers; a torn last line is cut off."""
    if not out.exists():
        return set()
    data = out.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with out.open("r+b") as file:
            file.truncate(whole)
    try:
        return {str(json.loads(line)["id"]) for line in data[:whole].splitlines() if line.strip()}
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise ValueError(f"{out} is not a file of answers; name another one with --out") from None


def append(file: TextIO, answer: dict[str, Any]) -> None:
    """One line, at once on its way to the disk."""
    file.write(json.dumps(answer) + "\n")
    file.flush()


def groups(jobs: list[Job], size: int) -> Iterator[list[Job]]:
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def answers_of(
    group: list[Job], locator: Locator, settings: JobSettings, depth: Any, report_of: Report
) -> Iterator[dict[str, Any]]:
    """Answers of a group of jobs, in order; a group that fails is tried job by job."""
    try:
        found = _locate(group, locator, settings, depth)
    except (ValueError, OSError) as error:
        if len(group) > 1:
            for job in group:
                yield from answers_of([job], locator, settings, depth, report_of)
            return
        yield {**_head(group[0]), "error": " ".join(str(error).split())}
        return
    for job, candidates in zip(group, found, strict=True):
        yield {**_head(job), "candidates": [report_of(one) for one in candidates]}


def _head(job: Job) -> dict[str, Any]:
    return {key: job[key] for key in ("id", "image", "instruction")}


def _locate(group: list[Job], locator: Locator, settings: JobSettings, depth: Any) -> list[list[Candidate]]:
    images = [read_image(job["folder"] / job["image"]).rgb_u8 for job in group]
    if settings.candidates == 1:
        return [[one] for one in locator.locate_many(images, [job["instruction"] for job in group])]
    job, image_u8 = group[0], images[0]
    anchors = anchors_of(job["anchors"], f"job {job['id']}") if "anchors" in job else None
    depth_01 = None if depth is None else depth.estimate(image_u8)
    return [
        locator.locate(
            image_u8, job["instruction"], settings.candidates, settings.seed,
            depth_01=depth_01, anchors=anchors, temperature=settings.temperature,
        )
    ]  # fmt: skip
