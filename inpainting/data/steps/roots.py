"""The root of the first noun chunk of a concept ("a woman with a hat" -> "woman"), for the accuracy metric.

spaCy's `en_core_web_sm` finds it where it is installed, as published. Otherwise a rule for short phrases uses
TextBlob's tags (its word list comes with it). The journal of the step names the method.
"""

import importlib.metadata
import logging
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inpainting.data.paintings import MAKE_ENTITIES, change_annotations
from ldm.journal import Journal, stamp_hash
from ldm.settings.config import CheckedSettings, setting

log = logging.getLogger(__name__)

STEP = "extract-noun-chunk-roots"
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
class RootSettings(CheckedSettings):
    """Entities -> noun roots."""

    entities_dir: Path = setting(help="folder of entities")
    method: str = setting("auto", choices=METHODS, help="spaCy's model, the rule, or the first that works")


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
    for number, (word, tag) in enumerate(tagged):
        following = tagged[number + 1] if number + 1 < len(tagged) else ("", "")
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

    inputs = {"method": name, "after": stamp_hash(settings.entities_dir, MAKE_ENTITIES)}
    return change_annotations(settings.entities_dir, STEP, inputs, change, redo, "noun_chunk_root")
