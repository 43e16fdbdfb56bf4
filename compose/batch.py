"""Many composites in one run: each a job with a name, its own seed and its own files; done ones are kept.

A job file has one JSON object a line, with the setting names of the image verb, and a name if one is wanted:

    {"name": "dog/1", "background": "room.png", "object": "dog.png", "box": [0.1, 0.4, 0.5, 0.9], "seed": 3}

A job is OUT/<name>.png with its recipe and the report OUT/<name>.json. A report says by a hash of settings
and input files what it is the result of, so a job is done again only when these have changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from cldm.pretrained import load_compositor_config
from compose import ComposeSettings, compose, load_models
from compose.output import save
from compose.pipeline import Models
from compose.settings import GEOMETRIC, depth_folder, locator_of, model_folder
from ldm.files import file_sha256, write_atomic
from ldm.seeds import seed_of
from ldm.settings.config import Layer, merge_layers, to_plain, yaml_layers
from ldm.shards import shard_of

logger = logging.getLogger(__name__)

NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)*")
PATHS = [one.name for one in fields(ComposeSettings) if "Path" in str(one.type) or one.name == "locator"]
LISTED = 20  # errors that are shown


@dataclass(frozen=True)
class Job:
    """One composite. name: its place below the folder of results, without .png."""

    name: str
    settings: ComposeSettings

    def digest(self) -> str:
        """What decides the result, apart from the networks: settings and the contents of the input files."""
        inputs = {name: file_sha256(path) for name, path in self.settings.input_files.items()}
        text = json.dumps([to_plain(self.settings), inputs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    made: int
    kept: int
    failed: int


def read_jobs(path: Path, defaults: Path | None = None, root: Path = Path(".")) -> list[Job]:
    """All jobs of a file, checked before any work: settings, names, files and model folders.

    defaults: YAML file of settings below those of every line. root: where relative paths in the file start.
    Raises ValueError that lists every bad line with its number and reason.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    below = [] if defaults is None else yaml_layers(defaults)
    jobs: list[Job] = []
    taken: dict[str, int] = {}
    errors: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            job = _job(line, number, below, root)
            if job.name in taken:
                raise ValueError(f"its name {job.name!r} is that of line {taken[job.name]}")
            taken[job.name] = number
            check_files(job.settings)
            jobs.append(job)
        except ValueError as error:
            errors.append(f"line {number}: {error}")
    if errors:
        more = f"; and {len(errors) - LISTED} more" if len(errors) > LISTED else ""
        count = f"{len(errors)} of {len(errors) + len(jobs)} jobs cannot be run"
        raise ValueError(f"{path}: {count}: {'; '.join(errors[:LISTED])}{more}")
    if not jobs:
        raise ValueError(f"{path}: there is no job in it; a line looks like {EXAMPLE}")
    return jobs


EXAMPLE = '{"background": "room.png", "object": "dog.png", "box": [0.1, 0.4, 0.5, 0.9]}'


def _job(line: str, number: int, below: Sequence[Layer], root: Path) -> Job:
    """One line; its paths as the settings need them."""
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"a job is a JSON object such as {EXAMPLE}, got {line[:60]}")
    name = values.pop("name", f"{number:06d}")
    if not isinstance(name, str) or not NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"name must be letters, digits, _ - . and / for folders, got {name!r}")
    for key in PATHS:
        if isinstance(values.get(key), str) and values[key] != GEOMETRIC:
            values[key] = (root / values[key]).as_posix()
    values.setdefault("seed", seed_of(name) % 2**32)
    return Job(name, merge_layers(ComposeSettings, [*below, Layer(values)]))


def check_files(settings: ComposeSettings) -> None:
    """Refuse settings that name a file or folder that is not there."""
    for name, file in {**settings.input_files, "anchors": settings.anchors}.items():
        if file is not None and not file.is_file():
            raise ValueError(f"{name}: {file} is not a file")
    load_compositor_config(model_folder(settings))
    folders = {"sam": settings.sam, "detector": settings.detector}
    if settings.background_depth is None:
        folders["depth_model"] = depth_folder(settings.depth_model)
    if settings.instruction is not None and locator_of(settings) != GEOMETRIC:
        folders["locator"] = Path(locator_of(settings))
    for name, folder in folders.items():
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{name}: {folder} is not a folder")


def run_jobs(
    jobs: Sequence[Job],
    out: Path,
    shard: str = "0/1",
) -> Outcome:
    """Make what is missing of this machine's share; networks stay loaded while jobs share them.

    A job that fails is recorded in OUT/failed-<i>-of-<n>.json with its reason, and the next one follows; a
    later run tries it again.
    """
    index, count = shard_of(shard)
    kept = made = 0
    failed: dict[str, str] = {}
    models: Models | None = None
    journal = out / f"failed-{index}-of-{count}.json"
    bar = tqdm(jobs[index::count], desc="composites", unit="job", disable=not sys.stderr.isatty())
    for job in bar:
        path = out / f"{job.name}.png"
        try:
            if all(is_done(one, job) for one in paths_of(job, path)):
                kept += 1
                continue
            models = shared_models(job.settings, models)
            result = compose(job.settings, models, progress=False)
            for sample, one in enumerate(paths_of(job, path)):
                save(result, sample, one, job=job.digest())
            made += 1
        except (ValueError, OSError, RuntimeError) as error:
            failed[job.name] = " ".join(str(error).split())[:2000]
            logger.error("%s: %s", job.name, failed[job.name])
            write_atomic(journal, (json.dumps(failed, indent=1) + "\n").encode())
    if not failed and journal.exists():
        journal.unlink()
    return Outcome(made, kept, len(failed))


def paths_of(job: Job, path: Path) -> list[Path]:
    """The PNG of a job, or one per sample."""
    count = job.settings.num_samples
    return [path] if count == 1 else [path.with_name(f"{path.stem}_{i}.png") for i in range(count)]


def is_done(path: Path, job: Job) -> bool:
    """Whether an image and its report are there and are the result of this very job."""
    report = path.with_suffix(".json")
    if not (path.is_file() and report.is_file()):
        return False
    try:
        found: Any = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("job") == job.digest()


def shared_models(settings: ComposeSettings, models: Models | None) -> Models:
    """The models of the job before where they are the same, else newly loaded ones."""
    if models is None:
        return load_models(settings)
    folders = model_folder(settings), depth_folder(settings.depth_model)
    same = (models.folder, models.depth_folder) == folders
    asked = (settings.device, settings.dtype, settings.offload)
    return models if same and models.asked == asked else load_models(settings)
