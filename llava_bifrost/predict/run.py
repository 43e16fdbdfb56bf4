"""The places that a locator proposes for one image, or for a file of jobs.

A job:     {"id": "kitchen-1", "image": "kitchen.png", "instruction": "Place the cup on the table"}
           "anchors" (see anchors.py) may be given; without an id the line's number is used.
An answer: {"id", "image", "instruction", "candidates": [...]}, or "error" instead of candidates.

Jobs whose answer is there are skipped, so an interrupted run continues; a line that was cut off is removed.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from tqdm.auto import tqdm

from ldm.device import DEVICES, DTYPES
from ldm.experts.depth import DepthEstimator
from ldm.files import numbered_lines
from ldm.images import read_depth, read_image, write_png
from ldm.journal import append_line, parse_line, read_lines
from ldm.registry.models import resolve_model_path
from ldm.settings.config import CheckedSettings, setting
from ldm.shards import shard_of
from llava_bifrost.draw import draw_candidates
from llava_bifrost.language.answer import Candidate
from llava_bifrost.locator import FULL, TINY, Locator, load_locator
from llava_bifrost.placement.anchors import parse_anchors, read_anchors

log = logging.getLogger(__name__)

Job = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LocatorSettings(CheckedSettings):
    """Which locator, and how it is asked."""

    model: Path | None = setting(
        None,
        help=f"locator folder; without it {FULL.as_posix()} if it is there, else {TINY.as_posix()}",
    )
    candidates: int = setting(1, low=1, high=64, help="how many different places to propose, best first")
    temperature: float = setting(1.0, low=0.05, high=5, help="of the draws after the first, greedy answer")
    seed: int = setting(0, low=0, help="seed of the draws")
    depth_model: Path | None = setting(
        None, help="depth network folder, to rank several places by where the ground is"
    )
    device: str = setting("auto", choices=DEVICES, help="where the locator runs")
    dtype: str = setting("auto", choices=("auto", *DTYPES), help="precision of the locator")

    def load(self) -> tuple[Locator, DepthEstimator | None]:
        """The locator that these settings name, and the depth network that ranks several places."""
        full = resolve_model_path(FULL)
        folder = self.model or (full if (full / "config.json").is_file() else TINY)
        ranked = self.depth_model if self.candidates > 1 else None
        estimator = None if ranked is None else DepthEstimator.load(ranked)
        return load_locator(folder, self.device, self.dtype), estimator


@dataclass(frozen=True, kw_only=True)
class PredictImage(LocatorSettings):
    """One image and one sentence."""

    image: Path = setting(help="image of the background")
    instruction: str = setting(help='what to place where: "Place the dog behind the sofa"')
    depth: Path | None = setting(None, help="depth map of the image, bright = near, to rank several places")
    anchors: Path | None = setting(
        None, help="JSON file of known objects (name, box, depth); without it the locator looks for them"
    )
    out: Path | None = setting(None, help="PNG to write, with the places drawn on the image")


@dataclass(frozen=True, kw_only=True)
class PredictJobs(LocatorSettings):
    """Many images."""

    jobs: Path = setting(help="JSONL file: {id, image, instruction} a line; image relative to the file")
    out: Path | None = setting(None, help="JSONL file to append answers to; without it JOBS.answers.jsonl")
    batch: int = setting(8, low=1, help="greedy answers computed together")
    shard: str = setting("0/1", help="i/n: this machine answers every n-th job from the i-th")


def predict_image(settings: PredictImage) -> dict[str, Any]:
    """Propose places for an object in one image."""
    image = read_image(settings.image)
    anchors = None if settings.anchors is None else read_anchors(settings.anchors)
    depth_01 = None if settings.depth is None else read_depth(settings.depth, size=image.size)
    locator, estimator = settings.load()
    if depth_01 is None and estimator is not None:
        depth_01 = estimator.estimate(image.rgb_u8)
    candidates = locator.locate(
        image.rgb_u8, settings.instruction, settings.candidates, settings.seed,
        depth_01=depth_01, anchors=anchors, temperature=settings.temperature,
    )  # fmt: skip
    if settings.out is not None:
        write_png(settings.out, draw_candidates(image.rgb_u8, candidates, anchors))
    for candidate in candidates:
        score = "" if candidate.score is None else f"   score {candidate.score:.2f}"
        box = ",".join(f"{value:.3f}" for value in candidate.location.box01_xyxy)
        place = f"box {box}   depth {candidate.location.d:.3f}{score}"
        typer.echo(f"{place}   log-probability {candidate.log_probability:.2f}")
    if settings.out is not None:
        log.info("wrote %s", settings.out)
    return {"instruction": settings.instruction, "candidates": list(map(candidate_report, candidates))}


def candidate_report(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON."""
    where = candidate.location
    far, near = where.extent or (None, None)
    return {
        "box01_xyxy": [round(value, 4) for value in where.box01_xyxy],
        "depth": round(where.d, 4),
        "far": far,
        "near": near,
        "answer": candidate.text,
        "log_probability": candidate.log_probability,
        "score": candidate.score,
    }


def predict_jobs(settings: PredictJobs) -> None:
    """Answer a JSONL file of jobs. Run again to continue; answers that are there stay."""
    out = settings.out or settings.jobs.with_name(settings.jobs.stem + ".answers.jsonl")
    if out.resolve() == settings.jobs.resolve():
        raise ValueError(f"--out {out} is the file of jobs")
    index, count = shard_of(settings.shard)
    jobs: list[Job] = []
    for number, line in numbered_lines(settings.jobs):
        try:
            job = parse_line(line)
        except ValueError as error:
            raise ValueError(f"{settings.jobs}:{number}: {error}") from None
        if any(not isinstance(job.get(key), str) for key in ("image", "instruction")):
            where = f"{settings.jobs}:{number}"
            raise ValueError(f"{where}: a job has an image and an instruction, got {line[:80]}")
        jobs.append({**job, "id": str(job.get("id", number)), "folder": settings.jobs.parent})
    for name, times in sorted(Counter(job["id"] for job in jobs).items()):
        if times > 1:
            raise ValueError(f"{settings.jobs}: the id {name!r} is there {times} times")
    jobs = jobs[index::count]
    try:
        done = {str(answer["id"]) for answer in read_lines(out)}
        read_lines(out, repair=True)
    except (KeyError, ValueError):
        raise ValueError(f"{out} is not a file of answers; name another one with --out") from None
    todo = [job for job in jobs if job["id"] not in done]
    log.info("%d of %d jobs have answers in %s", len(jobs) - len(todo), len(jobs), out)
    if not todo:
        return
    locator, estimator = settings.load()
    size, failed = 1 if settings.candidates > 1 else settings.batch, 0
    groups = [todo[start : start + size] for start in range(0, len(todo), size)]
    progress = tqdm(total=len(todo), desc="answers", unit="job")
    while groups:
        group = groups.pop(0)
        try:
            images = [read_image(job["folder"] / job["image"]).rgb_u8 for job in group]
            if settings.candidates == 1:
                best = locator.locate_many(images, [job["instruction"] for job in group])
                located = [[candidate] for candidate in best]
            else:
                (job,), (image_u8,) = group, images
                anchors = parse_anchors(job["anchors"], f"job {job['id']}") if "anchors" in job else None
                depth_01 = None if estimator is None else estimator.estimate(image_u8)
                located = [locator.locate(
                    image_u8, job["instruction"], settings.candidates, settings.seed,
                    depth_01=depth_01, anchors=anchors, temperature=settings.temperature,
                )]  # fmt: skip
        except (ValueError, OSError) as error:
            if len(group) > 1:  # is tried job by job
                groups = [[job] for job in group] + groups
                continue
            results: list[dict[str, Any]] = [{"error": " ".join(str(error).split())}]
            failed += 1
        else:
            results = [{"candidates": list(map(candidate_report, candidates))} for candidates in located]
        for job, result in zip(group, results, strict=True):
            append_line(out, {**{key: job[key] for key in ("id", "image", "instruction")}, **result})
        progress.update(len(group))
    progress.close()
    if failed:
        log.warning("%d jobs could not be answered; their lines in %s say why", failed, out)
