"""Job files: what they may hold, and what is refused in words that name file, layer and key."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from compose.job import read_job
from compose.layering import compose_layers
from ldm.settings.cli import run_app
from run_inference import build_app

BOX = [0.1, 0.2, 0.5, 0.6]
ROOM, CAT = "assets/examples/tent/room.png", "assets/examples/tent/object.png"
OBJECT = {"object": CAT, "box": BOX}


def job(*layers: Any, **more: Any) -> dict[str, Any]:
    return {"background": ROOM, **more, "layers": list(layers)}


KINDS = {
    "object": (OBJECT, "object", "object"),
    "named object": ({**OBJECT, "name": "The  Cat"}, "object", "the cat"),
    "text": ({"text": "a red cube", "box": BOX}, "text", "red cube"),
    "text in a mask": ({"text": "a red cube", "mask": CAT, "negative": "a ball"}, "text", "red cube"),
    "texts": ({"text": ["a cube", "a ball"], "masks": [CAT, CAT], "name": "two"}, "text", "two"),
    "erase": ({"erase": "the Chair"}, "erase", "chair"),
    "move": ({"move": "lamp", "to": "behind the sofa"}, "move", "lamp"),
    "move to a box": ({"move": "lamp", "box": BOX, "depth": 0.5}, "move", "lamp"),
    "replace by an object": ({"replace": "dog", "object": CAT}, "replace", "dog"),
    "replace by a text": ({"replace": "dog", "text": "a red cube"}, "replace", "dog"),
    "said": ({"say": "Remove the chair"}, "erase", "chair"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_of_the_kind_that_its_key_says(kind):
    layer, expected, name = KINDS[kind]
    (found,) = read_job(job(layer)).layers
    assert (found.kind, found.name) == (expected, name)


def test_settings_of_the_job_hold_for_all_layers_and_those_of_a_layer_come_first():
    layers = [OBJECT, {"text": "a cube", "box": BOX, "seed": 9}, {"erase": "chair", "grow": 0.02}]
    shared = {"seed": 4, "steps": 3, "guidance": 2.5, "grow": 0.05, "inpainter": "assets/tiny/inpainter"}
    first, second, third = read_job(job(*layers, **shared)).layers
    assert (first.settings.seed, first.settings.steps, first.settings.guidance) == (4, 3, 2.5)
    assert (second.settings.seed, second.settings.steps, str(second.settings.model)) == (
        9,
        3,
        shared["inpainter"],
    )
    assert (third.find.seed, third.find.grow) == (4, 0.02)
    assert first.settings.model is None


def test_settings_of_single_commands_reach_their_layer_unchanged():
    more = {
        "detail": 0.5,
        "strength": 0.3,
        "mode": "place",
        "object_box": BOX,
        "scheduler": "ddim",
        "speed": "fast",
    }
    (first, second) = read_job(
        job({**OBJECT, **more}, {"text": "a", "box": BOX, "feather": 0.1, "rca": False})
    ).layers
    assert {key: getattr(first.settings, key) for key in more} == {**more, "object_box": tuple(BOX)}
    assert (second.settings.feather, second.settings.rca) == (0.1, False)


def test_sentences_become_layers_in_their_order():
    text = "Remove the chair and move the lamp behind the sofa. Replace the dog with the cat"
    layers = read_job(job({"say": text, "seed": 7}, objects={"Cat": CAT})).layers
    assert [(layer.kind, layer.name) for layer in layers] == [
        ("erase", "chair"), ("move", "lamp"), ("replace", "dog"),
    ]  # fmt: skip
    assert [layer.find.seed for layer in layers] == [7, 7, 7]
    assert layers[1].settings.instruction == "place the lamp behind the sofa"
    assert (layers[2].called, Path(layers[2].settings.object)) == ("cat", Path(CAT))
    (painted,) = read_job(job({"say": "Replace the dog with a red cube"})).layers
    assert (painted.settings.prompts, painted.called) == (("a red cube",), "a red cube")


def test_json_and_yaml_say_the_same_and_a_base_is_changed(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(job(OBJECT)))
    (tmp_path / "a.yaml").write_text(f"background: {ROOM}\nlayers:\n- {{object: {CAT}, box: {BOX}}}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nseed: 5\n")
    one, two, three = (read_job(tmp_path / name) for name in ("a.json", "a.yaml", "b.yaml"))
    assert one.layers[0].settings == two.layers[0].settings
    assert three.layers[0].settings.seed == 5
    assert one.layers[0].settings.object == tmp_path / CAT


WRONG = {
    "no background": ({"layers": [OBJECT]}, "job: missing background"),
    "no layers": ({"background": ROOM}, "job: layers must be a list of layers, got None"),
    "empty layers": (job(), r"job: layers must be a list of layers, got \[\]"),
    "layers no list": ({"background": ROOM, "layers": {"erase": "a"}}, "job: layers must be a list"),
    "unknown key of the job": (job(OBJECT, sed=3), "job: unknown key 'sed'; did you mean 'seed'"),
    "no kind": (job({"mask": CAT}), "job: layer 1: a layer has one of say, replace, move, erase, text, object, got"),
    "no mapping": (job(OBJECT, "erase"), "job: layer 2: a layer has one of"),
    "unknown key": (job({**OBJECT, "depht": 1}), r"layer 1 \(object object\): unknown key 'depht'; did you mean 'depth'"),
    "key of another kind": (job({"erase": "a", "depth": 1}), r"layer 1 \(erase a\): unknown key 'depth'"),
    "no place": (job({"object": CAT}), r"layer 1 \(object object\): .*is needed: where to paint"),
    "inverted box": (job({**OBJECT, "box": BOX[::-1]}), r"layer 1 \(object object\): .*it is inverted"),
    "depth too large": (job({**OBJECT, "depth": 1.5}), "--depth must be d or far,near"),
    "seed of another type": (job({**OBJECT, "seed": "x"}), r"layer 1 \(object object\): seed must be int, got 'x'"),
    "background in a layer": (job({**OBJECT, "background": ROOM}), "unknown key 'background'"),
    "empty name": (job({"erase": ""}), "job: layer 1: erase must be a text, got ''"),
    "no name": (job({"erase": None, "mask": CAT}), "job: layer 1: a layer has one of"),
    "name a number": (job({"move": 3, "box": BOX}), "job: layer 1: move must be a text, got 3"),
    "twice the name": (job(OBJECT, OBJECT), "job: two objects are called 'object'; give each a name of its own"),
    "text nowhere": (job({"text": "a"}), r"layer 1 \(text a\): either mask: FILE or box"),
    "text twice": (job({"text": "a", "box": BOX, "mask": CAT}), r"layer 1 \(text a\): either mask: FILE or box"),
    "text's box": (job({"text": "a", "box": [0, 0, 2, 1]}), r"layer 1 \(text a\): box must be x1,y1,x2,y2.*leaves the"),
    "text's depth": (job({"text": "a", "box": BOX, "depth": 2}), r"\(text a\): depth must be a number in \[0, 1\], got 2"),
    "samples of a text": (job({"text": "a", "box": BOX, "num_samples": 2}), "num_samples must be 1"),
    "replace by nothing": (job({"replace": "a"}), r"layer 1 \(replace a\): either object: FILE or text: PROMPT"),
    "replace by both": (job({"replace": "a", "object": CAT, "text": "b"}), "either object: FILE or text: PROMPT"),
    "move nowhere": (job({"move": "a"}), r"layer 1 \(move a\): either to: WORDS or box: \[x1, y1, x2, y2\] says"),
    "move to words": (job({"move": "cup", "to": "yonder", "locator": "geometric"}), r"\(move cup\): .*known relation"),
    "sentence": (job({"say": "Rotate the lamp"}), "job: layer 1: 'rotate the lamp': it begins with 'rotate'"),
    "no object given": (
        job({"say": "Place the cat on the bed"}, objects={"dog": CAT}),
        r"job: layer 1: no image of the cat is given in objects \(given: dog\)",
    ),
    "objects": (job(OBJECT, objects=[CAT]), "objects must be images by name"),
}  # fmt: skip
# ruff: noqa: E501  a case a line


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case):
    values, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as caught:
        read_job(values)
    assert "\n" not in str(caught.value)


ABSENT = {
    "background": (job({"erase": "a"}, background="none.png"), "none.png"),
    "object": (
        job({"object": "none.png", "box": BOX}),
        r"layer 1 \(object none\): object: none.png is not a file",
    ),
    "mask": (job({"erase": "a", "mask": "none.png"}), r"layer 1 \(erase a\): cannot read none.png"),
    "eraser": (job({"erase": "a", "eraser": "none.pt"}), r"layer 1 \(erase a\): eraser none.pt: neither"),
    "model": (job(OBJECT, model="none"), "none"),
    "anchors": (job({"erase": "a", "anchors": "none.json"}), "none.json"),
    "text model": (job({"text": "a", "box": BOX}, inpainter="none"), r"layer 1 \(text a\): .*none"),
}


@pytest.mark.parametrize("case", ABSENT)
def test_missing_files_are_found_before_any_work(case, monkeypatch):
    values, message = ABSENT[case]
    monkeypatch.setattr("compose.layering.apply_layer", lambda *given: pytest.fail("work began"))
    with pytest.raises(ValueError, match=message):
        compose_layers(values)


@pytest.mark.parametrize("text", ["", "[1, 2]", "layers: [", "background: a.png\nbackground: b.png\n"])
def test_files_that_are_no_jobs_are_refused_by_name(tmp_path, text, capsys):
    (tmp_path / "a.yaml").write_text(text)
    assert run_app(build_app, ["job", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "out.png")]) == 2
    assert re.match(rf"error: {re.escape(str(tmp_path / 'a.yaml'))}: ", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]
