"""The JSON Schema of every command: valid, complete, and of one mind with the settings."""

import json

import jsonschema
import pytest

from compose.schema import command_modules, command_schema, verbs_of
from compose.settings import CompositeSettings
from ldm.settings.cli import run_app
from ldm.settings.config import Layer, merge_layers
from ldm.settings.schema import flat_settings
from run_inference import build_app

BODIES = {title: body for module in command_modules() for title, body in verbs_of(module)}
SCHEMAS = {title: command_schema(title, body) for title, body in BODIES.items()}
PLACED = {"background": "a.png", "object": "b.png", "box": [0.1, 0.2, 0.3, 0.4]}


def test_every_command_has_a_valid_schema_with_helps_and_fitting_defaults():
    assert len(SCHEMAS) > 80
    for title, schema in SCHEMAS.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["title"].endswith(title)
        assert schema["description"], title
        assert set(schema["required"]) <= set(schema["properties"])
        for name, entry in schema["properties"].items():
            assert entry.get("description"), f"{title}: {name} has no help"
            assert ("default" in entry) <= (name not in schema["required"])
            if "default" in entry:
                jsonschema.validate(entry["default"], entry)
        assert json.loads(json.dumps(schema, allow_nan=False)) == schema


@pytest.mark.parametrize(
    ("title", "name", "entry"),
    [
        (
            "run_inference.py image",
            "seed",
            {"type": "integer", "minimum": 0, "maximum": 2**32 - 1, "default": 0},
        ),
        ("run_inference.py image", "out", {"type": "string", "default": "outputs/composite.png"}),
        ("inpainting.dream", "masks", {"type": "array", "items": {"type": "string"}, "default": []}),
        ("run_train_bifrost.py", "train.lr", {"type": "number"}),
        ("ldm.registry pull", "name", {"type": "string"}),
    ],
)
def test_settings_stand_in_the_schema(title, name, entry):
    found = SCHEMAS[title]["properties"][name]
    assert {key: found[key] for key in entry} == entry


@pytest.mark.parametrize(
    "title", ["run_inference.py image", "inpainting.paint", "llava_bifrost.predict image"]
)
def test_schema_has_exactly_the_settings(title):
    settings = BODIES[title].callback.schema
    assert set(SCHEMAS[title]["properties"]) == set(flat_settings(settings))


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ({}, True),
        ({"steps": 20, "guidance": 3.5, "mode": "replace", "depth": [0.2, 0.4]}, True),
        ({"object": None}, False),
        ({"steps": 0}, False),
        ({"steps": 1001}, False),
        ({"steps": 2.5}, False),
        ({"mode": "palce"}, False),
        ({"box": [0.1, 0.2]}, False),
        ({"stepz": 3}, False),
        ({"offload": "maybe"}, False),
    ],
    ids=str,
)
def test_schema_and_settings_take_and_refuse_the_same(given, fits):
    values = {name: value for name, value in {**PLACED, **given}.items() if value is not None}
    problems = list(jsonschema.Draft202012Validator(SCHEMAS["run_inference.py image"]).iter_errors(values))
    assert (not problems) == fits
    if fits:
        merge_layers(CompositeSettings, [Layer(values)])
    else:
        with pytest.raises(ValueError, match=next(iter(given))):
            merge_layers(CompositeSettings, [Layer(values)])


@pytest.mark.parametrize(
    ("words", "titles"),
    [
        (["image"], ["run_inference.py image"]),
        (["run_inference.py replay"], ["run_inference.py replay"]),
        (["inpainting.paint"], ["inpainting.paint"]),
        ([], list(SCHEMAS)),
    ],
    ids=str,
)
@pytest.mark.parametrize("plain", [True, False])
def test_schema_is_printed(capsys, words, titles, plain):
    assert run_app(build_app, ["schema", *words, *([] if plain else ["--json"])]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {title: SCHEMAS[title] for title in titles}


def test_unknown_command_is_refused(capsys):
    assert run_app(build_app, ["schema", "inpainting.pait"]) == 2
    assert "unknown command 'inpainting.pait'; did you mean 'inpainting.paint'?" in capsys.readouterr().err
