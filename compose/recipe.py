"""All that decides the pixels of a composite: written into its PNG, read again, compared with today."""

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cldm.config import SPEEDS, Sampling
from compose.models import Models
from compose.painters import folder_painter
from compose.settings import AUTO, BIFROST, CAST, OPENVINO, SHADOW_MODEL, ComposeSettings
from compose.sources import uses_depth_network
from datasets.inputs import PairOptions
from ldm.experts.depth import weights_of_depth
from ldm.files import file_sha256, hash_folder, located, same_file
from ldm.registry.models import cutout_network
from ldm.result import library_versions, read_recipe
from ldm.settings.config import Layer, flag_name, merge_layers, to_plain
from ldm.settings.schema import flat
from ldm.temporary import FOLDER, IN_MEMORY

logger = logging.getLogger(__name__)

RENAMED = {  # file of 0.1.0 -> the same weights under the names of the hub
    "af95ec8f819cb7dfb713f0f3184e982d97adb6376668f0af1e9ad0e9a8915d52":
    "7c198e1974c621b22902cde3f78ae22730b539dd79b376cd1163463387e74ea8"}  # fmt: skip
ADDED = {  # keys that 0.1.0 did not have -> what it did
    "cutout": "grabcut", "edge": "hard", "painter": "bifrost", "erase": "nothing", "speed": "exact",
    "shadow": "off",
}  # fmt: skip
MAPPINGS = ("settings", "sampling", "pair", "weights", "inputs", "machine", "versions")


def sampling_of(settings: ComposeSettings, models: Models) -> tuple[Sampling, PairOptions]:
    """Sampler settings and pre-processing: the model's or the published system's, the user's on top."""
    config = models.config
    if settings.compat:
        config = config.with_compat(settings.compat, settings.seed)
    names = {field.name for field in fields(Sampling)} & {field.name for field in fields(settings)}
    given = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    speed = speed_of(settings, models)
    return replace(config.sampling, **{**(SPEEDS[speed] if speed else {}), **given}), config.pair


def speed_of(settings: ComposeSettings, models: Models) -> str | None:
    """The speed asked for; else balanced, or none where --compat or the model's configuration decides."""
    return settings.speed or (None if settings.compat else models.config.sampling.usual_speed)


def make_recipe(
    settings: ComposeSettings, models: Models, placement: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Settings with the chosen folders, resolved sampler, hashes of inputs and weights, machine, versions.

    settings:  with a box and, where a sentence was given, without it
    placement: what a locator made of the sentence; kept for reading, a replay does not run it again
    """
    sampling, pair = sampling_of(settings, models)
    folders: dict[str, Any] = {"model": models.folder}
    if uses_depth_network(settings):
        folders["depth_model"] = models.depth_folder
    network, cuts = None, settings.object_mask is None or settings.erases == "object"
    if cuts and settings.sam is not None:
        folders["sam"] = settings.sam
    if settings.vae is not None:
        folders["vae"] = settings.vae
    if cuts and settings.sam is None:
        network = cutout_network(settings.cutout)
        settings = replace(settings, cutout="u2netp" if network else "grabcut")
    chosen = replace(settings, **folders, speed=speed_of(settings, models))
    weights = {  # a hub name has none
        name: {**hash_folder(folder), **hash_folder(folder, "config.json")} if folder.is_dir() else {}
        for name, folder in folders.items()
    }
    if "depth_model" in weights:
        weights["depth_model"] |= weights_of_depth(models.depth_folder)
    if network is not None:
        weights["cutout"] = {network.name: file_sha256(network)}
    if (painter := folder_painter(settings, models)) is not None:
        weights["painter"] = painter.identity
    if settings.painter not in (AUTO, BIFROST) and settings.plain_mode != "place":
        weights["eraser"] = {"identity": models.eraser(settings.eraser).identity}
    if settings.shadow_there == CAST:
        weights["shadow"] = hash_folder(located(SHADOW_MODEL))
    plain = {entry.name: to_plain(getattr(chosen, entry.name)) for entry in fields(ComposeSettings)}
    for name, path in settings.input_files.items():
        if path.parent.name.startswith(FOLDER):  # a replay needs a file with the same pixels
            plain[name] = f"{IN_MEMORY}{path.name}"
    return {
        **({} if placement is None else {"placement": placement}),
        "command": "image", "settings": plain, "sampling": to_plain(sampling), "pair": to_plain(pair),
        "weights": weights,
        "inputs": {name: file_sha256(path) for name, path in settings.input_files.items()},
        "machine": {"device": models.device.type, "dtype": str(models.dtype).removeprefix("torch.")},
        "versions": library_versions(*([OPENVINO] if settings.engine == OPENVINO else []))}  # fmt: skip


def settings_of_recipe(image: Path) -> tuple[ComposeSettings, dict[str, Any]]:
    """The settings that made an image, also where its `--speed` means something else now, and its recipe."""
    recipe = read_recipe(image)
    if recipe.get("command") != "image":
        raise ValueError(f"{image}: its recipe was not written by the image verb")
    if absent := [part for part in (*MAPPINGS, "sample", "seed") if part not in recipe]:
        raise ValueError(f"{image}: its recipe lacks {', '.join(absent)}")
    broken = [part for part in MAPPINGS if not isinstance(recipe[part], dict)]
    given = recipe["settings"] if not broken else {}
    if broken or recipe["sample"] not in range(given.get("best") or given.get("num_samples", 1)):
        raise ValueError(f"{image}: its recipe is damaged: {', '.join(broken) or 'sample'}")
    given, sampling = {**ADDED, **given}, {**to_plain(Sampling()), **recipe["sampling"]}  # later keys too
    today = SPEEDS.get(str(given["speed"]), {}).items()
    given |= {name: sampling[name] for name, value in today if sampling[name] != value}
    return merge_layers(ComposeSettings, [Layer(given, f"{image}: recipe: ")]), recipe


def check_unchanged(image: Path, recipe: dict[str, Any], settings: ComposeSettings, models: Models) -> None:
    """Inputs, weights and configuration must be those of the recipe; another machine only gets a warning."""
    for name, path in settings.input_files.items():
        if not same_file(path).is_file():
            held = path.as_posix().startswith(IN_MEMORY)
            what = "an image in memory was used" if held else f"{path} is not there"
            raise ValueError(f"{image}: {what}; {flag_name(name)} FILE names a file with the same contents")
    now = make_recipe(settings, models)
    for name, digest in recipe["inputs"].items():
        if now["inputs"].get(name) != digest:
            path = now["settings"][name]
            raise ValueError(f"{image}: {path} ({flag_name(name)}) has changed since the image was made")
    for name, hashes in recipe["weights"].items():
        today = now["weights"].get(name, {})
        hashes = {file: RENAMED.get(digest, digest) for file, digest in hashes.items()}
        if changed := sorted(file for file in {*hashes, *today} if hashes.get(file) != today.get(file)):
            folder = now["settings"][name]
            raise ValueError(f"{image}: {folder} is not what the image was made with: {changed[0]} differs")
    for part, new in (("sampling", to_plain(Sampling())), ("pair", to_plain(PairOptions()))):
        after, before = flat(now[part]), {**flat(new), **flat(recipe[part])}  # which may lack later settings
        if changed := sorted(key for key in after if before.get(key) != after[key]):
            folder, compat = now["settings"]["model"], settings.compat
            what = f"--compat {compat}" if compat else f"the configuration in {folder}"
            raise ValueError(f"{image}: {what} has changed since: {part}.{changed[0]}")
    for part in ("machine", "versions"):
        if recipe[part] != now[part]:
            logger.warning("%s differ from the recipe's; pixels may differ slightly", part)
