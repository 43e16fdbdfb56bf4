"""Sentences that edit an image: place, move, remove or replace an object; several sentences in a row."""

import re
from dataclasses import dataclass

from llava_bifrost.language.instruction import ARTICLE, InstructionError, Request, split_list
from llava_bifrost.language.reading import PLACE_VERBS, REPLACE_VERBS, parse_instruction, plain_words

REMOVE_VERBS = ("remove", "delete", "erase")
MOVE_VERBS = ("move", "shift", "bring", "push", "pull", "slide", "carry", "relocate")
_REMOVE = re.compile(r"^(?:get rid of|take away|take out|clear away|cut out|remove|delete|erase)\s+")
_VERBS = "|".join((*REMOVE_VERBS, *MOVE_VERBS, *PLACE_VERBS, *REPLACE_VERBS, "get rid of", "take"))
# The end of a sentence, or a joint before the next verb: "Remove the chair and move the lamp ...".
_BREAK = re.compile(
    rf"[.;!]+\s+|\s*\n\s*|(?:\s*,|\s+and\b|\s+then\b)(?:\s*,|\s*\band\b|\s*\bthen\b|\s*\balso\b)*\s+"
    rf"(?=(?:{_VERBS}) (?:the|a|an|my|our|your|this|that) )",
    re.IGNORECASE,
)
_BY = re.compile(r" (?:with|by|for) ")


@dataclass(frozen=True)
class Edit:
    verb: str  # object (place a new one), move, erase or replace
    target: str  # the name of the object, lower case
    sentence: str = ""  # "place the lamp behind the sofa", of object and move
    by: str = ""  # what comes instead, with its article, of replace


def parse_edits(text: str) -> list[Edit]:
    """The edits of one or several sentences, in order; InstructionError names the part not understood."""
    parts = [part for part in _BREAK.split(text.strip()) if plain_words(part)]
    if not parts:
        raise InstructionError("the instruction is empty")
    edits = []
    for part in parts:
        plain = plain_words(part)
        verb, _, rest = plain.partition(" ")
        if removed := _REMOVE.match(plain):
            listed = split_list(plain[removed.end() :])
            edits += [Edit("erase", _read(f"replace {words}", part).target) for words in listed]
        elif verb in MOVE_VERBS:
            edits.append(Edit("move", _read(f"place {rest}", part).target, f"place {rest}"))
        elif not (request := parse_instruction(plain)).replace:
            edits.append(Edit("object", request.target, plain))
        elif new := _BY.split(plain, maxsplit=1)[1:]:
            edits.append(Edit("replace", request.target, by=new[0]))
        else:
            wrong = "does not say what comes instead: Replace the X with the Y"
            raise InstructionError(f"{part.strip()!r} {wrong}")
    return edits


def _read(plain: str, text: str) -> Request:
    """A sentence in words that `parse_instruction` knows; errors show the user's own."""
    try:
        return parse_instruction(plain)
    except InstructionError as error:
        reason = str(error).partition("; known forms")[0].replace(f"'{plain.split()[0]}'", "the verb")
        forms = "Remove the X, Move the X <relation> the Y"
        raise InstructionError(f"{text.strip()!r}: {reason}; known forms: {forms}") from error


def without_article(words: str) -> str:
    """A name without its article."""
    return ARTICLE.sub("", f"{words} ").strip() or words
