"""Sentences as people type them: some were written before the writer knew the reader's rules."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from datasets.relations import Place
from llava_bifrost.language.instruction import PHRASES, InstructionError
from llava_bifrost.language.reading import parse_instruction, reproduces, with_known_names
from llava_bifrost.locator import Locator

PARTS = ("unseen", "seen", "later")


def sentences(half: str) -> list[dict[str, Any]]:
    path = Path(__file__).parent.parent / "fixtures" / "sentences" / f"{half}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def bare(name: str) -> str:
    """Without articles."""
    return " ".join(word for word in name.split() if word not in ("the", "a", "an"))


def judged(sentence: dict[str, Any]) -> str:
    """right, wrong, refused (a sentence with a reading), or guessed (one without)."""
    try:
        request = parse_instruction(sentence["text"])
    except InstructionError as error:
        if "refuse" not in sentence:
            return "refused"
        said = str(error).split("; known forms")[0].lower()
        return "right" if any(word.lower() in said for word in sentence["refuse"]) else "wrong"
    if "refuse" in sentence:
        return "guessed"
    if "replace" in sentence:
        return "right" if request.replace and request.target == sentence["replace"] else "wrong"
    read = [[PHRASES[phrase], *map(bare, names)] for phrase, names in request.clauses]
    readings = sentence["at"], sentence.get("also", sentence["at"])
    allowed = [[[word, *map(bare, names)] for word, *names in reading] for reading in readings]
    return "right" if request.target == sentence["place"] and read in allowed else "wrong"


@pytest.mark.parametrize("half", PARTS)
def test_sentences_are_read_rightly_or_refused(half: str) -> None:
    found = [(judged(sentence), sentence) for sentence in sentences(half)]
    answerable = [verdict for verdict, sentence in found if "refuse" not in sentence]
    answered = [verdict for verdict in answerable if verdict != "refused"]
    assert len(answered) >= 0.9 * len(answerable)
    assert answered.count("right") >= 0.9 * len(answered)
    assert not [sentence["text"] for verdict, sentence in found if verdict == "guessed"]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Place the dog behind the sofa", True),
        ("please put a dog behind the SOFA!", True),
        (
            "Put the dog behind the sofa, output the bounding box and the depth value of the center point.",
            True,
        ),
        ("Replace the dog with the cat", True),
        ("Place the dog close to the sofa", False),  # the reading says "near"
        ("Place the dog just behind the sofa", False),
        ("There should be a dog behind the sofa", False),
        ("Place the dog behind the sofa on the left", False),  # "the left sofa"
    ],
)
def test_a_reading_is_asked_only_where_it_reproduces_the_sentence(text: str, same: bool) -> None:
    assert reproduces(parse_instruction(text), text) is same


def test_an_open_vocabulary_model_is_asked_the_sentence_of_the_user() -> None:
    asked = {closed: [] for closed in (True, False)}
    for closed, questions in asked.items():
        config = SimpleNamespace(format="center")
        grammar = SimpleNamespace(spelling_of=lambda word: word)
        locator = SimpleNamespace(closed=closed, config=config, grammar=grammar)
        for text in ("Put the Dog close to the sofa!", "Put the dog near the sofa"):
            questions.append(Locator.question(locator, text, parse_instruction(text)))
    tail = ", output the bounding box and the depth value of the center point."
    assert asked[True] == ["Place the dog near the sofa" + tail] * 2
    assert asked[False] == ["Put the Dog close to the sofa" + tail, "Place the dog near the sofa" + tail]


CHAIR = Place.of((0.1, 0.4, 0.3, 0.8), 0.5)
DESK = Place.of((0.28, 0.4, 0.6, 0.8), 0.5)  # right of the chair, beside it
DOG = Place.of((0.35, 0.3, 0.45, 0.5), 0.5)


@pytest.mark.parametrize(
    ("text", "relations"),
    [
        ("Put the cat on the chair next to the desk", [("on", "chair")]),  # true of the chair
        ("Put the cat on the desk to the right of the dog", [("on", "desk"), ("to the right of", "dog")]),
        ("Put the cat on the floor behind the chair", [("behind", "chair")]),
        ("Put the cat on the floor", [("on", "floor")]),  # nothing else would be left
        ("Put the cat on the stool next to the desk", [("on", "stool next to the desk")]),  # to be found
        (
            "Put the cat behind the desk and on the chair next to the desk",
            [("behind", "desk"), ("on", "chair")],
        ),
    ],
)
def test_what_describes_a_known_object_tells_which_is_meant(text: str, relations: list) -> None:
    known = {"chair": CHAIR, "desk": DESK, "dog": DOG}
    assert list(with_known_names(parse_instruction(text), known).relations) == relations


def test_a_described_object_is_replaced_by_its_known_name() -> None:
    request = parse_instruction("Replace the dog on the chair with the cat")
    assert with_known_names(request, {"dog": DOG}).target == "dog"
    assert with_known_names(request, {"dog on the chair": DOG, "dog": CHAIR}).target == "dog on the chair"
    assert with_known_names(request, {}).target == "dog on the chair"


@pytest.mark.parametrize(
    ("text", "target", "relations"),
    [
        ("put the cat behind both the sofa and the lamp", "cat", (("behind", "sofa"), ("behind", "lamp"))),
        ("a cat sleeping on the bed", "cat", (("on", "bed"),)),
        ("the dog should be asleep beside the bed", "dog", (("beside", "bed"),)),
        ("Put a bird flying above the house", "bird", (("above", "house"),)),
        ("the cat is curled up on the sofa", "cat", (("on", "sofa"),)),
        ("put the oil painting on the sofa", "oil painting", (("on", "sofa"),)),
        ("put a running shoe on the chair", "running shoe", (("on", "chair"),)),
        ("put the all-terrain bike behind the car", "all-terrain bike", (("behind", "car"),)),
    ],
)
def test_what_an_object_does_is_no_part_of_its_name(text: str, target: str, relations: tuple) -> None:
    request = parse_instruction(text)
    assert (request.target, request.relations) == (target, relations)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("put a cup on every table", "'every' in"),
        ("put the dog next to any chair", "'any' in"),
        ("put a slipper next to each bed", "'each' in"),
        ("put all chairs behind the table", "'all' in"),
        ("put the dog next to one of the chairs", "'one of' in"),
        ("put some of the cups on the table", "'some of' in"),
        ("put both the dog and the cat on the sofa", "one object at a time"),
    ],
)
def test_what_leaves_a_choice_or_asks_for_several_is_refused(text: str, part: str) -> None:
    with pytest.raises(InstructionError, match=part):
        parse_instruction(text)
