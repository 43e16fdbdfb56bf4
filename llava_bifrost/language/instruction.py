"""Instructions: the sentences that ask for a place, written and read (paper section 3.2).

    Place the cat behind the bed and to the left of the lamp, output the bounding box and ...
    Replace the cat with the reference image, output the bounding box and ...

Seventeen phrases are published. `parse_instruction` also reads what people type: other verbs, articles,
commas, "between the Y and the Z", "Replace the X". What it does not understand it names; it never guesses.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

FORMATS = ("center", "maxmedmin")

PUBLISHED: dict[str, str] = {
    **dict.fromkeys(("below", "under", "beneath", "underneath"), "under"),
    **dict.fromkeys(("above", "over"), "above"),
    **dict.fromkeys(("on top of", "at the top of", "on"), "on"),
    "in front of": "in front of",
    "behind": "behind",
    **dict.fromkeys(("next to", "near", "beside", "alongside"), "next to"),
    "to the left of": "left of",
    "to the right of": "right of",
}
# Phrase -> relation of datasets.relations; a Request holds these phrases only.
PHRASES: dict[str, str] = {**PUBLISHED, "left of": "left of", "right of": "right of", "between": "between"}
# What people also write -> the phrase that it means.
SYNONYMS: dict[str, str] = {
    **{f"{lead} the {side}{end} of": f"to the {side} of"
       for lead in ("to", "on", "at") for side in ("left", "right") for end in ("", " side", "-hand side")
       if (lead, end) != ("to", "")},
    **dict.fromkeys(("in the front of", "ahead of"), "in front of"),
    **dict.fromkeys(("in back of", "at the back of", "in the back of"), "behind"),
    **dict.fromkeys(("onto", "upon"), "on"),
    **dict.fromkeys(("atop", "on the top of"), "on top of"),
    **dict.fromkeys(("by", "adjacent to", "at the side of", "by the side of", "right next to"), "next to"),
    **dict.fromkeys(("close to", "nearby"), "near"),
    **dict.fromkeys(("in between", "in the middle of"), "between"),
    "right behind": "behind",
    "directly behind": "behind",
    "right in front of": "in front of",
    "directly in front of": "in front of",
}  # fmt: skip
PLACE_VERBS = ("place", "put", "move", "add", "set", "sit", "lay", "stand", "insert", "position", "drop",
               "hang")  # fmt: skip
REPLACE_VERBS = ("replace", "swap", "substitute", "exchange")
# A name that ends with one of these is a part of the image, not an object.
SPOTS = ("left", "right", "front", "back", "side", "middle", "center", "centre", "corner", "top", "bottom",
         "background", "foreground", "there", "here", "it")  # fmt: skip

TAILS = {
    "center": "output the bounding box and the depth value of the center point.",
    "maxmedmin": "output the bounding box and the max, median and min depth values of the object.",
}
_ARTICLE = re.compile(r"^(?:the|a|an|another|some|this|that|these|those|my|our|your)\s+")
_POLITE = re.compile(r"^(?:please|now|then|can you|could you|would you|kindly)[\s,]+")
_TAIL = re.compile(r"[\s,;.]*\boutput the bounding box\b.*$")
_PHRASE = re.compile(
    r"(?<![\w-])(?:" + "|".join(sorted((*PHRASES, *SYNONYMS), key=len, reverse=True)) + r")(?![\w-])"
)
_JOIN = re.compile(r"(?:\s*,\s*|\s+)(?:and|but|also|as well as)(?:\s+also)?\s*$|\s*,\s*$")
_NAME = re.compile(r"[\w'&/-]+(?: [\w'&/-]+)*")
KNOWN_FORMS = (
    'known forms: "Place the X <relation> the Y [and <relation> the Z]", '
    '"Place the X between the Y and the Z", "Replace the X"; '
    f"verbs {', '.join((*PLACE_VERBS, *REPLACE_VERBS))}; relations {', '.join(PHRASES)}"
)


class InstructionError(ValueError):
    """An instruction that was not understood: which part, and the forms that are known."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; {KNOWN_FORMS}")


@dataclass(frozen=True)
class Request:
    """What an instruction asks for.

    relations: (phrase of PHRASES, name of the anchor) pairs, all of which must hold; the two anchors of
               "between" are two neighbouring pairs
    replace:   put the new object where the target is; then there are no relations
    Names are lower case, one blank between words.
    """

    target: str
    relations: tuple[tuple[str, str], ...] = ()
    replace: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", _checked_name(self.target))
        pairs = tuple((phrase, _checked_name(name)) for phrase, name in self.relations)
        object.__setattr__(self, "relations", pairs)
        unknown = [phrase for phrase, _ in pairs if phrase not in PHRASES]
        if unknown:
            raise ValueError(f"unknown relation {unknown[0]!r}; known: {', '.join(PHRASES)}")
        if self.replace and {"with", "for"} & set(self.target.split()):
            raise ValueError(f"{self.target!r} cannot be replaced by name: it holds 'with' or 'for'")
        if self.replace and pairs:
            raise ValueError(f"a request to replace {self.target!r} has no relations, got {pairs}")
        if not self.replace and not pairs:
            raise ValueError(f"a request to place {self.target!r} needs at least one relation")
        self.clauses  # noqa: B018  refuses a "between" without its second anchor

    @property
    def clauses(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(phrase, its anchors): one anchor, two for "between"."""
        clauses: list[tuple[str, tuple[str, ...]]] = []
        rest = list(self.relations)
        while rest:
            phrase, *names = rest.pop(0)
            if phrase == "between":
                if not rest or rest[0][0] != "between":
                    raise ValueError(f"between needs two objects, got only {names[0]!r}")
                names.append(rest.pop(0)[1])
            clauses.append((phrase, tuple(names)))
        return tuple(clauses)

    @property
    def anchors(self) -> tuple[str, ...]:
        """The names of the anchors, each once, in the order of the sentence."""
        return tuple(dict.fromkeys(name for _, name in self.relations))

    @property
    def named(self) -> tuple[str, ...]:
        """The objects whose places decide what the request asks for: the anchors, or what is replaced."""
        return (self.target,) if self.replace else self.anchors


def clause_text(phrase: str, names: Sequence[str]) -> str:
    """ "behind the sofa", "between the sofa and the lamp"."""
    return f"{phrase} {' and '.join(f'the {name}' for name in names)}"


def make_instruction(request: Request) -> str:
    """The published sentence without its question: "Place the cat behind the bed"."""
    if request.replace:
        return f"Replace the {request.target} with the reference image"
    return f"Place the {request.target} " + " and ".join(clause_text(*clause) for clause in request.clauses)


def make_question(request: Request, fmt: str = "center") -> str:
    """The published prompt, character for character, for an answer in format `fmt` (one of FORMATS)."""
    return f"{make_instruction(request)}, {TAILS[check_format(fmt)]}"


def check_format(fmt: str) -> str:
    """The name of an answer format, or a ValueError."""
    if fmt not in FORMATS:
        raise ValueError(f"unknown answer format {fmt!r}; allowed: {', '.join(FORMATS)}")
    return fmt


def parse_instruction(text: str) -> Request:
    """Read an instruction, published or free; InstructionError names the part that was not understood.

    Upper and lower case, articles, commas, "please" and the published question after it do not matter.
    Several relations are joined by "and" or a comma; "behind the Y and the Z" is behind both.
    """
    plain = " ".join(text.replace("<image>", " ").lower().split())
    plain = _TAIL.sub("", plain).rstrip(" .!,;")
    while _POLITE.match(plain):
        plain = _POLITE.sub("", plain)
    verb, _, rest = plain.partition(" ")
    if not plain:
        raise InstructionError("the instruction is empty")
    if verb not in (*PLACE_VERBS, *REPLACE_VERBS):
        raise InstructionError(f"{text.strip()!r}: it begins with {verb!r}, which is not a known verb")
    rest = rest.strip()
    matches = list(_PHRASE.finditer(rest))
    pairs: list[tuple[str, str]] = []
    if verb in REPLACE_VERBS:
        # What it is replaced by is the reference image, so those words are not needed.
        target = re.split(r"\s+(?:with|by|for)\s+", rest, maxsplit=1)[0]
        relation = _PHRASE.search(target)
        if relation:
            more = target[relation.start() :]
            raise InstructionError(f"{verb!r} takes one object, but {more!r} follows it")
        target = _name(target, f"after {verb!r}")
    elif not matches:
        raise InstructionError(f"{text.strip()!r}: no known relation in {rest!r}")
    else:  # "the X <relation> the Y [and <relation> the Z ...]"
        target = _name(re.sub(r"\s*,$", "", rest[: matches[0].start()].rstrip()), f"before {matches[0][0]!r}")
        ends = [match.start() for match in matches[1:]] + [len(rest)]
        for match, end in zip(matches, ends, strict=True):
            surface, words = match[0], rest[match.end() : end].strip()
            if end < len(rest):
                joined = _JOIN.sub("", words)
                if joined == words:
                    unread = f"{surface} {words} {rest[end:]}"
                    raise InstructionError(f"{unread!r}: two relations need 'and' or a comma between them")
                words = joined
            phrase = SYNONYMS.get(surface, surface)
            parts = [part for part in re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", words) if part]
            if phrase == "between" and len(parts) != 2:
                clause = f"{surface} {words}".strip()
                raise InstructionError(f"{clause!r}: between needs two objects, joined by 'and'")
            if not parts:
                raise InstructionError(f"nothing follows {surface!r}")
            pairs += [(phrase, _name(part, f"after {surface!r}")) for part in parts]
    try:
        return Request(target, tuple(pairs), replace=verb in REPLACE_VERBS)
    except ValueError as error:
        raise InstructionError(str(error)) from error


def _name(words: str, where: str) -> str:
    """An object without its article."""
    name = _ARTICLE.sub("", words.strip() + " ").strip()
    if not name:
        raise InstructionError(f"the name of an object is missing {where}")
    if not _NAME.fullmatch(name):
        raise InstructionError(f"{name!r} {where} is not a name of plain words")
    if name.split()[-1] in SPOTS:
        raise InstructionError(f"{name!r} {where} is not the name of an object")
    return name


def _checked_name(name: str) -> str:
    """A name that an instruction can hold and that reads back as itself."""
    plain = " ".join(name.lower().split())
    readable = _NAME.fullmatch(plain) and not _PHRASE.search(plain) and not _ARTICLE.match(plain + " ")
    words = plain.split()
    if not readable or {"and", "but"} & set(words) or words[-1] in SPOTS:
        raise ValueError(f"{name!r} cannot name an object in an instruction: plain words without relations")
    return plain


CODECS = ("bifrost", "square", "pixels", "thousand")
