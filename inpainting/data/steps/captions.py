"""Raw captions of the objects: cleaned, merged from several files, and put into the entity folders."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inpainting.data.paintings import (
    ANNOTATIONS,
    MAKE_ENTITIES,
    RAW_CAPTIONS,
    entity_folders,
    read_object,
    read_source,
    set_aside,
    write_object,
)
from inpainting.data.steps.roots import sound_annotations
from inpainting.prompts import CAPTION_START
from ldm.files import file_sha256
from ldm.journal import Journal, run_items, stamp_hash, stamp_path

log = logging.getLogger(__name__)

FOLDER_STEP = "llava-annotations-to-folder"
ENTITIES_STEP = "llava-annotations-to-entity-annotations"
STEPS = "steps"  # a backup of the published command says under this key how far it came

# After the first of these that occurs, in this order, a caption says what is in its collage.
INTRODUCTIONS = (
    *("featuring", "depicting", "showing", "containing", "illustrating", "displaying", "exhibiting"),
    *("portraying", "revealing", "highlighting", "showcasing", "demonstrating", "introducing", "exposing"),
    *("unveiling", "including"),
)


def plain_text(text: str) -> str:
    """Lower case, one line, letters, digits, spaces and `.,!` only, without a final full stop."""
    kept = "".join(one for one in text.lower().replace("\n", " ") if one.isalnum() or one in " .,!")
    return kept.removesuffix(".")


def clean_caption(caption: str) -> str:
    """A raw sentence ("The image shows a collage of two dogs.") -> a prompt ("two dogs"), as published."""
    text = plain_text(caption).replace(f"{CAPTION_START.lower()} ", "")
    if "collage" not in text:
        return text
    word = next((one for one in INTRODUCTIONS if one in text), None)
    if word is not None:
        text = text[text.index(word) + len(word) + 1 :]
    if "collage of" in text:
        text = text[text.index("collage of") + len("collage of ") :]
    return text


def read_captions(path: Path) -> dict[str, dict[str, str]]:
    """{stem: {mask: raw caption}} of llava.json, of a backup of caption-masks, or of all backups in a folder.

    Entries of another form are kept for the caller to name, less the counter of a backup.
    """
    if path.is_dir():
        files = sorted(path.glob("backup_*.json"))
        if not files:
            raise ValueError(f"{path} holds no backup_*.json")
        return merge_captions(read_captions(one) for one in files)
    document = read_source(path)
    return {key: value for key, value in document.items() if key != STEPS or isinstance(value, dict)}


def merge_captions(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Captions of several processes together; of two captions of one object the later part's counts."""
    merged: dict[str, Any] = {}
    for part in parts:
        for stem, captions in part.items():
            both = isinstance(captions, dict) and isinstance(merged.get(stem), dict)
            merged[stem] = {**merged[stem], **captions} if both else captions
    return merged


def damaged(caption: str) -> bool:
    """Whether a raw caption lost its beginning, as the last few of the published command do."""
    return not caption.startswith(CAPTION_START)


def captions_to_folder(annotations: Path, out_dir: Path, redo: bool = True) -> Journal:
    """Write llava.json of every image; captions that are there and not in `annotations` stay."""
    captions = read_captions(annotations)
    known = set(entity_folders(out_dir))
    short = [stem for stem, of_stem in captions.items() if any(damaged(one) for one in _texts(of_stem))]
    if short:
        log.warning("%d images have captions without %r, such as %s", len(short), CAPTION_START, short[0])

    def work(stem: str) -> Mapping[str, Any]:
        fresh = captions[stem]
        if not isinstance(fresh, dict) or len(_texts(fresh)) != len(fresh):
            raise ValueError(f"{annotations}: its entry is not an object of texts")
        if stem not in known:
            raise ValueError(f"has captions but no folder in {out_dir}")
        path = out_dir / stem / RAW_CAPTIONS
        write_object(path, {**_existing(path), **fresh})
        return {}

    files = sorted(annotations.glob("backup_*.json")) if annotations.is_dir() else [annotations]
    inputs = {"captions": [file_sha256(one) for one in files], "after": stamp_hash(out_dir, MAKE_ENTITIES)}
    journal = Journal(stamp_path(out_dir, FOLDER_STEP), inputs, redo=redo)
    run_items(journal, list(captions), work, workers=1)
    return journal


def _texts(captions: Any) -> list[str]:
    values = captions.values() if isinstance(captions, dict) else ()
    return [one for one in values if isinstance(one, str)]


def _existing(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_object(path)
    except ValueError:
        set_aside(path)
        return {}


def captions_to_annotations(entities_dir: Path, redo: bool = True) -> Journal:
    """Clean the captions of every llava.json into `caption` of annotations.json."""

    def work(stem: str) -> Mapping[str, Any]:
        document = sound_annotations(entities_dir / stem / ANNOTATIONS)
        path = entities_dir / stem / RAW_CAPTIONS
        if not path.is_file():
            raise ValueError(f"{path} does not exist; `ops {FOLDER_STEP}` makes it")
        raw = read_object(path)
        strange = [name for name, text in raw.items() if name not in document or not isinstance(text, str)]
        if strange:
            raise ValueError(f"{path}: {strange[0]} is no text, or no entry of annotations.json")
        for name, text in raw.items():
            document[name]["caption"] = clean_caption(text)
        write_object(entities_dir / stem / ANNOTATIONS, document)
        lacking = [name for name, entry in document.items() if "caption" not in entry]
        if lacking:
            raise ValueError(f"{path} has no caption of {', '.join(lacking)}")
        return {}

    inputs = {"after": [stamp_hash(entities_dir, step) for step in (MAKE_ENTITIES, FOLDER_STEP)]}
    journal = Journal(stamp_path(entities_dir, ENTITIES_STEP), inputs, redo=redo)
    run_items(journal, entity_folders(entities_dir), work, workers=1)
    return journal
