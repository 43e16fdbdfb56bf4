"""The places that a locator proposes for one image, or for a file of jobs.

A job:     {"id": "kitchen-1", "image": "kitchen.png", "instruction": "Place the cup on the table"}
           "anchors" (see propose.py) may be given; without an id the line's number is used.
An answer: {"id", "image", "instruction", "made_by", "candidates": [...]}, or "error" instead of candidates.

Jobs whose answer is there are skipped, so an interrupted run continues; a line that was cut off is removed.
`made_by` is a hash of all that decides an answer; where that has changed, the job is answered anew, and the
earlier file is kept as NAME.old1.jsonl.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import typer
from tqdm.auto import tqdm

from datasets.relations import Place
from ldm.cluster import Stream, spread
from ldm.decode import LoadedImage
from ldm.device import pick_device, pick_dtype
from ldm.experts.depth import DepthEstimator
from ldm.experts.detect import Detector
from ldm.files import excerpt, json_bytes, numbered_lines, same_file, set_aside, work_digest, write_atomic
from ldm.images import encode_png, read_depth, read_image
from ldm.journal import append_line, parse_line, read_lines
from ldm.locks import alone
from ldm.registry.models import depth_folder, detector_folder, warn_of_small
from ldm.result import beside, write_result
from ldm.settings.choices import shard_of
from ldm.settings.config import to_plain
from llava_bifrost.language.answer import Candidate, draw_candidates
from llava_bifrost.locator import load_locator
from llava_bifrost.placement.placer import Item
from llava_bifrost.propose import propose, read_anchors
from llava_bifrost.settings import GEOMETRIC, LocatorSettings, NamedBoxes, PredictImage, PredictJobs

log = logging.getLogger(__name__)

Job = dict[str, Any]
Answered = tuple[Job, dict[str, Any]]  # a job, and its candidates or error


def load_networks(settings: LocatorSettings) -> SimpleNamespace:
    """The networks that the settings name; the depth network ranks several places, or is needed."""
    name, folder = settings.locator_name, settings.depth_model
    how, detector = (settings.device, settings.dtype, settings.load_in), None
    locator = None if name == GEOMETRIC else load_locator(name, *how)
    device = pick_device(settings.device)
    if settings.detector is not None:
        detector = Detector.load(settings.detector, device=str(device), dtype=settings.dtype)
    depth = None
    if needs_depth(settings):
        source = depth_folder(folder)
        beside = [] if name == GEOMETRIC else [Path(name)]
        warn_of_small(source, *beside, photographs=settings.detector is not None)
        dtype = pick_dtype(settings.dtype, device, source, "fp32")
        depth = DepthEstimator.load(source, device=str(device), dtype=dtype)
    return SimpleNamespace(locator=lambda _: locator, detector=lambda _: detector, depth=depth)


def needs_depth(settings: LocatorSettings) -> bool:
    needed = settings.locator_name == GEOMETRIC or settings.anchors is not None
    ranking = settings.candidates > 1 and settings.depth_model is not None
    return needed or settings.detector is not None or ranking


def known_and_proposed(
    settings: LocatorSettings, networks: Any, image: LoadedImage, text: str, depth_01: Any, anchors: Any
) -> tuple[dict[str, Place], list[Candidate]]:
    """Known places, and candidates for a sentence. anchors: a path, parsed JSON, or None."""
    if depth_01 is None and networks.depth is not None:
        depth_01 = networks.depth.estimate(image)
    item = Item(settings.aspect, settings.relative_size)
    return propose(settings, text, image.rgb_u8, depth_01, anchors, item, networks)[1:]


def predict_image(settings: PredictImage) -> dict[str, Any]:
    """Propose places for an object in one image."""
    image = read_image(settings.image)
    depth_01 = None if settings.depth is None else read_depth(settings.depth, size=image.size)
    networks = load_networks(settings)
    given = image, settings.instruction, depth_01, settings.anchors
    anchors, candidates = known_and_proposed(settings, networks, *given)
    if settings.out is not None:
        drawn_u8 = draw_candidates(image.rgb_u8, candidates, anchors)
        write_result({settings.out: encode_png(drawn_u8)}, settings.overwrite)
    for candidate in candidates:
        score = "" if candidate.score is None else f"   score {candidate.score:.2f}"
        box = ",".join(f"{value:.3f}" for value in candidate.location.box01_xyxy)
        place = f"box {box}   depth {candidate.location.d:.3f}{score}"
        typer.echo(f"{place}   log-probability {candidate.log_probability:.2f}")
    if settings.out is not None:
        log.info("wrote %s", settings.out)
    return {"instruction": settings.instruction, "candidates": list(map(candidate_report, candidates))}


def candidate_report(candidate: Candidate) -> dict[str, Any]:
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


def fingerprints(settings: PredictJobs, jobs: Sequence[Job]) -> dict[str, str]:
    """For every id a hash of what decides its answer: job, image, settings, networks and version."""
    plain = to_plain(settings) | dict.fromkeys(("jobs", "out", "batch", "shard", "device"))
    del plain["ray"]
    detector = settings.detector and detector_folder(settings.detector)
    named = (settings.locator_name, detector, settings.sam, depth_folder(settings.depth_model))
    folders = [Path(folder) for folder in named if folder and Path(folder).is_dir()]
    found = {}
    for job in jobs:
        given = [same_file(path) for path in (job["folder"] / job["image"], settings.anchors) if path]
        files = [path for path in given if path.is_file()]
        found[job["id"]] = work_digest([plain, job["instruction"], job.get("anchors")], files, folders)
    return found


def answers_path(settings: PredictJobs) -> Path:
    return settings.out or settings.jobs.with_name(settings.jobs.stem + ".answers.jsonl")


# Several shards may share the file of answers.
@partial(alone, path_of=lambda s: Path(f"{answers_path(s)}.{s.shard.replace('/', 'of')}"), inside=False)
def predict_jobs(settings: PredictJobs) -> dict[str, Any]:
    """Answer a JSONL file of jobs. Run again to continue; answers that are there stay."""
    out = answers_path(settings)
    if out.resolve() == settings.jobs.resolve():
        raise ValueError(f"--out {out} is the file of jobs")
    index, count = shard_of(settings.shard)
    jobs: list[Job] = []
    for number, line in numbered_lines(settings.jobs):
        where = f"{settings.jobs}:{number}"
        try:
            job = parse_line(line)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if any(not isinstance(job.get(key), str) for key in ("image", "instruction")):
            raise ValueError(f"{where}: a job has an image and an instruction, got {excerpt(job)}")
        jobs.append({**job, "id": str(job.get("id", number)), "folder": settings.jobs.parent})
    for name, times in sorted(Counter(job["id"] for job in jobs).items()):
        if times > 1:
            raise ValueError(f"{settings.jobs}: the id {name!r} is there {times} times")
    jobs = jobs[index::count]
    made_by = fingerprints(settings, jobs)
    try:
        answers = {str(answer["id"]): answer for answer in read_lines(out)}
        read_lines(out, repair=True)
    except (KeyError, ValueError):
        raise ValueError(f"{out} is not a file of answers; name another one with --out") from None
    # Without `made_by` a line is of an earlier version.
    valid = {name for name, line in answers.items() if line.get("made_by") in (None, made_by.get(name))}
    valid |= answers.keys() - made_by.keys()
    if len(valid) < len(answers):
        log.info("%d answers were made by other weights, settings or images", len(answers) - len(valid))
        set_aside([out])
        lines = [json.dumps(line) + "\n" for name, line in answers.items() if name in valid]
        write_atomic(out, "".join(lines).encode())
    todo = [job for job in jobs if job["id"] not in valid]
    log.info("%d of %d jobs have answers in %s", len(jobs) - len(todo), len(jobs), out)
    counts = {"out": out.as_posix(), "jobs": len(jobs), "kept": len(jobs) - len(todo), "errors": 0}
    if not todo:
        return counts
    single = needs_depth(settings) or settings.candidates > 1
    size, failed = 1 if single else settings.batch, 0
    groups = [todo[start : start + size] for start in range(0, len(todo), size)]

    def lost(group: list[Job], why: str) -> list[Answered]:
        return [(job, {"error": why}) for job in group]

    def make() -> Stream:
        networks = load_networks(settings)

        def answer(group: list[Job]) -> list[Answered]:
            try:
                images = [read_image(job["folder"] / job["image"]) for job in group]
                if single:
                    (job,), (image,) = group, images
                    anchors, text = job.get("anchors", settings.anchors), job["instruction"]
                    located = [known_and_proposed(settings, networks, image, text, None, anchors)[1]]
                else:
                    best = networks.locator(None).locate_many(images, [job["instruction"] for job in group])
                    located = [[candidate] for candidate in best]
            except (ValueError, OSError) as error:
                if len(group) > 1:  # is tried job by job
                    return [answered for job in group for answered in answer([job])]
                return [(group[0], {"error": " ".join(str(error).split())})]
            reports = [{"candidates": list(map(candidate_report, candidates))} for candidates in located]
            return list(zip(group, reports, strict=True))

        return lambda groups: map(answer, groups)

    with tqdm(total=len(todo), desc="answers", unit="job") as progress:
        for answered in spread(make, groups, settings.ray, lost):
            for job, result in answered:
                facts = {key: job[key] for key in ("id", "image", "instruction")}
                append_line(out, {**facts, "made_by": made_by[job["id"]], **result})
                failed += "error" in result
            progress.update(len(answered))
    if failed:
        log.warning("%d jobs could not be answered; their lines in %s say why", failed, out)
    return {**counts, "errors": failed}


def write_anchors(settings: NamedBoxes) -> dict[str, Any]:
    """Write a file of anchors from boxes typed by hand, and draw them on the image."""
    image, sheet = read_image(settings.image), beside(settings.out, "_boxes.png")
    if settings.image.resolve() in (settings.out.resolve(), sheet.resolve()):
        raise ValueError(f"--out {settings.out}: {settings.image} would be overwritten; name another file")
    (h, w), entries = image.size, []
    for text in settings.objects:
        name, _, numbers = text.rpartition("=")
        typed = [number.strip() for number in numbers.split(",")]
        if not name.strip() or len(typed) not in (4, 5):
            raise ValueError(f"{text!r} is neither NAME=X1,Y1,X2,Y2 nor NAME=X1,Y1,X2,Y2,DEPTH")
        ends = zip(typed, (w, h, w, h, 1), strict=False)
        try:
            values = [float(end.removesuffix("px")) / (side if "px" in end else 1) for end, side in ends]
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None
        entries.append({"name": name, "box": values[:4]} | ({"depth": values[4]} if values[4:] else {}))
    places = read_anchors(entries, np.zeros(image.size), str(settings.image))
    drawn = encode_png(draw_candidates(image.rgb_u8, [], places))
    write_result({settings.out: json_bytes(entries), sheet: drawn})
    log.info("anchors: %s\nsheet:   %s", settings.out, sheet)
    return {"out": settings.out.as_posix(), "sheet": sheet.as_posix(), "anchors": entries}
