"""Many composites in one run: each a job with a name, its own seed and its own files; done ones are kept.

A job file has one JSON object a line, with the setting names of the image verb, and a name if one is wanted:

    {"name": "dog/1", "background": "room.png", "object": "dog.png", "box": [0.1, 0.4, 0.5, 0.9], "seed": 3}

A job is OUT/<name>.png with its recipe and the report OUT/<name>.json. A report says by a hash of settings
and input files what it is the result of, so a job is done again only when these have changed.
"""

import hashlib
import json
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from tqdm.auto import tqdm

from cldm.pretrained import load_compositor_config
from compose import ComposeSettings, compose, load_models
from compose.settings import GEOMETRIC, Models, compositor_folder, depth_folder, locator_name
from ldm.files import file_sha256, read_json, write_json
from ldm.result import sample_paths
from ldm.seeds import seed_of
from ldm.settings.config import Layer, merge_layers, to_plain, yaml_layers
from ldm.shards import shard_of

logger = logging.getLogger(__name__)

NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)*")
PATHS = [field.name for field in fields(ComposeSettings) if "Path" in str(field.type)] + ["locator"]
LISTED = 20  # errors that are shown; chosen: they fit on a screen
EXAMPLE = '{"background": "room.png", "object": "dog.png", "box": [0.1, 0.4, 0.5, 0.9]}'


@dataclass(frozen=True)
class Job:
    """One composite. name: its place below the folder of results, without .png."""

    name: str
    settings: ComposeSettings

    def digest(self) -> str:
        """Hash of all that decides the result, apart from the networks: settings and input files."""
        inputs = {name: file_sha256(path) for name, path in self.settings.input_files.items()}
        text = json.dumps([to_plain(self.settings), inputs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def is_done(self, path: Path) -> bool:
        """Whether an image and its report are there and are the result of this very job."""
        try:
            return path.is_file() and read_json(path.with_suffix(".json")).get("job") == self.digest()
        except ValueError:
            return False


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
    line_of: dict[str, int] = {}
    errors: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise ValueError(f"a job is a JSON object such as {EXAMPLE}, got {line[:60]}")
            name = values.pop("name", f"{number:06d}")
            if not isinstance(name, str) or not NAME.fullmatch(name) or ".." in name:
                raise ValueError(f"name must be letters, digits, _ - . and / for folders, got {name!r}")
            for key in PATHS:
                if isinstance(values.get(key), str) and values[key] != GEOMETRIC:
                    values[key] = (root / values[key]).as_posix()
            settings = merge_layers(
                ComposeSettings, [*below, Layer({"seed": seed_of(name) % 2**32, **values})]
            )
            if name in line_of:
                raise ValueError(f"its name {name!r} is that of line {line_of[name]}")
            line_of[name] = number
            check_files(settings)
            jobs.append(Job(name, settings))
        except json.JSONDecodeError as error:
            errors.append(f"line {number}: not JSON: {error}")
        except ValueError as error:
            errors.append(f"line {number}: {error}")
    if errors:
        more = f"; and {len(errors) - LISTED} more" if len(errors) > LISTED else ""
        count = f"{len(errors)} of {len(errors) + len(jobs)} jobs cannot be run"
        raise ValueError(f"{path}: {count}: {'; '.join(errors[:LISTED])}{more}")
    if not jobs:
        raise ValueError(f"{path}: there is no job in it; a line looks like {EXAMPLE}")
    return jobs


def check_files(settings: ComposeSettings) -> None:
    """Refuse settings that name a file or folder that is not there."""
    for name, file in {**settings.input_files, "anchors": settings.anchors}.items():
        if file is not None and not file.is_file():
            raise ValueError(f"{name}: {file} is not a file")
    load_compositor_config(compositor_folder(settings.model))
    folders = {"sam": settings.sam, "detector": settings.detector}
    if settings.background_depth is None:
        folders["depth_model"] = depth_folder(settings.depth_model)
    if settings.instruction is not None and (locator := locator_name(settings)) != GEOMETRIC:
        folders["locator"] = Path(locator)
    for name, folder in folders.items():
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{name}: {folder} is not a folder")


def run_jobs(jobs: Sequence[Job], out: Path, shard: str = "0/1") -> int:
    """Make what is missing of this machine's part; networks stay loaded while jobs have them in common.

    A job that fails is recorded in OUT/failed-<i>-of-<n>.json with its reason, and the next one follows; a
    later run tries it again. Returns how many failed.
    """
    index, count = shard_of(shard)
    kept = made = 0
    failed: dict[str, str] = {}
    models: Models | None = None
    record = out / f"failed-{index}-of-{count}.json"
    bar = tqdm(jobs[index::count], desc="composites", unit="job", disable=not sys.stderr.isatty())
    for job in bar:
        paths = sample_paths(out / f"{job.name}.png", job.settings.num_samples)
        try:
            if all(job.is_done(path) for path in paths):
                kept += 1
                continue
            models = load_models(job.settings, models)
            result = compose(job.settings, models, progress=False)
            for sample, path in enumerate(paths):
                result.save(sample, path, job=job.digest())
            made += 1
        except (ValueError, OSError, RuntimeError) as error:
            failed[job.name] = " ".join(str(error).split())[:2000]
            logger.error("%s: %s", job.name, failed[job.name])
            write_json(record, failed)
    logger.info("%s: %d made, %d were there, %d failed", out, made, kept, len(failed))
    if failed:
        logger.error("reasons: %s/failed-*.json; the same command tries these again", out)
    else:
        record.unlink(missing_ok=True)
    return len(failed)
