"""The DreamBooth test set as jobs: every object in every prepared background, in both published layouts.

cut-outs  OBJECTS/CONCEPT/*.png with transparency, BACKGROUNDS/NAME_GT.png, NAME_mask.png (white = to fill)
masks     OBJECTS/CONCEPT.jpg, OBJECT_MASKS/CONCEPT.jpg, BACKGROUNDS/NAME_N.jpg, NAME_N_mask.jpg (black)

What the background shows inside its mask makes room for the object, so the mode is `replace` by default.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compose.batch import Job, check_files
from compose.settings import ComposeSettings
from datasets.sources.readers import images_in, subfolders
from ldm.seeds import seed_of
from ldm.settings.config import Layer, merge_layers, yaml_layers

logger = logging.getLogger(__name__)

MASK = "_mask"


@dataclass(frozen=True)
class Background:
    """A prepared image. number: how its results are called."""

    number: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class TestSet:
    """What is composed with what."""

    objects: dict[str, tuple[Path, Path | None]]  # concept -> image and mask, None: its alpha channel
    backgrounds: list[Background]
    black: bool  # the masks of the backgrounds are black where the object goes


def find_test_set(objects: Path, backgrounds: Path, object_masks: Path | None = None) -> TestSet:
    """Read either layout; the one with `object_masks` is the second. ValueError names what is missing."""
    for name, folder in (("objects", objects), ("backgrounds", backgrounds), ("object_masks", object_masks)):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"--{name.replace('_', '-')} {folder} is not a folder")
    found: dict[str, tuple[Path, Path | None]] = {}
    if object_masks is None:
        for concept in subfolders(objects):
            cutouts = images_in(concept, (".png",))
            if cutouts:
                found[concept.name] = (cutouts[0], None)
        wanted = "sub-folders with .png cut-outs (images with masks need --object-masks)"
    else:
        by_stem = {mask.stem: mask for mask in images_in(object_masks)}
        images = {image.stem: image for image in images_in(objects)}
        absent = sorted(images.keys() - by_stem.keys())
        if absent:
            raise ValueError(f"--object-masks {object_masks}: no mask for {', '.join(absent[:5])}")
        found = {stem: (image, by_stem[stem]) for stem, image in images.items()}
        wanted = "images"
    if not found:
        raise ValueError(f"--objects {objects}: there are no {wanted}")
    ending = "_GT" if object_masks is None else ""
    return TestSet(found, _backgrounds(backgrounds, ending), object_masks is not None)


def _backgrounds(folder: Path, ending: str) -> list[Background]:
    """Images NAME<ending> that have a NAME_mask beside them."""
    by_stem = {image.stem: image for image in images_in(folder)}
    names = sorted(stem.removesuffix(MASK) for stem in by_stem if stem.endswith(MASK))
    if not names:
        raise ValueError(f"--backgrounds {folder}: there is no NAME{MASK} file")
    absent = [name for name in names if f"{name}{ending}" not in by_stem]
    if absent:
        raise ValueError(f"--backgrounds {folder}: no image {absent[0]}{ending} for {absent[0]}{MASK}")
    numbers = [re.sub(r"^.*_(?=\d+$)", "", name) for name in names]
    unique = max(Counter(numbers).values()) == 1
    return [
        Background(number if unique else name, by_stem[f"{name}{ending}"], by_stem[f"{name}{MASK}"])
        for name, number in zip(names, numbers, strict=True)
    ]


def pairs(found: TestSet, given: dict[str, Any], defaults: Path | None, seed: int) -> list[Job]:
    """A job CONCEPT/<n> for every object and background, each with a seed of its own.

    given: settings for all of them, over those of the YAML file `defaults`
    """
    below = [] if defaults is None else yaml_layers(defaults)
    jobs = []
    for concept, (image, mask) in sorted(found.objects.items()):
        for background in found.backgrounds:
            name = f"{concept}/{background.number}"
            files = {
                "object": image.as_posix(),
                "object_mask": None if mask is None else mask.as_posix(),
                "background": background.image.as_posix(),
                "target_mask": background.mask.as_posix(),
                "invert_target_mask": found.black,
                "seed": seed_of(seed, name) % 2**32,
            }
            jobs.append(Job(name, merge_layers(ComposeSettings, [*below, Layer({**given, **files})])))
    check_files(jobs[0].settings)
    return jobs
