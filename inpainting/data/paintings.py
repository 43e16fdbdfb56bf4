"""Files of the painting data and their reader: images, region masks, entities.

    data_dir/images/{train,val,test,unannotated}/STEM.jpg
             masks/STEM/mask_0.png        L, 0/255, of the image's size
             entities/STEM/mask_0.png     the object alone (several boxes: a collage)
             entities/STEM/annotations.json   {"mask_0": {"concept", "noun_chunk_root", "caption"}}
             entities/STEM/llava.json         {"mask_0": raw caption}

Every error is a ValueError that names the file.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from datasets.sources.readers import IMAGES, images_in, subfolders
from inpainting.prompts import ANSWER_MARK, COLORS
from ldm.files import named_failure, nfc, read_json, same_file, write_atomic
from ldm.journal import Journal, run_step, stamp_path
from ldm.settings.config import CheckedSettings, setting

SPLITS = ("train", "val", "test")
UNANNOTATED = "unannotated"
ANNOTATIONS = "annotations.json"
RAW_CAPTIONS = "llava.json"
MANIFEST = "masks.json"  # beside the results of a run
RULES = ("max_concepts", "shuffle_concepts", "masked_area_threshold", "resolution")  # as in the manifest
MAKE_MASKS, MAKE_ENTITIES = "make-masks-dataset", "make-entities-dataset"  # steps that others follow
MAKE_CAPTIONS = "python -m inpainting.data.ops llava-annotations-to-entity-annotations"
GET = "`python -m inpainting.data.downloader fetch-annotations` gets it, `--from FILE` from a copy"
DOWNLOAD = "python -m inpainting.data.downloader download-and-save-images-wikiart-v2 -o"


@dataclass(frozen=True)
class RegionOptions(CheckedSettings):
    """Which regions are masked (published options of both datasets)."""

    data_dir: Path = setting(Path("data/mm_inp_dataset"), help="folder made by inpainting.data.ops")
    max_concepts: int | None = setting(5, low=1, high=len(COLORS), help="most regions of an image; none: all")
    shuffle_concepts: bool = setting(True, help="regions in random order, else the largest first")
    masked_area_threshold: float | None = setting(
        0.65, low=0, high=1, help="largest masked fraction; the first region is always kept"
    )


@dataclass(frozen=True)
class PaintingOptions(RegionOptions):
    resolution: int = setting(512, low=16, help="side of the square crop in pixels")
    drop_caption_probability: float = setting(
        0.1, low=0, high=1, help="fraction of training images with one region that have no prompt"
    )

    @property
    def rules(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in RULES}


@dataclass(frozen=True)
class Entity:
    name: str  # of its mask: mask_0, mask_1, ...
    concept: str
    noun_chunk_root: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Painting:
    stem: str
    image: Path
    masks: Path  # folder of its region masks
    entities: Path  # folder of its entities

    @property
    def annotations(self) -> Path:
        return self.entities / ANNOTATIONS

    def read_captions(self) -> dict[str, str]:
        """{region: caption} of the regions that have one."""
        entities = read_entities(self.annotations)
        captions = {entry.name: entry.caption for entry in entities if entry.caption is not None}
        if not captions:
            raise ValueError(f"{self.annotations} has no captions; `{MAKE_CAPTIONS}` adds them")
        return captions


@dataclass(frozen=True)
class MaskManifest:
    """Which regions were masked in each image of a run; written beside its results."""

    split: str
    seed: int
    rules: Mapping[str, Any]  # of `PaintingOptions`
    items: Mapping[str, tuple[str, ...]]  # image's name -> names of its masks, in the order of its prompts
    left_out: Mapping[str, str] = field(default_factory=dict)  # image's name -> reason

    @classmethod
    def read(cls, path: Path) -> "MaskManifest":
        document = read_json(path)
        with named_failure(f"{path} is no record of chosen masks", KeyError, TypeError, AttributeError):
            items = {stem: tuple(names) for stem, names in document["items"].items()}
            return cls(document["split"], document["seed"], document["rules"], items, document["left_out"])


def read_entities(path: Path) -> list[Entity]:
    """The entries of an annotations.json, checked, in their order."""
    entities = []
    for name, entry in read_json(path).items():
        if not isinstance(entry, dict) or not isinstance(entry.get("concept"), str):
            raise ValueError(f"{path}: {name} has no text `concept`")
        texts = {key: entry.get(key) for key in ("concept", "noun_chunk_root", "caption")}
        wrong = [key for key, value in texts.items() if value is not None and not isinstance(value, str)]
        if wrong:
            raise ValueError(f"{path}: {name}: {wrong[0]} is not a text")
        entities.append(Entity(name, **texts))  # type: ignore[arg-type]
    if not entities:
        raise ValueError(f"{path} has no entries")
    return entities


def change_annotations(
    entities_dir: Path,
    step: str,
    inputs: Mapping[str, Any],
    change: Callable[[str, dict[str, Any]], str | None],
    redo: bool = True,
    adds: str = "concept",
) -> Journal:
    """Change every annotations.json in place: change(stem, document), which may return what is missing.

    A damaged file is renamed to .wrong and left out. adds: the field that every entry has afterwards
    """

    def work(stem: str) -> None:
        path = entities_dir / stem / ANNOTATIONS
        try:
            read_entities(path)
            document = read_json(path)
        except ValueError as error:
            if not path.is_file():
                raise
            raise ValueError(f"{error}; it is kept as {rename_damaged(path).name}") from None
        missing = change(stem, document)
        write_object(path, document)
        if missing:
            raise ValueError(missing)

    def is_whole(stem: str, record: Mapping[str, Any]) -> bool:
        path = entities_dir / stem / ANNOTATIONS
        return path.is_file() and all(adds in entry for entry in read_intact(path).values())

    items = entity_folders(entities_dir)
    return run_step(stamp_path(entities_dir, step), inputs, items, work, redo, is_whole=is_whole)


def read_intact(path: Path) -> dict[str, Any]:
    """An object that is there and intact, or {}; a damaged file is renamed to .wrong."""
    try:
        return read_json(path) if path.is_file() else {}
    except ValueError:
        rename_damaged(path)
        return {}


def write_object(path: Path, document: Mapping[str, Any]) -> None:
    """A JSON file in the published form, written as a whole."""
    write_atomic(path, encode_object(document))


def encode_object(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=4).encode()


def source_file(path: Path) -> Path:
    """One of the files that the authors provide; ValueError names the command that gets a missing one."""
    if not same_file(path).is_file():
        raise ValueError(f"{path} does not exist; {GET}")
    return path


def painting_description(annotations: Mapping[str, Any], file_name: str) -> str:
    """The sentence about the whole image, without the question."""
    entry = annotations.get(file_name)
    text = entry.get("description") if isinstance(entry, Mapping) else None
    if not isinstance(text, str) or ANSWER_MARK not in text:
        raise ValueError(f"{file_name}: the annotations hold no description with {ANSWER_MARK!r}")
    return text.split(ANSWER_MARK)[1].strip()


def image_map(image_dir: Path) -> dict[str, Path]:
    """File name -> image, of a folder of images before or after the split."""
    if not image_dir.is_dir():
        raise ValueError(f"there is no folder {image_dir}; `{DOWNLOAD} {image_dir}` fetches the images")
    folders = [*subfolders(image_dir), image_dir]
    return {nfc(path.name): path for folder in folders for path in images_in(folder)}


def checked_name(name: str) -> str:
    """A file name from an annotation file; ValueError if it leaves its folder or is not an image's."""
    plain = PurePath(name).name == name and "\\" not in name and not name.startswith(".")
    if not plain or PurePath(name).suffix.lower() not in IMAGES:
        raise ValueError(f"{name!r} is not the name of an image file")
    return name


def entity_folders(entities_dir: Path) -> list[str]:
    """The stems in a folder of entities, sorted."""
    stems = [path.name for path in subfolders(entities_dir)] if entities_dir.is_dir() else []
    if not stems:
        command = f"python -m inpainting.data.ops {MAKE_ENTITIES}"
        raise ValueError(f"{entities_dir} holds no folder of an image; `{command}` makes them")
    return stems


def rename_damaged(path: Path) -> Path:
    """Rename a damaged file to NAME.wrong, so that nothing reads it again; returns the new name."""
    return path.replace(path.with_name(path.name + ".wrong"))
