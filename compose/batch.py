"""Many composites in one run: each a job with a name, its own seed and its own files; done ones are kept.

A job file has one JSON object a line (`EXAMPLE`), with the setting names of the image verb, and a name if one
is wanted. A job is OUT/<name>.png with its recipe and the report OUT/<name>.json. A report says by a hash of
settings, input files, networks and version what it is the result of, so a job is done again when these have
changed. Processes that do the same part at the same time divide its jobs. Failed ones: OUT/failed-I-of-N.json

The DreamBooth test set gives a job for every object in every prepared background, in both published layouts
(`DreamBoothSettings`). What the background shows inside its mask makes room for the object, so the mode is
`replace` by default.
"""

import contextlib
import logging
import re
import time
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm.auto import tqdm

from cldm.config import load_compositor_config
from compose.batch_settings import BatchSettings, DreamBoothSettings
from compose.composer import FAILURES, Composer
from compose.models import compositor_folder
from compose.settings import CAST, OFF, SHADOW_MODEL, ComposeSettings
from compose.sheet import save_sheet
from compose.sources import uses_depth_network
from datasets.sources.readers import images_in, subfolders
from ldm.cluster import Stream, spread
from ldm.denoise import AT_ONCE
from ldm.files import (
    check_stopped,
    file_sha256,
    located,
    numbered_lines,
    read_json,
    same_file,
    work_digest,
    write_json,
)
from ldm.journal import parse_line
from ldm.locks import lock_beside, taken_together
from ldm.registry.models import BUILTIN, cutout_network, depth_folder, detector_folder, how_to_get
from ldm.result import sample_paths
from ldm.seeds import seed_of
from ldm.settings.choices import shard_of
from ldm.settings.config import Layer, flag_name, layer_merger, to_plain, yaml_layers
from llava_bifrost.settings import GEOMETRIC

logger = logging.getLogger(__name__)

MASK = "_mask"  # ends the names of DreamBooth's masks of backgrounds
NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)*")
NETWORKS = ("model", "depth_model", "sam", "detector", "locator", "cutout")  # settings that choose a network
DECIDE_NETWORKS = ("instruction", "object_mask", "anchors")  # whether one is needed
PATHS = [field.name for field in fields(ComposeSettings) if "Path" in str(field.type)] + ["locator"]
NO_PATHS = {"locator": GEOMETRIC, "detector": BUILTIN}  # words that these settings also take
LISTED = 20  # errors that are shown; chosen: they fit on a screen
EXAMPLE = '{"background": "room.png", "object": "dog.png", "box": [0.1, 0.4, 0.5, 0.9]}'


@dataclass(frozen=True)
class BatchJob:
    """One composite. name: its place below the folder of results, without .png."""

    name: str
    settings: ComposeSettings

    def digest(self) -> str:
        """Hash of all that decides the result: settings, input files, networks and the version."""
        files, folders = named_files(self.settings).values(), named_folders(self.settings).values()
        return work_digest(to_plain(self.settings), files, folders)

    def images(self, out: Path) -> list[Path]:
        """Its PNG below the folder of results, one per sample."""
        return sample_paths(out / f"{self.name}.png", self.settings.kept_samples)

    def is_done(self, path: Path) -> bool:
        """Whether an image and its report are there, agree, and are the result of this very job."""
        if not path.is_file():
            return False
        try:
            report = read_json(path.with_suffix(".json"))
            return report.get("image_sha256") == file_sha256(path) and report.get("job") == self.digest()
        except ValueError:
            return False

    def all_done(self, out: Path) -> bool:
        return all(map(self.is_done, self.images(out)))


def read_jobs(path: Path, defaults: Path | None = None, root: Path = Path(".")) -> list[BatchJob]:
    """All jobs of a file, checked before any work: settings, names, files and model folders.

    defaults: YAML file of settings below those of every line. root: where relative paths in the file start.
    Raises ValueError that lists every bad line with its number and reason.
    """
    merged = layer_merger(ComposeSettings, [] if defaults is None else yaml_layers(defaults))
    jobs: list[BatchJob] = []
    taken: dict[str, tuple[str, bool]] = {}
    on_disk = cache(lambda text: same_file(root / text).as_posix())
    errors, sound = list[str](), set[Any]()
    for number, line in numbered_lines(path):
        try:
            values = parse_line(line)
            name = values.pop("name", f"{number:06d}")
            if not isinstance(name, str) or not NAME.fullmatch(name) or ".." in name:
                raise ValueError(f"name must be letters, digits, _ - . and / for folders, got {name!r}")
            for key in PATHS:
                if isinstance(values.get(key), str) and values[key] != NO_PATHS.get(key):
                    values[key] = on_disk(values[key])
            settings = merged(Layer({"seed": seed_of(name) % 2**32, **values}))
            claim_names(name, settings.kept_samples, f"line {number}", taken)
            check_files(settings, sound)
            jobs.append(BatchJob(name, settings))
        except (ValueError, OSError) as error:  # a path can be too long to look for
            errors.append(f"line {number}: {error}")
    if errors:
        more = f"; and {len(errors) - LISTED} more" if len(errors) > LISTED else ""
        count = f"{len(errors)} of {len(errors) + len(jobs)} jobs cannot be run"
        raise ValueError(f"{path}: {count}: {'; '.join(errors[:LISTED])}{more}")
    if not jobs:
        raise ValueError(f"{path}: there is no job in it; a line looks like {EXAMPLE}")
    return jobs


def claim_names(name: str, samples: int, owner: str, taken: dict[str, tuple[str, bool]]) -> None:
    """Refuse a job with a file that an earlier one writes: `dog` with two samples beside `dog_0`.

    Letters of either case count as the same, and a file cannot be a folder of another job. taken: what the
    earlier jobs write -> (job, whether it is a file); this job's files are added.
    """
    if re.fullmatch(r"failed-\d+-of-\d+", name):
        raise ValueError(f"its name {name!r} is that of the list of failures")
    plain = PurePosixPath(name)
    images = [PurePosixPath(path) for path in sample_paths(Path(f"{plain}.png"), samples)]
    files = [*images, *(path.with_suffix(".json") for path in images), PurePosixPath(f"{plain}_sheet.png")]
    for path, is_file in [*((path, True) for path in files), *((path, False) for path in images[0].parents)]:
        key = unicodedata.normalize("NFC", str(path)).casefold()
        other, other_file = taken.setdefault(key, (owner, is_file))
        if other != owner and (is_file or other_file):
            raise ValueError(f"its name {name!r} gives the file {path}, which is taken by {other}")


def named_files(settings: ComposeSettings) -> dict[str, Path]:
    """All files that are read, by the name of their setting."""
    return {**settings.input_files, **({"anchors": settings.anchors} if settings.anchors else {})}


def named_folders(settings: ComposeSettings) -> dict[str, Path]:
    """The folders of all networks that may be needed, by the name of their setting."""
    folders = {"model": compositor_folder(settings.model), "sam": settings.sam}
    folders["detector"] = settings.detector and detector_folder(settings.detector)
    if uses_depth_network(settings):
        folders["depth_model"] = depth_folder(settings.depth_model)
    if settings.instruction is not None and (locator := settings.locator_name) != GEOMETRIC:
        folders["locator"] = Path(locator)
    if settings.shadow_there == CAST:
        folders["shadow"] = located(SHADOW_MODEL)
    if settings.object_mask is None and settings.sam is None:
        folders["cutout"] = (network := cutout_network(settings.cutout)) and network.parent
    return {name: folder for name, folder in folders.items() if folder is not None}


def check_files(settings: ComposeSettings, sound: set[Any]) -> None:
    """Refuse settings that name a file or folder that is not there. sound: what was found before."""
    for name, file in named_files(settings).items():
        if file not in sound and not file.is_file():
            raise ValueError(f"{name}: {file} is not a file")
        sound.add(file)
    chosen = tuple(getattr(settings, name) for name in NETWORKS)
    chosen += tuple(getattr(settings, name) is None for name in DECIDE_NETWORKS)
    chosen += (uses_depth_network(settings), settings.shadow_there)
    if chosen in sound:
        return
    folders = named_folders(settings)
    if folders["model"] not in sound:
        load_compositor_config(folders["model"])
        sound.add(folders["model"])
    for name, folder in folders.items():
        if not folder.is_dir():
            raise ValueError(f"{name}: {folder} is not a folder{how_to_get(folder)}")
    sound.add(chosen)


def dreambooth_jobs(settings: DreamBoothSettings) -> list[BatchJob]:
    """A job CONCEPT/<n> for every object and background of a layout; ValueError names what is missing."""
    for name in ("objects", "backgrounds", "object_masks"):
        folder = getattr(settings, name)
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{flag_name(name)} {folder} is not a folder")
    masked = settings.object_masks is not None
    objects: dict[str, tuple[Path, Path | None]] = {}
    if settings.object_masks is None:  # the alpha channel of the first cut-out counts
        for home in subfolders(settings.objects):
            if cutouts := images_in(home, (".png",)):
                objects[home.name] = (cutouts[0], None)
        expected = "sub-folders with .png cut-outs (images with masks need --object-masks)"
    else:
        masks = {mask.stem: mask for mask in images_in(settings.object_masks)}
        objects = {image.stem: (image, masks.get(image.stem)) for image in images_in(settings.objects)}
        if absent := sorted(objects.keys() - masks.keys()):
            raise ValueError(f"--object-masks {settings.object_masks}: no mask for {', '.join(absent[:5])}")
        expected = "images"
    if not objects:
        raise ValueError(f"--objects {settings.objects}: there are no {expected}")
    images, ending = {image.stem: image for image in images_in(settings.backgrounds)}, "" if masked else "_GT"
    stems = sorted(stem.removesuffix(MASK) for stem in images if stem.endswith(MASK))
    if not stems:
        raise ValueError(f"--backgrounds {settings.backgrounds}: there is no NAME{MASK} file")
    if absent := [stem for stem in stems if f"{stem}{ending}" not in images]:
        wanted = f"no image {absent[0]}{ending} for {absent[0]}{MASK}"
        raise ValueError(f"--backgrounds {settings.backgrounds}: {wanted}")
    numbers = [re.sub(r"^.*_(?=\d+$)", "", stem) for stem in stems]
    if len(set(numbers)) < len(numbers):
        numbers = stems
    given = to_plain({name: getattr(settings, name) for name in ("mode", "model", "depth_model")})
    own = yaml_layers(settings.config) if settings.config else []
    merged = layer_merger(ComposeSettings, [Layer({"shadow": OFF}), *own])  # as published
    jobs, taken = [], dict[str, tuple[str, bool]]()
    for concept, (image, mask) in sorted(objects.items()):
        for stem, number in zip(stems, numbers, strict=True):
            name = f"{concept}/{number}"
            background, target = images[f"{stem}{ending}"], images[f"{stem}{MASK}"]
            files = {"object": image, "object_mask": mask, "background": background, "target_mask": target}
            more = {"invert_target_mask": masked, "seed": seed_of(settings.seed, name) % 2**32}
            job = BatchJob(name, merged(Layer({**given, **to_plain(files), **more})))
            claim_names(name, job.settings.kept_samples, f"{image} in {background.as_posix()}", taken)
            jobs.append(job)
    check_files(jobs[0].settings, set())
    return jobs


def batch(settings: BatchSettings | DreamBoothSettings) -> dict[str, Any]:
    """Make all composites of a job file. Run again to continue: what is done stays, locks of the dead go.

    All jobs are checked first. A job that fails is recorded and the rest goes on; the exit code is then 1.
    """
    if isinstance(settings, DreamBoothSettings):
        jobs = dreambooth_jobs(settings)
    else:
        jobs = read_jobs(settings.jobs, settings.config, settings.root)
    out, (index, count) = settings.out, shard_of(settings.shard)
    record = out / f"failed-{index}-of-{count}.json"
    mine, failed, made = jobs[index::count], dict[str, str](), list[str]()
    todo = [job for job in mine if lock_beside(job.images(out)[0]).exists() or not job.all_done(out)]
    start = time.monotonic()

    def make() -> Stream:
        composer = Composer()

        def work(jobs: Iterable[BatchJob]) -> Iterator[tuple[str, bool, str]]:
            parts = taken_together(
                jobs, lambda job: job.all_done(out), lambda job: job.images(out)[0], composer.at_once
            )
            with contextlib.closing(parts):  # where this ends early, their locks go
                for job, result in (pair for part in parts for pair in composer.results(part)):
                    try:
                        if isinstance(result, Exception):
                            raise result
                        if settings.sheet:
                            save_sheet(result, out / f"{job.name}.png", settings.overwrite)
                        for sample, path in enumerate(job.images(out)):  # last: a report says that it is done
                            result.save(sample, path, job.digest(), settings.overwrite)
                        yield job.name, False, f"{100 * result.report['visible_fraction']:.0f} % visible"
                    except FAILURES as error:
                        check_stopped()
                        yield job.name, True, " ".join(str(error).split())

        return work

    results = spread(make, todo, settings.ray, lambda job, why: (job.name, True, why), AT_ONCE)
    with contextlib.closing(results):
        for number, (name, wrong, text) in enumerate(results, 1):
            if wrong:
                failed[name] = text
                write_json(record, failed)
            else:
                made.append(name)
            left = tqdm.format_interval((time.monotonic() - start) / number * (len(todo) - number))
            level = logging.ERROR if wrong else logging.INFO
            logger.log(level, "%d/%d %s: %s (%s left)", number, len(todo), name, text, left)
    kept = len(mine) - len(made) - len(failed)
    logger.info("%s: %d made, %d were there, %d failed", out, len(made), kept, len(failed))
    if failed:
        logger.error("reasons: %s/failed-*.json; the same command tries these again", out)
    else:
        record.unlink(missing_ok=True)
    return {"out": out.as_posix(), "made": made, "kept": kept, "failed": failed}
