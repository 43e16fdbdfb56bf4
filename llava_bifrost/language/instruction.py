"""Instructions: the sentences that ask for a place (paper section 3.2), and what they ask for.

Place the cat behind the bed and to the left of the lamp, output the bounding box and ...
Replace the cat with the reference image, output the bounding box and ...
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

FORMATS = ("center", "maxmedmin")
CODECS = ("bifrost", "square", "pixels", "thousand")
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
       for lead in ("to", "on", "at") for side in ("left", "right")
       for end in ("", " side", "-hand side", " hand side") if (lead, end) != ("to", "")},
    **dict.fromkeys(("in the front of", "ahead of"), "in front of"),
    **dict.fromkeys(("in back of", "at the back of", "in the back of"), "behind"),
    **dict.fromkeys(("onto", "upon"), "on"),
    **dict.fromkeys(("atop", "on the top of"), "on top of"),
    **dict.fromkeys(("by", "adjacent to", "close by", "at the side of", "by the side of"), "next to"),
    "alongside of": "alongside",
    **dict.fromkeys(("close to", "near to", "nearby"), "near"),
    **dict.fromkeys(("in between", "in-between", "in the middle of"), "between")}  # fmt: skip
# A name that ends with one of these is a part of the image, not an object.
SPOTS = ("left", "right", "front", "back", "side", "middle", "center", "centre", "corner", "top", "bottom",
         "background", "foreground", "there", "here", "it", "far")  # fmt: skip
# What the placer knows without being told where it is.
GROUND_NAMES = ("floor", "ground", "grass", "lawn", "street", "road", "pavement", "sidewalk", "snow", "sand")

TAILS = {
    "center": "output the bounding box and the depth value of the center point.",
    "maxmedmin": "output the bounding box and the max, median and min depth values of the object.",
}
ARTICLE = re.compile(r"^(?:the|a|an|another|some|this|that|these|those|my|our|your)\s+")
# Group 1 is the phrase; what is before it ("just behind") says nothing that is checked.
PHRASE = re.compile(
    r"(?<![\w-])(?:(?:right|directly|immediately|exactly|just|slightly|halfway|somewhere|a little|a bit"
    r"|down|up|over) )*(" + "|".join(sorted((*PHRASES, *SYNONYMS), key=len, reverse=True)) + r")(?![\w-])"
)
# What may stand before "and" inside one name: "the black and white cat".
ADJECTIVES = frozenset((
    "black", "white", "red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "grey", "gray",
    "golden", "silver", "beige", "turquoise", "dark", "light", "big", "small", "little", "large", "tall",
    "short", "long", "wide", "narrow", "old", "new", "young", "round", "square", "flat", "thick", "thin",
    "soft", "hard", "clean", "dirty", "shiny", "rusty", "wet", "dry", "wooden", "striped", "checkered",
    "dotted", "spotted", "plain"))  # fmt: skip
NAME = re.compile(r"[\w'&/-]+(?: [\w'&/-]+)*")


class InstructionError(ValueError):
    """An instruction that was not understood: which part, and the forms that are known."""


@dataclass(frozen=True)
class Request:
    """What an instruction asks for; names are lower case, one blank between words."""

    target: str
    relations: tuple[tuple[str, str], ...] = ()  # (phrase of PHRASES, anchor), all hold; two for "between"
    replace: bool = False  # put the new object where the target is; then there are no relations

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", _checked_name(self.target, anchor=self.replace))
        pairs = tuple((phrase, _checked_name(name, anchor=True)) for phrase, name in self.relations)
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
        pairs = iter(self.relations)
        for phrase, name in pairs:
            second, other = next(pairs, ("", "")) if phrase == "between" else ("", "")
            if phrase == "between" and second != phrase:
                raise ValueError(f"between needs two objects, got only {name!r}")
            clauses.append((phrase, (name, other) if other else (name,)))
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
    if fmt not in FORMATS:
        raise ValueError(f"unknown answer format {fmt!r}; allowed: {', '.join(FORMATS)}")
    return fmt


def split_list(words: str) -> list[str]:
    """The objects of a list; "black and white cat" is one."""
    found: list[str] = []
    parts = re.split(r"(\s*,\s*(?:and\s+)?|\s+and\s+)", words)
    for joint, part in zip(["", *parts[1::2]], parts[::2], strict=True):
        if found and part and not ARTICLE.match(part) and found[-1].split()[-1] in ADJECTIVES:
            both = " and " if "and" in joint else " "
            found[-1] = f"{found[-1]}{both}{part}"  # an adjective, and the rest of its object
        elif part:
            found.append(part)
    return found


def _checked_name(name: str, anchor: bool) -> str:
    """A name that reads back as itself; of an `anchor` "chair behind the desk" does, "cup and plate" not."""
    plain = " ".join(name.lower().split())
    readable = NAME.fullmatch(plain) and not ARTICLE.match(plain + " ") and plain.split()[-1] not in SPOTS
    relation = PHRASE.search(plain)
    if relation:
        readable = readable and anchor and relation.start() > 0
    if not readable or "but" in plain.split() or (anchor and split_list(plain) != [plain]):
        raise ValueError(f"{name!r} cannot name an object in an instruction: plain words without relations")
    return plain
