"""Reading instructions: what people type becomes a Request, or an error that names the part not understood.

A place may describe another: "the nightstand next to the bed" is one name, which `with_known_names` resolves
once it is known which objects are there.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from datasets.relations import Place, holds
from llava_bifrost.language.instruction import (
    ADJECTIVES,
    ARTICLE,
    GROUND_NAMES,
    NAME,
    PHRASE,
    PHRASES,
    SPOTS,
    SYNONYMS,
    InstructionError,
    Request,
    make_instruction,
    split_list,
)

_POLITE = re.compile(
    r"^(?:please|kindly|now|then|just|so|ok|okay|hey|hi|hello|try to|let's|let us|"
    r"(?:can|could|would|will) (?:you|we)(?: please)?(?: mind)?|(?:can|could|may) (?:i|we) (?:please )?have|"
    r"(?:i|we)(?:'d| would)? (?:like|love|want|need|wish)(?: (?:you|to)\b)*(?: (?:see|have)\b)?|"
    r"i think|it would be (?:nice|good|great) to (?:have|see)|"
    r"(?:let )?there(?:'s| is| are| be| should be| must be))(?:[\s,]+|$)"
)
_THANKS = re.compile(r"[\s,]+(?:please|pls|thanks|thank you)$")
_TAIL = re.compile(r"[\s,;.]*\boutput the bounding box\b.*$", re.IGNORECASE)
_JOIN = re.compile(r"(?:\s*,\s*|\s+)(?:and|but|also|as well as)(?:\s+also)?\s*$|\s*,\s*$")
_NEGATION = re.compile(r"\b(?:not|never|no|none|neither|nor|without|except|avoid|unless|cannot)\b|\b\w+n't\b")
_ANY = re.compile(
    r"\b(?:or|either|maybe|perhaps|possibly|if|any\w*|every\w*|each|all(?!-)|(?:one|some|two|three|most) of"
    r"|what|where|which|who|how|why)\b"
)
_BOTH = re.compile(r"\bboth (?=(?:the|my|our|your|these|those) )")  # "both the X and the Y" are two
# Relations that have no phrase here; an anchor's own "in the corner" or "with a hat" only describes it.
_UNREAD = "against|around|at|towards?|across|opposite|outside|through|from|away|off|along|among|closer|that"
_UNREAD_OF = {
    "target": re.compile(rf"\b(?:in|inside|into|within|{_UNREAD})\b.*"),
    "anchor": re.compile(rf"\b(?:{_UNREAD})\b.*"),
}
_PARTICLE = re.compile(r"^(?:up|down|back|out)\s+")  # "set up a tent"
_AMOUNT = re.compile(r"\b\d[\d.]* ?(?:m|cm|mm|met(?:er|re)s?|feet|foot|inch(?:es)?|px|pixels?|%)$")
_ITS_SIDE = re.compile(r"^(?:the |my |our |your )?([\w'-]+(?: [\w'-]+){0,2}) on the (left|right)(?: side)?$")
# What an object does: it says nothing about the place.
_DOING = (
    "standing|sitting|seated|lying|hanging|leaning|parked|placed|hidden|sleeping|asleep|napping|resting|relaxing|"
    "curled|perched|perching|kneeling|crouching|waiting|running|walking|jumping|dancing|playing|reading|working|"
    "eating|drinking|grazing|flying|floating|swimming"
)
# Of a sentence without a verb that asks, "the dog should be", and of any, "a dog sitting".
_STANDS = re.compile(
    r",? (?:(?:should|must|can|will) (?:be|go|stand|sit|lie|hang)|is|are|goes|belongs?|stands|sits|lies)"
    rf"(?= (?:{_DOING})$|$)"
)
_POSTURE = re.compile(rf",? (?:{_DOING})$")
_ON_SIDE = re.compile(
    rf"({PHRASE.pattern} (?:the|my|our|your) )([\w'-]+(?: [\w'-]+){{0,2}}) on the (left|right)(?: side)?"
    r"(?= ?,| and\b|$)"
)
PLACE_VERBS = (
    "place", "put", "move", "add", "set", "sit", "lay", "stand", "insert", "position", "drop", "hang", "park",
    "hide", "stick", "lean", "seat", "rest", "leave", "keep", "bring", "get", "slide", "throw", "plant",
    "mount", "install", "include", "arrange", "balance", "paste", "draw", "render", "generate", "show",
    "squeeze", "tuck", "pop", "fit", "store", "attach", "pin", "pose", "perch", "dump", "roll", "carry",
)  # fmt: skip
REPLACE_VERBS = ("replace", "swap", "substitute", "exchange")
# Verbs that ask for something else; other first words are taken for the object's name.
OTHER_VERBS = (
    "remove", "delete", "erase", "make", "turn", "change", "rotate", "flip", "scale", "resize", "enlarge",
    "shrink", "crop", "paint", "colour", "color", "fill", "take", "give", "find", "cut", "copy", "push",
    "pull", "open", "close")  # fmt: skip
_PRONOUN = re.compile(r"^(?:i|we|you|they|he|she|it|let|have|who)(?:'\w+)?\b")
_GERUNDS = {re.sub("e$", "", verb) + "ing": verb for verb in PLACE_VERBS} | {
    "putting": "put", "setting": "set", "sitting": "sit", "dropping": "drop", "getting": "get"}  # fmt: skip
_VERB = "|".join((*PLACE_VERBS, *REPLACE_VERBS))
_SECOND = re.compile(
    rf"(?:[.;,]|\band\b|\bthen\b)[\s,]*(?:then )?(?:{_VERB}|{'|'.join(OTHER_VERBS)}) "
    r"(?:the|a|an|it|its|another)\b.*"
)
_SOMEBODY = re.compile(
    rf"^(?:i|we|you)(?:'d|'ll| would| will| should| could| can| may| might| must)? ((?:{_VERB}) .*)$"
)
_FRONTED = re.compile(rf"^({PHRASE.pattern} .*?),? ((?:{'|'.join(PLACE_VERBS)}) .*)$")
KNOWN_FORMS = (
    'known forms: "Place the X <relation> the Y [and <relation> the Z]", '
    '"Place the X between the Y and the Z", "Replace the X"; '
    f"verbs {', '.join((*PLACE_VERBS, *REPLACE_VERBS))}; relations {', '.join(PHRASES)}"
)


def parse_instruction(text: str) -> Request:
    """Read an instruction, published or free; InstructionError names the part that was not understood.

    Several relations are joined by "and" or a comma; "behind the Y and the Z" is behind both. Without a
    joint, the second relation tells which object is meant: "on the chair behind the Y".
    """
    try:
        return _read(text)
    except ValueError as error:
        raise InstructionError(f"{error}; {KNOWN_FORMS}") from error


def _read(text: str) -> Request:
    plain = plain_words(text)
    if not plain:
        raise ValueError("the instruction is empty")
    if found := _NEGATION.search(plain) or _ANY.search(plain):
        raise ValueError(f"{found[0]!r} in {text.strip()!r}: only one definite place is read, no negation")
    if somebody := _SOMEBODY.match(plain := _BOTH.sub("", plain)):
        plain = somebody[1]
    if fronted := _FRONTED.match(plain):
        plain = f"{fronted[3]} {fronted[1]}"
    verb, _, rest = plain.partition(" ")
    verb, asked = _GERUNDS.get(verb, verb), True
    if verb in REPLACE_VERBS:  # by the reference image, so the words after the joint are not needed
        parts = re.split(r"\s+(with|by|for)\s+", _PARTICLE.sub("", rest.strip()), maxsplit=1)
        old, joint, new = (*parts, "", "")[:3]
        if verb == "substitute" and joint == "for":
            raise ValueError(f"{verb!r} ... 'for {new}' has two readings: \"replace the X with the Y\"")
        if len(parts := split_list(old)) > 1:
            raise ValueError(f"{verb!r} takes one object, got {' and '.join(map(repr, parts))}")
        return Request(_name(_ITS_SIDE.sub(r"\2 \1", old), f"after {verb!r}", "anchor"), replace=True)
    if verb not in PLACE_VERBS:  # "a dog behind the sofa"
        sentence = not ARTICLE.match(plain) and re.search(r"^\w+ (?:the|a|an|my|our|your) ", plain)
        if verb in OTHER_VERBS or sentence or _PRONOUN.match(plain):
            raise ValueError(f"{text.strip()!r}: it begins with {verb!r}, which is not a known verb")
        rest, asked = plain, False
    if second := _SECOND.search(rest):
        raise ValueError(f"{second[0]!r}: one object at a time")
    matches = list(PHRASE.finditer(rest := _ON_SIDE.sub(r"\1\4 \3", _PARTICLE.sub("", rest.strip()))))
    if not matches:
        raise ValueError(f"{text.strip()!r}: no known relation in {rest!r}")
    before = rest[: matches[0].start()].rstrip(" ,")
    before = _POSTURE.sub("", before if asked else _STANDS.sub("", before, count=1))
    target = _name(before, f"before {matches[0][1]!r}", "target")
    joined = [match for match in matches[1:] if _JOIN.search(rest[: match.start()])]
    starts = [match.start() for match in (matches[0], *joined)]
    clauses = [rest[start:end] for start, end in zip(starts, [*starts[1:], len(rest)], strict=True)]
    pairs = [pair for clause in clauses[:-1] for pair in _pairs(_JOIN.sub("", clause))]
    return Request(target, (*pairs, *_pairs(clauses[-1])))


def without_question(text: str) -> str:
    return _TAIL.sub("", " ".join(text.split())).rstrip(" .!,;")


def plain_words(text: str) -> str:
    """Lower case, single blanks, without politeness and the published question."""
    plain = without_question(text.replace("<image>", " ").replace("\u2019", "'")).lower().rstrip("?")
    before = None
    while before != plain:
        before, plain = plain, _THANKS.sub("", _POLITE.sub("", plain)).rstrip(" .!,;?")
    return plain


def _pairs(clause: str) -> list[tuple[str, str]]:
    """The relations of one clause: "behind the Y and the Z", "on the chair behind the Y"."""
    match = PHRASE.match(clause)
    assert match is not None
    surface, words = match[1], clause[match.end() :].strip()
    phrase, inner = SYNONYMS.get(surface, surface), PHRASE.search(words)
    if inner:  # the second relation describes the first anchor; the ground needs no description
        head = words[: inner.start()].rstrip()
        if len(split_list(head)) > 1 or phrase == "between":
            raise ValueError(f"{clause!r}: two relations need 'and' or a comma between them")
        name = _name(head, f"after {surface!r}", "anchor")
        described = _pairs(words[inner.start() :])
        if name in GROUND_NAMES:
            return [(phrase, name), *described]
        if len(described) > 1:
            raise ValueError(f"{clause!r}: two relations need 'and' or a comma between them")
        ((inner_phrase, inner_name),) = described
        return [(phrase, f"{name} {inner_phrase} the {inner_name}")]
    parts = split_list(words)
    if phrase == "between" and len(parts) != 2:
        raise ValueError(f"{clause.strip()!r}: between needs two objects, joined by 'and'")
    if not parts:
        raise ValueError(f"nothing follows {surface!r}")
    loose = [part for part in parts[1:] if ARTICLE.match(parts[0]) and not ARTICLE.match(part)]
    if loose and (loose[0].endswith("ing") or re.search(rf", {re.escape(loose[0])}\b", words)):
        raise ValueError(f"{loose[0]!r} after {surface!r} is not the name of an object: no article")
    return [(phrase, _name(part, f"after {surface!r}", "anchor")) for part in parts]


def _name(words: str, where: str, role: str) -> str:
    """An object without its article. role: "target" or "anchor"."""
    name = ARTICLE.sub("", words.strip() + " ").strip()
    if not name:
        raise ValueError(f"the name of an object is missing {where}")
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} {where} is not a name of plain words")
    if found := _UNREAD_OF[role].search(name) or _AMOUNT.search(name):
        raise ValueError(f"{found[0]!r} in {name!r} {where} is not a known relation")
    if role == "target" and re.search(r" and (?:the|a|an) ", name):
        raise ValueError(f"{name!r} {where}: one object at a time")
    if name.split()[-1] in SPOTS or set(name.split()) <= ADJECTIVES - {"orange"}:
        raise ValueError(f"{name!r} {where} is not the name of an object")
    return name


def reproduces(request: Request, text: str) -> bool:
    """Whether the published sentence of a request says what the text says, word by word."""
    plain, written = (
        [word for word in re.findall(r"[\w'-]+", plain_words(sentence)) if not ARTICLE.match(f"{word} ")]
        for sentence in (text, make_instruction(request))
    )
    end = len(written) - 2 if request.replace else len(written)  # "with reference image"
    return plain[1:end] == written[1:end]


def with_known_names(request: Request, known: Mapping[str, Place]) -> Request:
    """The request in the names of known objects: what "the chair behind the Y" describes.

    A description that is true of the known chair tells which is meant; another one is a wish about the object
    itself. The ground is left out where another relation stays. Unresolved names stay as they are.
    """
    if request.replace:
        head, described = _described(request.target)
        resolved = described and request.target not in known and head in known
        return replace(request, target=head) if resolved else request
    pairs: list[tuple[str, str]] = []
    rest = list(request.relations)
    while rest:
        phrase, name = rest.pop(0)
        head, described = _described(name)
        if name in known or not described or head not in known:
            pairs.append((phrase, name))
            continue
        inner, anchor = described
        pairs.append((phrase, head))
        if anchor not in known or not holds(PHRASES[inner], known[head], known[anchor]):
            rest.insert(0, described)
    grounded = tuple(pair for pair in pairs if pair[1] not in GROUND_NAMES)
    return replace(request, relations=grounded or tuple(pairs))


def _described(name: str) -> tuple[str, tuple[str, str] | None]:
    """ "chair behind the desk" -> "chair", ("behind", "desk")."""
    inner = PHRASE.search(name)
    return (name[: inner.start()].rstrip(), _pairs(name[inner.start() :])[0]) if inner else (name, None)
