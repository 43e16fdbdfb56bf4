"""The DreamBooth test set as jobs: every object in every prepared background, in both published layouts.

cut-outs  OBJECTS/CONCEPT/*.png with transparency, BACKGROUNDS/NAME_GT.png, NAME_mask.png (white = to fill)
masks     OBJECTS/CONCEPT.jpg, OBJECT_MASKS/CONCEPT.jpg, BACKGROUNDS/NAME_N.jpg, NAME_N_mask.jpg (black)

What the background shows inside its mask makes room for the object, so the mode is `replace` by default.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from compose.batch import Job, check_files
from compose.settings import ComposeSettings
from datasets.sources.readers import images_in, subfolders
from ldm.seeds import seed_of
from ldm.settings.config import (
    CheckedSettings,
    Layer,
    flag_name,
    merge_layers,
    setting,
    to_plain,
    yaml_layers,
)
from ldm.shards import shard_of

DEFAULTS = Path("configs/inference.yaml")
MASK = "_mask"


@dataclass(frozen=True, kw_only=True)
class DreamBoothSettings(CheckedSettings):
    """The DreamBooth test set: every object in every background."""

    objects: Path = setting(help="cut-outs CONCEPT/*.png, or images CONCEPT.jpg with --object-masks")
    backgrounds: Path = setting(help="NAME_GT.png with NAME_mask.png, or NAME_N.jpg with NAME_N_mask.jpg")
    object_masks: Path | None = setting(
        None, help="masks CONCEPT.jpg of the objects; then masks of backgrounds are black where to paint"
    )
    out: Path = setting(Path("outputs/dreambooth"), help="folder of the results, CONCEPT/N.png each")
    mode: str = setting(
        "replace", choices=("replace", "place", "inpaint", "id-transfer"), help="as in the image verb"
    )
    model: Path | None = setting(None, help="compositor folder, as in the image verb")
    depth_model: Path | None = setting(None, help="depth network folder, as in the image verb")
    seed: int = setting(0, low=0, help="every pair has a seed of its own, made of this and its name")
    shard: str = setting("0/1", help="i/n: this machine makes every n-th composite from the i-th")
    defaults: Path | None = setting(DEFAULTS, help="YAML file of all other settings; none: the built-in ones")

    def __post_init__(self) -> None:
        super().__post_init__()
        shard_of(self.shard)


def find_objects(folder: Path, masks: Path | None) -> dict[str, tuple[Path, Path | None]]:
    """Concept -> image and mask; without a folder of masks the alpha channel of the first cut-out counts."""
    if masks is None:
        cutouts = {concept.name: images_in(concept, (".png",)) for concept in subfolders(folder)}
        objects: dict[str, tuple[Path, Path | None]]
        objects = {name: (images[0], None) for name, images in cutouts.items() if images}
        expected = "sub-folders with .png cut-outs (images with masks need --object-masks)"
    else:
        by_stem = {mask.stem: mask for mask in images_in(masks)}
        images = {image.stem: image for image in images_in(folder)}
        if absent := sorted(images.keys() - by_stem.keys()):
            raise ValueError(f"--object-masks {masks}: no mask for {', '.join(absent[:5])}")
        objects = {stem: (image, by_stem[stem]) for stem, image in images.items()}
        expected = "images"
    if not objects:
        raise ValueError(f"--objects {folder}: there are no {expected}")
    return objects


def dreambooth_jobs(settings: DreamBoothSettings) -> list[Job]:
    """A job CONCEPT/<n> for every object and background, each with a seed of its own.

    Reads either layout; the one with `object_masks` is the second. ValueError names what is missing.
    """
    for name in ("objects", "backgrounds", "object_masks"):
        folder = getattr(settings, name)
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{flag_name(name)} {folder} is not a folder")
    masked = settings.object_masks is not None
    objects = find_objects(settings.objects, settings.object_masks)
    images, ending = {image.stem: image for image in images_in(settings.backgrounds)}, "" if masked else "_GT"
    stems = sorted(stem.removesuffix(MASK) for stem in images if stem.endswith(MASK))
    if not stems:
        raise ValueError(f"--backgrounds {settings.backgrounds}: there is no NAME{MASK} file")
    if absent := [stem for stem in stems if f"{stem}{ending}" not in images]:
        wanted = f"no image {absent[0]}{ending} for {absent[0]}{MASK}"
        raise ValueError(f"--backgrounds {settings.backgrounds}: {wanted}")
    numbers = [re.sub(r"^.*_(?=\d+$)", "", stem) for stem in stems]
    if max(Counter(numbers).values()) > 1:
        numbers = stems
    given = to_plain({name: getattr(settings, name) for name in ("mode", "model", "depth_model")})
    below = [] if settings.defaults is None else yaml_layers(settings.defaults)
    jobs = []
    for concept, (image, mask) in sorted(objects.items()):
        for stem, number in zip(stems, numbers, strict=True):
            name = f"{concept}/{number}"
            files = {
                "object": image.as_posix(),
                "object_mask": None if mask is None else mask.as_posix(),
                "background": images[f"{stem}{ending}"].as_posix(),
                "target_mask": images[f"{stem}{MASK}"].as_posix(),
                "invert_target_mask": masked,
                "seed": seed_of(settings.seed, name) % 2**32,
            }
            jobs.append(Job(name, merge_layers(ComposeSettings, [*below, Layer({**given, **files})])))
    check_files(jobs[0].settings)
    return jobs
