"""What jobs do: a composite, or a painting of masks. Their networks are loaded once per device and kept."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compose import ComposeSettings, compose
from compose.layers import save_layers
from compose.models import JobNetworks
from compose.placement import Placement, locate
from compose.recipe import check_unchanged
from compose.serve.jobs import Job
from compose.serve.uploads import public
from compose.sheet import save_sheet
from compose.sources import read_sources
from inpainting import painting
from inpainting.dream import DreamSettings
from inpainting.models.text_to_image.pipeline import pair_masks
from ldm.denoise import Step
from ldm.files import file_sha256
from ldm.images import encode_png, read_image, read_mask
from ldm.latents import LatentSpace
from ldm.result import Samples
from ldm.settings.config import to_plain
from ldm.settings.resources import resources_named


def preview(space: LatentSpace, step: Step) -> bytes:
    """PNG of the first sample of a step, noise included."""
    return encode_png(space.decode_u8(step.latents[:1]))


def places_of(settings: ComposeSettings, networks: JobNetworks, depth_01: np.ndarray | None) -> Placement:
    """Where the sentence says. depth_01: (h, w) of the background, None: its file's, or estimated."""
    own = replace(settings, device=networks.device)
    with resources_named(own):
        models = networks.of(own)
        sources = read_sources(own)
        depth_01 = sources.depth_01 if depth_01 is None else depth_01
        if depth_01 is None:
            depth_01 = models.depth.estimate(sources.background)
        return locate(own, models, sources, depth_01)


def place_work(settings: ComposeSettings, job: Job, networks: JobNetworks) -> dict[str, Any]:
    """The proposed places, best first, with the clauses of the sentence that hold there."""
    found = places_of(settings, networks, None)
    record = public(found.record(0))
    places = [{**one, "satisfied": found.satisfied(i)} for i, one in enumerate(record["candidates"])]
    return {"places": places, **{name: record[name] for name in ("instruction", "locator", "anchors")}}


def compose_work(
    settings: ComposeSettings,
    job: Job,
    networks: JobNetworks,
    *,
    page: bool = False,
    layers: bool = False,
    placement: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Compose as the settings say.

    layers: each image gets its own beside it. page: so it does; a contact sheet and the background too
    placement: record of the sentence that gave the place before
    recipe: inputs and networks must be those of this one
    """
    own = replace(settings, device=networks.device)
    with resources_named(own):
        models = networks.of(own)
        if recipe is not None:
            check_unchanged(Path("result"), recipe, own, models)
        monitor = job.monitor(lambda step: preview(models.decoder(own.preview_vae), step))
        steps = {"on_step": monitor.on_step, "cancelled": monitor.cancelled, "progress": False}
        result = compose(own, models, **steps).with_placement(placement)  # type: ignore[arg-type]
    made = save_images(job, result, {})
    if page or layers:
        for index, image in enumerate(made["images"]):
            image["layers"] = save_layers(result, index, job.folder / image["file"], True).name
        made["files"] += [image["layers"] for image in made["images"]]
    if page:
        sheet = save_sheet(result, job.folder / "0.png", overwrite=True)
        before = shutil.copyfile(own.background, job.folder / f"before{own.background.suffix}")
        made["files"] += [sheet.name, before.name]  # the upload stays as long as the results
    return made


def replay_work(
    settings: ComposeSettings, recipe: dict[str, Any], image: Path, job: Job, networks: JobNetworks
) -> dict[str, Any]:
    """The sample of a recipe again, and whether its pixels are those of the image that carries the recipe."""
    made = compose_work(settings, job, networks, placement=recipe.get("placement"), recipe=recipe)
    chosen = made["images"][recipe["sample"]]
    before, after = read_image(image), read_image(job.folder / chosen["file"])
    return {**made, "images": [chosen], "identical": np.array_equal(before.rgb_u8, after.rgb_u8)}


def paint_work(
    settings: DreamSettings, job: Job, networks: JobNetworks, *, paints: bool = True, page: bool = False
) -> dict[str, Any]:
    """Fill the masks of an image; prompts that are empty are written first.

    paints: or only that is done. page: it shows the image as it was, too
    """
    own, writer = replace(settings, device=networks.device), None
    with resources_named(own):
        image = read_image(own.image)
        masks = [read_mask(path, size=image.size) for path in own.masks]
        known = painting.completed(own.prompts, len(masks))
        if not all(known):
            names = ("prompter", "adapter", "device", "dtype", "precision")
            writer = networks.once(painting.load_writer, own, names)
        prompts = painting.write_missing(image.rgb_u8, masks, known, writer, own.decoding)
        if not paints:
            return {"prompts": prompts.rows()}
        pipe = networks.once(painting.load_painter, own, painting.PAINTER_KEYS)
        regions = pair_masks(masks, prompts.texts, own.negatives)
        monitor = job.monitor(partial(preview, pipe.latent_space))
        result = painting.paint_regions(own, image, regions, pipe, monitor)
    result = replace(result, report={**result.report, "prompts": prompts.rows()})
    more = {} if writer is None else {"command": "dream", "prompter": painting.facts_of_writer(writer)}
    hashes = {"image": file_sha256(own.image), "masks": [file_sha256(path) for path in own.masks]}
    made = save_images(job, result, {**more, "settings": to_plain(own), "inputs": hashes})
    if page:
        made["files"].append(shutil.copyfile(own.image, job.folder / f"before{own.image.suffix}").name)
    return made


def save_images(job: Job, result: Samples, more: Mapping[str, Any]) -> dict[str, Any]:
    """Leave 0.png, 1.png, ... with their recipes, and their reports beside them.

    more: what else belongs to the recipe
    returns: images (file, seed, drift of each), files, recipe and report, without paths of this machine
    """
    result = replace(result, recipe=public({**result.recipe, **more}), report=public(result.report))
    images = []
    for index, (seed, drift) in enumerate(zip(result.seeds, result.report["drift"], strict=True)):
        path = job.folder / f"{index}.png"
        result.save(index, path, overwrite=True)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        images.append({"file": path.name, "seed": seed, "drift": drift, "sha256": digest})
    files = [f"{index}.{kind}" for kind in ("png", "json") for index in range(len(images))]
    return {"images": images, "files": files, "recipe": result.recipe, "report": result.report}
