"""The layers of a job, one after another: each is done by the single command's own function.

    result = compose_layers("scene.yaml")
    result.save(Path("outputs/scene.png"))

Objects hide each other and the scene by depth, whatever their order in the list. A pixel outside the regions
that layers may change keeps its value, and that is measured. The same job gives the same bytes.
"""

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from compose.batch import check_files, named_folders
from compose.job import JOB_KEYS, EditSettings, EraseSettings, JobLayer, JobSettings, LayeredJob, read_job
from compose.layers import LayerFolder, save_job_layers
from compose.models import JobNetworks
from compose.scene import JobResult, JobScene, Patch
from compose.settings import OFF, ComposeSettings
from compose.sources import depth_of
from compose.verbs import apply_layer, source_of
from datasets.relations import Place
from inpainting.paint import PaintSettings
from inpainting.painting import painter_folder
from ldm.cluster import spread
from ldm.device import pick_device
from ldm.files import file_sha256, named_failure, work_digest
from ldm.images import read_image
from ldm.result import StageTimer, library_versions, log_result, measure_drift, output_paths, read_recipe
from ldm.settings.config import to_plain
from ldm.temporary import FOLDER, IN_MEMORY
from llava_bifrost.propose import read_anchors

logger = logging.getLogger(__name__)


def compose_layers(
    source: LayeredJob | Mapping[str, Any] | Path | str,
    networks: JobNetworks | None = None,
    folder: LayerFolder | None = None,
) -> JobResult:
    """Do the layers of a job one after another. Reads files; cheap checks run first.

    source: a job file or its contents, in which images may be arrays
    folder: a `compose.layers.LayerFolder`, which keeps patches and hands out those of an earlier run
    ValueError names the layer and the reason.
    """
    job = source if isinstance(source, LayeredJob) else read_job(source)
    networks, timer = networks or JobNetworks(), StageTimer()
    digests = [layer_digest(layer, job, networks) for layer in job.layers]
    base, background, models = job.base, read_image(job.base.background), networks.of(job.base)
    with timer.stage("depth"):
        depth_01 = depth_of(base.background_depth, background.size)
        if depth_01 is None:
            depth_01 = models.depth.estimate(background)
    anchors: dict[str, Place] = {}
    for part in (part for layer in job.layers for part in layer.parts):
        if (file := getattr(part, "anchors", None)) is not None:
            anchors = {**read_anchors(file, depth_01), **anchors}
    scene, patches = JobScene.of(background, depth_01, anchors), list[Patch]()
    entries = list[dict[str, Any]]()
    for layer, digest in zip(job.layers, digests, strict=True):
        new = None if folder is None else folder.take(digest, scene)
        own, under = source_of(layer, scene), scene
        with timer.stage(layer.name), named_failure(layer.where, ValueError):
            new = new or apply_layer(layer, scene, networks)
        for patch in new:
            logger.info("%s: %s at %s", layer.where, patch.report["kind"], patch.report["box"])
            scene = scene.with_patch(patch, own)
        if folder is not None:
            folder.put(digest, under, layer.name, new)
        patches += new
        entries += [{"name": layer.name, **patch.report} for patch in new]
    if folder is not None:
        folder.save()
    drift = measure_drift(background.own_u8, scene.image.own_u8, scene.owner > 0)
    report = {"layers": entries, "drift": drift, "seconds": timer.report()}
    report["device"] = str(models.device)
    names = [entry["name"] for entry in entries]
    return JobResult(job, scene, patches, names, recipe_of_job(job, digests), report)


def run_job(settings: JobSettings | EditSettings) -> dict[str, Any]:
    """Lay layers over a background: objects, painted texts, and what is erased, moved or replaced.

    Writes an image that carries its recipe, and a JSON report beside it.
    """
    job, out = read_job(settings.job), settings.out
    output_paths(out, 1, job.base.input_files.values())
    if isinstance(settings, JobSettings) and settings.ray:
        (report,) = spread(lambda: partial(map, run_job), [replace(settings, ray="")], settings.ray)
        return report
    resume = isinstance(settings, JobSettings) and settings.resume
    folder = LayerFolder(out, resume, settings.overwrite) if settings.layers or resume else None
    result = compose_layers(job, folder=folder)
    result.save(out, settings.overwrite)
    if settings.layers:
        logger.info("layers:  %s", save_job_layers(result, out, settings.overwrite))
    return log_result([out], result.report, result.summary, None)


def recipe_of_job(job: LayeredJob, digests: list[str]) -> dict[str, Any]:
    """The job, hashes of background and layers (with their inputs and networks), machine, versions."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in sorted(value.items())}
        if isinstance(value, list):
            return [plain(item) for item in value]
        held = isinstance(value, str) and Path(value).parent.name.startswith(FOLDER)
        return f"{IN_MEMORY}{Path(value).name}" if held else value

    grounds = {name: getattr(job.base, name) for name in ("background", "background_depth")}
    inputs = {name: file_sha256(path) for name, path in grounds.items() if path is not None}
    listed = zip(job.layers, digests, strict=True)
    return {
        "command": "job", "job": plain(to_plain(job.plain)), "inputs": inputs,
        "layers": [{"name": layer.name, "digest": digest} for layer, digest in listed],
        "machine": {"device": pick_device(job.base.device).type}, "versions": library_versions()}  # fmt: skip


def replay_job(image: Path, out: Path, moved: Mapping[str, Path], overwrite: bool) -> dict[str, Any]:
    """Do the job again that made an image, by the recipe inside it; ValueError where something changed.

    moved: where the background, or its depth, lies now
    """
    recipe = read_recipe(image)
    if moved.keys() - {"background", "background_depth"}:
        raise ValueError(f"{image}: of a job only --background and --background-depth are found elsewhere")
    if IN_MEMORY in str(recipe["job"]):
        why = "the job used images in memory, so only the code that made them repeats it"
        raise ValueError(f"{image}: {why}")
    job = read_job({"shadow": OFF, **recipe["job"], **moved})  # off was the default of the first jobs
    now = recipe_of_job(job, [layer_digest(layer, job, JobNetworks()) for layer in job.layers])
    if now["inputs"] != recipe["inputs"]:
        raise ValueError(f"{image}: the background or its depth map has changed since the image was made")
    for before, after in zip(recipe["layers"], now["layers"], strict=True):
        if before != after:
            what = "its settings, inputs, networks or the version differ"
            raise ValueError(f"{image}: layer {after['name']} is not what the image was made with: {what}")
    if recipe["versions"] != now["versions"] or recipe["machine"] != now["machine"]:
        logger.warning("versions or machine differ from the recipe's; pixels may differ slightly")
    output_paths(out, 1, job.base.input_files.values())
    repeated = compose_layers(job)
    repeated.save(out, overwrite)
    return log_result([out], repeated.report, repeated.summary, None)


def layer_digest(layer: JobLayer, job: LayeredJob, networks: JobNetworks) -> str:
    """Hash of all that decides a layer, but what lies under it. ValueError: a file or folder is missing."""
    about = [f"{layer.kind.title()}Layer", layer.name, layer.called or None, layer.box, layer.depth]
    plain, paths = list[Any](about), list[Any]([layer.mask])
    with named_failure(layer.where, ValueError):
        for part in layer.parts:
            names = [entry.name for entry in fields(part) if entry.name not in JOB_KEYS]
            values = {name: getattr(part, name) for name in names}
            paths += [value for value in values.values() if isinstance(value, Path)]
            paths += values.pop("masks", ())
            plain.append({name: to_plain(v) for name, v in values.items() if not isinstance(v, Path)})
            if isinstance(part, ComposeSettings):
                check_files(part, set())
                paths += named_folders(part).values()
            if isinstance(part, PaintSettings):
                paths.append(painter_folder(part))
            if isinstance(part, EraseSettings):
                plain.append(networks.eraser(part.eraser, part.device).identity)
        ground = (job.base.background, job.base.background_depth)
        paths = [path for path in paths if path is not None and path not in ground]
        files, folders = ([path for path in paths if path.is_dir() == kind] for kind in (False, True))
        return work_digest(plain, files, folders)
