"""Where named objects are: typed by hand, found, or asked for in one error that shows every way."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from compose import ComposeSettings
from datasets.relations import Place
from ldm.images import read_image, write_depth, write_png
from ldm.settings.cli import run_app
from ldm.settings.config import write_config
from ldm.settings.schema import flat_settings
from llava_bifrost.language.answer import named_places
from llava_bifrost.language.reading import parse_instruction
from llava_bifrost.locator import CONFIG, LocatorConfig
from llava_bifrost.predict.__main__ import build_app
from llava_bifrost.propose import read_anchors
from llava_bifrost.settings import LocatorOptions, PredictImage, PredictJobs
from tests.ldm.small_mllm import small_folder

IMAGE = np.random.default_rng(1).integers(0, 255, (70, 90, 3), dtype=np.uint8)


WAYS = [  # in this order
    "--detector FOLDER",
    "python -m ldm.registry pull detector",
    "--anchors FILE.json",
    'python -m llava_bifrost.predict anchors --image IMAGE --out FILE.json "backpack=x1,y1,x2,y2"',
    "--box x1,y1,x2,y2",
]


@pytest.mark.parametrize("locator", ["llava_words", "geometric"])
def test_one_error_shows_every_way_to_an_unknown_object(tmp_path: Path, capsys, locator: str):
    write_png(tmp_path / "room.png", IMAGE)
    if locator != "geometric":
        locator = str(small_folder("llava_words", tmp_path / "locator"))
        write_config(Path(locator) / CONFIG, LocatorConfig(decimals=2))
    flags = ["--image", str(tmp_path / "room.png"), "--locator", locator]
    assert run_app(build_app, ["image", *flags, "--instruction", "Place the dog behind the backpack"]) == 2
    shown = capsys.readouterr().err
    assert shown.partition("error: ")[2].count("\n") == 1
    places = [shown.index(way) for way in WAYS]
    assert places == sorted(places)
    assert "--locator geometric" in shown[: places[0]]


CUP = {"Cup": Place((0.1, 0.2, 0.3, 0.4), 0.5, 0.4, 0.7)}


@pytest.mark.parametrize(
    ("sentence", "known", "said"),
    [
        (
            "Place the dog between the cup and the jug",
            {},
            'the cup and the jug is: .*"cup=x1,y1,x2,y2" "jug=',
        ),
        ("Place the dog between the cup and the jug", CUP, "knows cup, and needs to know where the jug is"),
        ("Replace the dog", {}, "knows nothing else, and needs to know where the dog is"),
    ],
)
def test_every_absent_object_is_named_with_what_is_typed_for_it(sentence: str, known: dict, said: str):
    with pytest.raises(ValueError, match=said):
        named_places(parse_instruction(sentence), known)


BOXES = {
    "fractions": ("sofa=0.1,0.4,0.6,0.9", [0.1, 0.4, 0.6, 0.9], None),
    "pixels": ("sofa=12px,45px,60px,90px", [0.1, 0.5, 0.5, 1.0], None),
    "mixed": ("sofa=12px,0.5,0.5,90px", [0.1, 0.5, 0.5, 1.0], None),
    "with a depth": ("sofa=0.1,0.4,0.6,0.9,0.25", [0.1, 0.4, 0.6, 0.9], 0.25),
    "spaces": ("sofa = 0.1, 0.4, 0.6, 0.9", [0.1, 0.4, 0.6, 0.9], None),
}


@pytest.mark.parametrize("name", BOXES)
def test_anchors_typed_by_hand_are_read_back(tmp_path: Path, capsys, name: str):
    text, box, depth = BOXES[name]
    write_png(tmp_path / "room.png", np.full((90, 120, 3), 90, np.uint8))
    out = tmp_path / "new" / "anchors.json"
    argv = ["anchors", text, "The Cup=0.7,0.1,0.9,0.3,1", "--out", str(out), "--json"]
    assert run_app(build_app, [*argv, "--image", str(tmp_path / "room.png")]) == 0
    assert json.loads(capsys.readouterr().out)["anchors"] == json.loads(out.read_text())
    depth_01 = np.full((90, 120), 0.5, np.float32)
    found = read_anchors(out, depth_01)
    assert set(found) == {"sofa", "the cup"}
    assert np.allclose(found["sofa"].box01_xyxy, box)
    assert found["sofa"].d == (0.5 if depth is None else depth)
    assert found["the cup"].d == 1
    shown = read_image(out.with_name("anchors_boxes.png")).rgb_u8
    h, w = shown.shape[:2]
    row, left, right = round((box[1] + box[3]) / 2 * h), round(box[0] * w), round(box[2] * w)
    assert (shown[row, [left, right]] > 200).all()  # both sides of the sofa's box, which is white
    assert (shown[row, (left + right) // 2] < 120).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sofa", "'sofa' is neither NAME=X1,Y1,X2,Y2 nor NAME=X1,Y1,X2,Y2,DEPTH"),
        ("=0,0,1,1", "'=0,0,1,1' is neither NAME=X1,Y1,X2,Y2 nor"),
        ("sofa=0,0,1", "'sofa=0,0,1' is neither NAME=X1,Y1,X2,Y2 nor"),
        ("sofa=0,0,1,x", "'sofa=0,0,1,x': could not convert string to float: 'x'"),
        ("sofa=0,0,1,90", "sofa: box must be x1,y1,x2,y2 in fractions of the image"),
        ("sofa=0.5,0,0.1,1", "it is inverted"),
        ("sofa=0,0,121px,1", "it leaves the image"),
        ("sofa=0,0,1,1,2", "depth must lie in [0, 1] (1 = nearest), got 2.0"),
        ("cup=0,0,1,1,0.5", "'cup' is there twice"),
    ],
)
def test_wrong_boxes_are_one_line_and_nothing_is_written(tmp_path: Path, capsys, text: str, reason: str):
    image, out = tmp_path / "room.png", tmp_path / "anchors.json"
    write_png(image, np.full((90, 120, 3), 90, np.uint8))
    argv = ["anchors", text, "cup=0.7,0.1,0.9,0.3,1", "--image", str(image), "--out", str(out)]
    assert run_app(build_app, argv) == 2
    shown = capsys.readouterr().err
    assert reason in shown
    assert shown.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["room.png"]


@pytest.mark.parametrize("name", ["anchors.json", "anchors_boxes.png"])
def test_anchors_overwrite_nothing(tmp_path: Path, name: str):
    write_png(tmp_path / "room.png", IMAGE)
    (tmp_path / name).write_text("mine")
    argv = ["--image", str(tmp_path / "room.png"), "--out", str(tmp_path / "anchors.json")]
    argv = ["anchors", "sofa=0.1,0.4,0.6,0.9", *argv]
    assert run_app(build_app, argv) == run_app(build_app, argv) == 0  # the second keeps nothing twice
    kept = tmp_path / name.replace(".", ".old1.")
    assert kept.read_text() == "mine"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"room.png", "anchors.json", "anchors_boxes.png", kept.name}


@pytest.mark.parametrize("missing", ["anchors.json", "anchors_boxes.png"])
def test_anchors_that_were_interrupted_are_written_again(tmp_path: Path, missing: str):
    write_png(tmp_path / "room.png", IMAGE)
    argv = ["--image", str(tmp_path / "room.png"), "--out", str(tmp_path / "anchors.json")]
    argv = ["anchors", "sofa=0.1,0.4,0.6,0.9", *argv]
    assert run_app(build_app, argv) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / missing).unlink()
    assert run_app(build_app, argv) == 0
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir() if ".old" not in path.name}
    assert left == before


@pytest.mark.parametrize(("image", "out"), [("a_boxes.png", "a.json"), ("room.png", "room.png")])
def test_anchors_do_not_replace_their_image(tmp_path: Path, capsys, image: str, out: str):
    write_png(tmp_path / image, IMAGE)
    argv = ["anchors", "sofa=0.1,0.4,0.6,0.9", "--image", str(tmp_path / image), "--out", str(tmp_path / out)]
    assert run_app(build_app, argv) == 2
    assert f"{tmp_path / image} would be overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [image]


def test_the_geometric_locator_answers_here_as_in_a_composite(tmp_path: Path, capsys, small_depth_network):
    """Boxes without a depth, one image and a file of jobs; the anchors alone choose the geometric locator."""
    write_png(tmp_path / "room.png", IMAGE)
    write_depth(
        tmp_path / "depth.png", np.linspace(0, 1, IMAGE.shape[0] * IMAGE.shape[1]).reshape(IMAGE.shape[:2])
    )
    (tmp_path / "anchors.json").write_text(
        '{"crate": {"box": [0.6, 0.4, 0.8, 0.8]}, "lamp": {"box": [0.1, 0.5, 0.2, 0.8]}}'
    )
    sentence = "Replace the crate"
    flags = ["--anchors", str(tmp_path / "anchors.json"), "--depth-model", str(small_depth_network)]
    one = ["image", "--image", str(tmp_path / "room.png"), "--instruction", sentence, "--json", *flags]
    sheet = ["--out", str(tmp_path / "sheet.png")]
    assert run_app(build_app, [*one, *sheet, "--depth", str(tmp_path / "depth.png")]) == 0
    assert (read_image(tmp_path / "sheet.png").rgb_u8 == 250).all(axis=2).any()  # the box of the lamp
    (answer,) = json.loads(capsys.readouterr().out)["candidates"]
    assert answer["box01_xyxy"] == [0.6, 0.4, 0.8, 0.8]
    assert 0.75 < answer["depth"] < 0.85  # of the ground at its foot
    jobs = tmp_path / "jobs.jsonl"
    own = {"crate": {"box": [0.1, 0.4, 0.3, 0.8]}}
    rows = [
        {"image": "room.png", "instruction": sentence},
        {"image": "room.png", "instruction": sentence, "anchors": own},
    ]
    jobs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_app(build_app, ["jsonl", "--jobs", str(jobs), *flags]) == 0
    lines = [json.loads(line) for line in jobs.with_name("jobs.answers.jsonl").read_text().splitlines()]
    assert [line["candidates"][0]["box01_xyxy"][0] for line in lines] == [0.6, 0.1]


def test_the_locator_options_are_those_of_a_composite():
    shared = {field.name for field in fields(LocatorOptions)}
    assert shared == {"locator", "anchors", "detector", "load_in", "candidates", "relative_size"}
    for settings in (ComposeSettings, PredictImage, PredictJobs):
        flat = flat_settings(settings)
        assert {name: flat[name][0].metadata["help"] for name in shared} == {
            field.name: field.metadata["help"] for field in fields(LocatorOptions)
        }
