"""Answers and instructions: what is written reads back, what people type is understood, the rest refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.relations import ALL_RELATIONS, Place, holds
from llava_bifrost.language.answer import AnswerError, format_answer, parse_answer, satisfies
from llava_bifrost.language.instruction import (
    FORMATS,
    PHRASES,
    PUBLISHED,
    SYNONYMS,
    InstructionError,
    Request,
    make_question,
)
from llava_bifrost.language.reading import PLACE_VERBS, parse_instruction

fractions = st.floats(0, 1)
words = st.sampled_from(["cat", "dining table", "striped red cone", "tv", "man with a hat", "t-shirt"])


@st.composite
def locations(draw: st.DrawFn) -> Place:
    sides = st.lists(fractions, min_size=2, max_size=2, unique=True)
    (x0, x1), (y0, y1) = sorted(draw(sides)), sorted(draw(sides))
    far, depth, near = sorted(draw(fractions) for _ in range(3))
    box = (x0, y0, x1, y1)
    return Place.of(box, depth, far, near) if draw(st.booleans()) else Place.of(box, depth)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    if draw(st.booleans()) and draw(st.booleans()):
        return Request(draw(words.filter(lambda word: "with" not in word)), replace=True)
    pairs: list[tuple[str, str]] = []
    for phrase in draw(st.lists(st.sampled_from(sorted(PHRASES)), min_size=1, max_size=3)):
        pairs += [(phrase, draw(words)) for _ in range(2 if phrase == "between" else 1)]
    return Request(draw(words), tuple(pairs))


@given(locations(), st.sampled_from(FORMATS), st.integers(1, 6))
def test_answers_read_back(location: Place, fmt: str, decimals: int) -> None:
    text = format_answer(location, fmt, decimals)
    back = parse_answer(text)
    unit = 10**-decimals + 1e-9
    assert max(abs(a - b) for a, b in zip(back.box01_xyxy, location.box01_xyxy, strict=True)) <= unit
    assert abs(back.d - location.d) <= unit
    if fmt == "center":
        assert back.extent is None
    else:
        assert max(abs(back.far - location.far), abs(back.near - location.near)) <= unit
    assert format_answer(back, fmt, decimals) == text


def test_answers_are_written_as_published() -> None:
    location = Place.of((0.32, 0.19, 0.56, 0.87), 0.891, 0.7, 0.95)
    assert format_answer(location) == "[0.320, 0.190, 0.560, 0.870], 0.891."
    assert format_answer(location, "maxmedmin") == "[0.320, 0.190, 0.560, 0.870], 0.950, 0.891, 0.700."
    assert format_answer(location, decimals=2) == "[0.32, 0.19, 0.56, 0.87], 0.89."


@pytest.mark.parametrize(
    ("text", "box", "depths"),
    [
        ("[0.32, 0.19, 0.56, 0.87], 0.89.", (0.32, 0.19, 0.56, 0.87), (None, 0.89, None)),
        ("[.32,.19,.56,.87],.89", (0.32, 0.19, 0.56, 0.87), (None, 0.89, None)),
        ("[0.1, 0.2, 0.3, 0.4], 0.9, 0.8, 0.7.", (0.1, 0.2, 0.3, 0.4), (0.7, 0.8, 0.9)),
        ("[0.1, 0.2, 0.3, 0.4], 0.7, 0.9, 0.8", (0.1, 0.2, 0.3, 0.4), (0.7, 0.8, 0.9)),
        ("The box is (0.1 0.2 0.3 0.4) and its depth 1.", (0.1, 0.2, 0.3, 0.4), (None, 1.0, None)),
        ("0.1 0.2 0.3 0.4 0.50000</s>", (0.1, 0.2, 0.3, 0.4), (None, 0.5, None)),
        ("[0.5, 0.4, 0.3, 0.2], 5e-1.", (0.3, 0.2, 0.5, 0.4), (None, 0.5, None)),
        ("[-0.02, 0.2, 1.04, 0.4], 1.2.", (0.0, 0.2, 1.0, 0.4), (None, 1.0, None)),
    ],
)
def test_answers_are_read_tolerantly(text: str, box: tuple, depths: tuple) -> None:
    location = parse_answer(text)
    assert location.box01_xyxy == box
    far, near = location.extent or (None, None)
    assert (far, location.d, near) == depths


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "got 0 and 0"),
        ("nowhere", "4 box numbers"),
        ("[0.1, 0.2, 0.3], 0.5", "got 3 and 1"),
        ("[0.1, 0.2, 0.3, 0.4]", "got 4 and 0"),
        ("[0.1, 0.2, 0.3, 0.4], 0.5, 0.6", "got 4 and 2"),
        ("[120, 40, 300, 310], 0.5", "120 in .* is not a fraction"),
        ("[0.1, 0.2, 0.3, 0.4], 50", "50 in .* is not a fraction"),
        ("[0.1, 0.2, 0.1, 0.4], 0.5", "no area"),
        ("[1.1, 0.2, 1.2, 0.4], 0.5", "no area"),
        ("[0.1, 0.2, 0.3, 0.4x], 0.5", "got 3 and 1"),
    ],
)
def test_what_is_no_answer_is_refused(text: str, reason: str) -> None:
    with pytest.raises(AnswerError, match=reason):
        parse_answer(text)


@given(requests(), st.sampled_from(FORMATS))
def test_instructions_read_back(request: Request, fmt: str) -> None:
    question = make_question(request, fmt)
    assert parse_instruction(question) == request
    assert parse_instruction(f"  please, {question.split(', output')[0].upper()} !") == request


def test_questions_are_the_published_ones() -> None:
    place = Request("cat", (("behind", "bed"), ("to the left of", "lamp")))
    middle = "and the depth value of the center point."
    spread = "and the max, median and min depth values of the object."
    asked = "Place the cat behind the bed and to the left of the lamp, output the bounding box "
    assert make_question(place) == asked + middle
    assert make_question(place, "maxmedmin") == asked + spread
    asked = "Replace the cat with the reference image, output the bounding box "
    assert make_question(Request("cat", replace=True)) == asked + middle
    assert make_question(Request("cat", replace=True), "maxmedmin") == asked + spread
    assert len(PUBLISHED) == 17


@pytest.mark.parametrize("phrase", sorted({**PHRASES, **SYNONYMS}))
def test_every_phrase_is_read(phrase: str) -> None:
    names = "the sofa and the lamp" if SYNONYMS.get(phrase, phrase) == "between" else "the sofa"
    request = parse_instruction(f"Put the big dog {phrase} {names}, and in front of a chair.")
    assert request.target == "big dog"
    assert request.relations[0] == (SYNONYMS.get(phrase, phrase), "sofa")
    assert request.relations[-1] == ("in front of", "chair")
    assert PHRASES[request.relations[0][0]] in ALL_RELATIONS


@pytest.mark.parametrize("verb", PLACE_VERBS)
def test_every_verb_is_read(verb: str) -> None:
    assert parse_instruction(f"{verb} a cat on my sofa") == Request("cat", (("on", "sofa"),))


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        (
            "Put the X to the left of the Y and behind the Z.",
            Request("x", (("to the left of", "y"), ("behind", "z"))),
        ),
        (
            "Move the X between the Y and the Z and behind the W",
            Request("x", (("between", "y"), ("between", "z"), ("behind", "w"))),
        ),
        ("put the X, behind the Y, the Z", Request("x", (("behind", "y"), ("behind", "z")))),
        ("Could you please put X near Y", Request("x", (("near", "y"),))),
        ("Replace the old chair with a sofa.", Request("old chair", replace=True)),
        ("swap the chair for the reference image", Request("chair", replace=True)),
        ("<image>\nReplace the hot dog", Request("hot dog", replace=True)),
        ("Replace the dog on the chair", Request("dog on the chair", replace=True)),
        ("put the cat near the cup on the table", Request("cat", (("near", "cup on the table"),))),
        ("put the cat on the floor near the cup", Request("cat", (("on", "floor"), ("near", "cup")))),
        (
            "put the cat behind the bed on the left and the lamp",
            Request("cat", (("behind", "left bed"), ("behind", "lamp"))),
        ),
        ("put the music stand behind the piano", Request("music stand", (("behind", "piano"),))),
    ],  # fmt: skip
)
def test_free_forms_are_read(text: str, request_: Request) -> None:
    assert parse_instruction(text) == request_


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        ("paint the cat behind the sofa", "begins with 'paint'"),
        ("put the cat", "no known relation in 'the cat'"),
        ("put the cat inside the box", "no known relation in 'the cat inside the box'"),
        ("put behind the sofa", "missing before 'behind'"),
        ("put the cat behind", "nothing follows 'behind'"),
        ("put the cat behind the", "missing after 'behind'"),
        ("put the cat between the chairs", "'between the chairs': between needs two objects"),
        ("put the cat between A and B and C", "between needs two objects"),
        ("put the cat between the cup on the table and the lamp", "two relations need 'and'"),
        ("put the cat on the far left of the table", "'far' after 'on' is not the name"),
        ("put the cat behind the cup and the lamp on the table", "two relations need 'and'"),
        ("put the cat behind the black and the white chair", "'black' after 'behind' is not the name"),
        ("put the cat on the left", "'left' after 'on' is not the name of an object"),
        ("put the cat behind it", "'it' after 'behind'"),
        ("put the cat behind the sofa (the red one)", "not a name of plain words"),
        ("replace the cat and the dog", "takes one object, got 'the cat' and 'the dog'"),
        ("put the cat in the box on the table", "'in the box' in 'cat in the box' before 'on'"),
        ("put the cat 2 metres behind the sofa", "'2 metres' in 'cat 2 metres'"),
        ("replace", "missing after 'replace'"),
        ("put the dog on the sofa, sleeping", "'sleeping' after 'on' is not the name of an object"),
        ("put the dog on the sofa and smiling", "'smiling' after 'on' is not the name of an object"),
        ("put the dog on the sofa and make it bigger", "'and make it bigger': one object at a time"),
        ("put the dog on the sofa, then remove the lamp", "remove the lamp': one object at a time"),
        ("put the dog between the sofa, the chair and the lamp", "between needs two objects"),
        ("put the cup on the table, but closer to the edge", "closer to the edge' after 'on'"),
        ("put the dog on the sofa and far from the lamp", "'from the lamp'"),
        ("he puts the dog on the sofa", "begins with 'he'"),
    ],
)
def test_what_is_not_understood_is_named(text: str, part: str) -> None:
    with pytest.raises(InstructionError, match=part) as caught:
        parse_instruction(text)
    assert "known forms" in str(caught.value)
    assert "to the left of" in str(caught.value)


@pytest.mark.parametrize(
    ("target", "relations", "replace", "reason"),
    [
        ("cat", (), False, "at least one relation"),
        ("cat", (("behind", "bed"),), True, "has no relations"),
        ("cat", (("inside", "bed"),), False, "unknown relation 'inside'"),
        ("cat", (("between", "bed"),), False, "between needs two objects"),
        ("cat", (("between", "bed"), ("on", "bed")), False, "between needs two objects"),
        ("cat on a mat", (("behind", "bed"),), False, "cannot name an object"),
        ("cat", (("behind", "salt and pepper"),), False, "cannot name an object"),
        ("cat", (("behind", "behind the sofa"),), False, "cannot name an object"),
        ("", (("behind", "bed"),), False, "cannot name an object"),
        ("man with a hat", (), True, "with"),
    ],
)
def test_impossible_requests_are_refused(target: str, relations: tuple, replace: bool, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Request(target, relations, replace)


def test_wrong_arguments_are_refused() -> None:
    location, place = Place.of((0, 0, 1, 1), 0.5), Place((0, 0, 1, 1), 0.5, 0.4, 0.6)
    with pytest.raises(ValueError, match="unknown answer format 'xy'; allowed: center, maxmedmin"):
        format_answer(location, "xy")
    with pytest.raises(ValueError, match="decimals"):
        format_answer(location, decimals=0)
    with pytest.raises(ValueError, match="inverted"):
        Place.of((0.5, 0, 0.4, 1), 0.5)
    with pytest.raises(ValueError, match="far <= d <= near"):
        Place.of((0, 0, 1, 1), 0.5, 0.6, 0.7)
    with pytest.raises(ValueError, match="together"):
        Place.of((0, 0, 1, 1), 0.5, far=0.4)
    with pytest.raises(ValueError, match="'between' relates an object to 2, got 1"):
        holds("between", place, place)
    with pytest.raises(ValueError, match="unknown relation 'inside'"):
        holds("inside", place, place)
    with pytest.raises(ValueError, match="knows sofa, and needs to know where the bed is"):
        satisfies(location, Request("cat", (("on", "bed"),)), {"sofa": place})


SOFA = Place((0.3, 0.4, 0.7, 0.8), 0.5, 0.45, 0.55)
LAMP = Place((0.85, 0.3, 0.95, 0.7), 0.5, 0.47, 0.53)
ARRANGED = {  # relation -> a place for which it is true of the sofa
    "on": Place.of((0.4, 0.2, 0.5, 0.5), 0.5),
    "above": Place.of((0.4, 0.0, 0.5, 0.2), 0.5),
    "under": Place.of((0.4, 0.6, 0.6, 0.8), 0.5),
    "in front of": Place.of((0.4, 0.5, 0.6, 0.9), 0.8),
    "behind": Place.of((0.4, 0.2, 0.6, 0.6), 0.2),
    "next to": Place.of((0.1, 0.5, 0.28, 0.8), 0.5),
    "left of": Place.of((0.05, 0.5, 0.2, 0.8), 0.3),
    "right of": Place.of((0.75, 0.5, 0.8, 0.8), 0.7),
}


@pytest.mark.parametrize("relation", sorted(ARRANGED))
def test_every_relation_is_decided_in_depth(relation: str) -> None:
    there = ARRANGED[relation]
    assert holds(relation, there, SOFA)
    if relation in ("in front of", "behind"):
        assert not holds(relation, Place.of(there.box01_xyxy, 0.5), SOFA)
    elif relation not in ("left of", "right of"):
        assert not holds(relation, Place.of(there.box01_xyxy, 0.95), SOFA)
    opposite = {"above": "under", "under": "above", "on": "under", "in front of": "behind"}
    opposite |= {"left of": "right of", "right of": "left of", "behind": "in front of"}
    if relation in opposite:
        assert holds(opposite[relation], SOFA, there)
        assert not holds(opposite[relation], there, SOFA)


def test_between_is_decided_beside_and_in_depth() -> None:
    near = Place((0.3, 0.6, 0.7, 1.0), 0.8, 0.75, 0.85)
    for box, depth, anchors, true in (
        ((0.74, 0.5, 0.8, 0.7), 0.5, (SOFA, LAMP), True),
        ((0.74, 0.5, 0.8, 0.7), 0.5, (LAMP, SOFA), True),
        ((0.74, 0.5, 0.8, 0.7), 0.9, (SOFA, LAMP), False),
        ((0.1, 0.5, 0.2, 0.7), 0.5, (SOFA, LAMP), False),
        ((0.4, 0.5, 0.6, 0.9), 0.65, (SOFA, near), True),
        ((0.4, 0.5, 0.6, 0.9), 0.9, (SOFA, near), False),
    ):
        assert holds("between", Place.of(box, depth), *anchors) == true


def test_a_request_is_judged_clause_by_clause() -> None:
    request = parse_instruction("Put the cat between the Sofa and the lamp and behind the sofa")
    found = satisfies(Place.of((0.74, 0.5, 0.8, 0.7), 0.5), request, {"Sofa": SOFA, "lamp": LAMP})
    assert found == {"between the sofa and the lamp": True, "behind the sofa": False}
    replaced = Request("sofa", replace=True)
    assert satisfies(Place.of(SOFA.box01_xyxy, 0.5), replaced, {"sofa": SOFA}) == {"replace the sofa": True}
    assert satisfies(Place.of((0, 0, 0.3, 0.3), 0.5), replaced, {"sofa": SOFA}) == {"replace the sofa": False}
    assert satisfies(Place.of((0, 0, 0.3, 0.3), 0.5), replaced, {}) == {}
