"""The recipe of a composite: all that decides its pixels, and whether that is still the same."""

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cldm.pretrained import Sampling
from compose.settings import ComposeSettings, Models
from datasets.inputs import PairOptions
from ldm.files import file_sha256, hash_folder
from ldm.result import library_versions, read_recipe
from ldm.settings.config import Layer, flag_name, merge_layers, to_plain

logger = logging.getLogger(__name__)

MAPPINGS = ("settings", "sampling", "pair", "weights", "inputs", "machine", "versions")
PARTS = (*MAPPINGS, "sample", "seed")


def make_recipe(
    settings: ComposeSettings,
    models: Models,
    sampling: Sampling,
    pair: PairOptions,
    placement: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Settings with the chosen folders, resolved sampler, hashes of inputs and weights, machine, versions.

    settings:  with a box and, where a sentence was given, without it
    placement: what a locator made of the sentence; kept for reading, a replay does not run it again
    """
    folders: dict[str, Any] = {"model": models.folder}
    if settings.background_depth is None:
        folders["depth_model"] = models.depth_folder
    if settings.object_mask is None and settings.sam is not None:
        folders["sam"] = settings.sam
    chosen = replace(settings, **folders)
    return {
        **({} if placement is None else {"placement": placement}),
        "command": "image",
        "settings": {entry.name: to_plain(getattr(chosen, entry.name)) for entry in fields(ComposeSettings)},
        "sampling": to_plain(sampling),
        "pair": to_plain(pair),
        "weights": {  # a hub name has none
            name: {**hash_folder(folder), **hash_folder(folder, "config.json")} if folder.is_dir() else {}
            for name, folder in folders.items()
        },
        "inputs": {name: file_sha256(path) for name, path in settings.input_files.items()},
        "machine": {"device": models.device.type, "dtype": str(models.dtype).removeprefix("torch.")},
        "versions": library_versions(),
    }


def settings_of_recipe(image: Path) -> tuple[ComposeSettings, dict[str, Any]]:
    """The settings that made an image, and its whole recipe."""
    recipe = read_recipe(image)
    if recipe.get("command") != "image":
        raise ValueError(f"{image}: its recipe was not written by the image verb")
    absent = [part for part in PARTS if part not in recipe]
    if absent:
        raise ValueError(f"{image}: its recipe lacks {', '.join(absent)}")
    broken = [part for part in MAPPINGS if not isinstance(recipe[part], dict)]
    if broken or recipe["sample"] not in range(recipe["settings"].get("num_samples", 1)):
        raise ValueError(f"{image}: its recipe is damaged: {', '.join(broken) or 'sample'}")
    return merge_layers(ComposeSettings, [Layer(recipe["settings"], f"{image}: recipe: ")]), recipe


def check_unchanged(image: Path, recipe: dict[str, Any], now: dict[str, Any]) -> None:
    """Inputs, weights and model configuration must be the recipe's; another machine only gets a warning.

    now: the recipe that `make_recipe` gives for the same settings today
    """
    for name, digest in recipe["inputs"].items():
        if now["inputs"].get(name) != digest:
            path = now["settings"][name]
            raise ValueError(f"{image}: {path} ({flag_name(name)}) has changed since the image was made")
    for name, hashes in recipe["weights"].items():
        today = now["weights"].get(name, {})
        changed = sorted(file for file in {*hashes, *today} if hashes.get(file) != today.get(file))
        if changed:
            folder = now["settings"][name]
            raise ValueError(f"{image}: {folder} is not what the image was made with: {changed[0]} differs")
    for part in ("sampling", "pair"):
        changed = sorted(key for key in now[part] if recipe[part].get(key) != now[part][key])
        if changed:
            folder = now["settings"]["model"]
            raise ValueError(f"{image}: the configuration in {folder} has changed since: {part}.{changed[0]}")
    for part in ("machine", "versions"):
        if recipe[part] != now[part]:
            logger.warning("%s differ from the recipe's; pixels may differ slightly", part)
