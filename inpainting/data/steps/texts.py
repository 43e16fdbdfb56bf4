"""Texts of the objects in annotations.json: captions, and noun roots for the accuracy metric.

The root of the first noun chunk of a concept ("a woman with a hat" -> "woman") is found by spaCy's
`en_core_web_sm` where it is installed, as published, otherwise by a rule over TextBlob's tags.
"""

import importlib.metadata
import logging
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from inpainting.data import paintings
from inpainting.prompts import CAPTION_START
from ldm.files import file_sha256, read_json
from ldm.journal import Journal, run_step, stamp_hash, stamp_path
from ldm.settings.config import CheckedSettings, setting

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

ROOTS_STEP = "extract-noun-chunk-roots"
MODEL = "en_core_web_sm"
METHODS = ("auto", "spacy", "rule")
_TAGGING = threading.Lock()  # TextBlob reads its word list at its first call

WORDS = re.compile(r"\w+(?:-\w+)*|'s\b|[^\w\s]")
NOUNS = ("NN", "NNS", "NNP", "NNPS")
# Words in -ing that are nouns after another noun ("a stone building"); others are verbs ("men talking").
ING_NOUNS = {
    *("awning", "bedding", "being", "building", "carving", "ceiling", "clothing", "covering"),
    *("drawing", "dwelling", "earring", "engraving", "etching", "evening", "king", "lightning"),
    *("morning", "mooring", "opening", "painting", "pudding", "railing", "ring", "rigging"),
    *("sapling", "scaffolding", "setting", "sling", "spring", "stocking", "string", "swing"),
    *("thing", "wedding", "wing", "writing"),
}


@dataclass(frozen=True)
class FolderSettings:
    annotations_path: Path = setting(help="llava.json, a backup, or a folder of backups")
    out_dir: Path = setting(help="folder of entities")


@dataclass(frozen=True)
class EntitySettings:
    entities_dir: Path = setting(help="folder of entities")


@dataclass(frozen=True)
class RootSettings(CheckedSettings):
    entities_dir: Path = setting(help="folder of entities")
    method: str = setting("auto", choices=METHODS, help="spaCy's model, the rule, or the first that works")


def plain_text(text: str) -> str:
    """Lower case, one line, letters, digits, spaces and `.,!` only, without a final full stop."""
    text = text.lower().replace("\n", " ")
    return "".join(letter for letter in text if letter.isalnum() or letter in " .,!").removesuffix(".")


def clean_caption(caption: str) -> str:
    """A raw sentence ("The image shows a collage of two dogs.") -> a prompt ("two dogs"), as published."""
    text = plain_text(caption).replace(f"{CAPTION_START.lower()} ", "")
    if "collage" not in text:
        return text
    word = next((word for word in INTRODUCTIONS if word in text), None)
    if word is not None:
        text = text[text.index(word) + len(word) + 1 :]
    return text.partition("collage of")[2][1:] if "collage of" in text else text


def read_captions(path: Path) -> dict[str, Any]:
    """{stem: {mask: raw caption}} of llava.json, of a backup of caption-masks, or of all backups in a folder.

    Of two captions of one object the later one counts. Entries of another form stay, for the caller to name.
    """
    if not path.is_dir():
        document = read_json(paintings.source_file(path))
        return {key: value for key, value in document.items() if key != STEPS or isinstance(value, dict)}
    files = sorted(path.glob("backup_*.json"))
    if not files:
        raise ValueError(f"{path} holds no backup_*.json")
    merged: dict[str, Any] = {}
    for file in files:
        for stem, captions in read_captions(file).items():
            both = isinstance(captions, dict) and isinstance(merged.get(stem), dict)
            merged[stem] = {**merged[stem], **captions} if both else captions
    return merged


def damaged(caption: str) -> bool:
    """Whether a raw caption lost its beginning, as the last few of the published command do."""
    return not caption.startswith(CAPTION_START)


def captions_to_folder(settings: FolderSettings, redo: bool = True) -> Journal:
    """Write the captions of each image into its folder; captions that are only there stay."""
    source, out_dir = settings.annotations_path, settings.out_dir
    captions, known = read_captions(source), set(paintings.entity_folders(out_dir))
    texts = {stem: list(objects.values()) for stem, objects in captions.items() if isinstance(objects, dict)}
    short = [stem for stem in texts if any(isinstance(text, str) and damaged(text) for text in texts[stem])]
    if short:
        log.warning("%d images have captions without %r, such as %s", len(short), CAPTION_START, short[0])

    def work(stem: str) -> None:
        if stem not in texts or not all(isinstance(text, str) for text in texts[stem]):
            raise ValueError(f"{source}: its entry is not an object of texts")
        if stem not in known:
            raise ValueError(f"has captions but no folder in {out_dir}")
        path = out_dir / stem / paintings.RAW_CAPTIONS
        paintings.write_object(path, {**paintings.read_intact(path), **captions[stem]})

    files = sorted(source.glob("backup_*.json")) if source.is_dir() else [source]
    hashes = [file_sha256(file) for file in files]
    inputs = {"captions": hashes, "after": stamp_hash(out_dir, paintings.MAKE_ENTITIES)}

    def is_whole(stem: str, record: Mapping[str, Any]) -> bool:
        kept = paintings.read_intact(out_dir / stem / paintings.RAW_CAPTIONS)
        return captions[stem].items() <= kept.items()

    return run_step(stamp_path(out_dir, FOLDER_STEP), inputs, list(captions), work, redo, is_whole=is_whole)


def captions_to_annotations(settings: EntitySettings, redo: bool = True) -> Journal:
    """Clean the captions and add them to annotations.json."""
    entities_dir = settings.entities_dir

    def change(stem: str, document: dict[str, Any]) -> str | None:
        path = entities_dir / stem / paintings.RAW_CAPTIONS
        if not path.is_file():
            raise ValueError(f"{path} does not exist; `ops {FOLDER_STEP}` makes it")
        raw = read_json(path)
        wrong = [name for name, text in raw.items() if name not in document or not isinstance(text, str)]
        if wrong:
            raise ValueError(f"{path}: {wrong[0]} is no text, or no entry of annotations.json")
        for name, text in raw.items():
            document[name]["caption"] = clean_caption(text)
        lacking = [name for name, entry in document.items() if "caption" not in entry]
        return f"{path} has no caption of {', '.join(lacking)}" if lacking else None

    inputs = {"after": [stamp_hash(entities_dir, step) for step in (paintings.MAKE_ENTITIES, FOLDER_STEP)]}
    return paintings.change_annotations(entities_dir, ENTITIES_STEP, inputs, change, redo, "caption")


def rule_root(concept: str) -> str:
    """The last noun before the first preposition, verb or conjunction that follows a noun.

    A possessor is no root ("a woman's face" -> "face"). Without any noun a phrase that begins with an article
    ends in its root ("a reclining nude"), and any other phrase is its own.
    """
    from textblob.en import tag as penn_tags

    words = WORDS.findall(concept)
    with _TAGGING:
        tagged: list[tuple[str, str]] = penn_tags(" ".join(words), tokenize=False) if words else []
    before = ""
    for number, (word, tag) in enumerate(tagged):
        # A verb form where only a noun can stand is a noun ("green leaves").
        if tag in ("VB", "VBZ", "VBP") and (before in ("JJ", "DT", "CD", "PRP$") or number == 0):
            tagged[number] = (word, "NN")
        before = tagged[number][1]
    root = ""
    for (word, tag), following in pairwise([*tagged, ("", "")]):
        is_verb_form = word.endswith("ing") and word not in ING_NOUNS
        if following[0] == "'s" or word == "'s":
            root = ""
        elif tag in NOUNS and not (root and is_verb_form and following[1] not in NOUNS):
            root = word
        elif root and not (tag.startswith("JJ") and following[1] in NOUNS):
            break
        elif tag == "PRP" and not root:
            return word
    if not root and tagged and tagged[0][1] in ("DT", "PRP$", "CD") and len(tagged) > 1:
        return tagged[-1][0]
    return root or concept


def extract_roots(settings: RootSettings, redo: bool = True) -> Journal:
    """Add the root of each concept's first noun chunk to annotations.json."""
    import spacy

    root_of = rule_root
    if settings.method != "rule" and spacy.util.is_package(MODEL):
        nlp = spacy.load(MODEL)
        name = f"spacy {MODEL} {nlp.meta['version']}"

        def root_of(concept: str) -> str:
            return next((chunk.root.text for chunk in nlp(concept).noun_chunks), concept)

    elif settings.method == "spacy":
        raise ValueError(f"spaCy's {MODEL} is not installed; `python -m spacy download {MODEL}` gets it")
    else:
        name = f"rule over the tags of textblob {importlib.metadata.version('textblob')}"
    log.info("noun roots by %s", name)

    def change(stem: str, document: dict[str, Any]) -> None:
        for entry in document.values():
            entry["noun_chunk_root"] = root_of(entry["concept"])

    inputs = {"method": name, "after": stamp_hash(settings.entities_dir, paintings.MAKE_ENTITIES)}
    return paintings.change_annotations(
        settings.entities_dir, ROOTS_STEP, inputs, change, redo, "noun_chunk_root"
    )
