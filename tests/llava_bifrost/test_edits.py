"""Sentences that edit: which verb, which object, and where; several in a row; what is refused, in words."""

import pytest

from llava_bifrost.language.edits import Edit, parse_edits
from llava_bifrost.language.instruction import InstructionError

READ = {
    "Move the lamp behind the sofa": [Edit("move", "lamp", "place the lamp behind the sofa")],
    "Remove the chair.": [Edit("erase", "chair")],
    "Replace the dog with the cat": [Edit("replace", "dog", by="the cat")],
    "please delete the red cube!": [Edit("erase", "red cube")],
    "Get rid of the vase": [Edit("erase", "vase")],
    "Erase the chair behind the desk": [Edit("erase", "chair behind the desk")],
    "Swap the black and white cat for a brown dog": [
        Edit("replace", "black and white cat", by="a brown dog")
    ],
    "Bring the plant in front of the table": [Edit("move", "plant", "place the plant in front of the table")],
    "Could you shift the lamp to the left of the bed?": [
        Edit("move", "lamp", "place the lamp to the left of the bed")
    ],
    "Put a dog on the bench": [Edit("object", "dog", "put a dog on the bench")],
    "Remove the chair and the table": [Edit("erase", "chair"), Edit("erase", "table")],
    "Remove the chair and move the lamp behind the sofa. Then replace the dog with the cat": [
        Edit("erase", "chair"),
        Edit("move", "lamp", "place the lamp behind the sofa"),
        Edit("replace", "dog", by="the cat"),
    ],
    "Place the cat on the sofa and to the left of the lamp, then remove the vase": [
        Edit("object", "cat", "place the cat on the sofa and to the left of the lamp"),
        Edit("erase", "vase"),
    ],
    "Delete the cup; erase the plate\nremove the spoon": [
        Edit("erase", "cup"),
        Edit("erase", "plate"),
        Edit("erase", "spoon"),
    ],
}


@pytest.mark.parametrize("text", READ)
def test_sentences_are_read(text: str):
    assert parse_edits(text) == READ[text]


REFUSED = {
    "": "the instruction is empty",
    " . ": "the instruction is empty",
    "Replace the dog": "'Replace the dog' does not say what comes instead: Replace the X with the Y",
    "Move the lamp to the left": "'Move the lamp to the left': .*no known relation",
    "Move the lamp": "'Move the lamp': .*no known relation",
    "Remove it": "'Remove it': 'it' after the verb is not the name of an object; known forms: Remove the X",
    "Remove the dog from the sofa": "'from the sofa' in 'dog from the sofa' after the verb is not a known",
    "Do not remove the chair": "only one definite place is read, no negation",
    "Rotate the lamp": "it begins with 'rotate', which is not a known verb",
    "Remove the chair. Paint the wall": "it begins with 'paint'",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_understood_is_named(text: str):
    with pytest.raises(InstructionError, match=REFUSED[text]):
        parse_edits(text)
