"""Jobs as commands: replay, sentences, what cannot be found; texts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compose import compose_layers
from compose.verbs import JobNetworks
from ldm.images import read_image, write_png
from ldm.settings.cli import run_app
from run_inference import build_app
from tests.compose.rendered import CAPSULE, TORUS, Room
from tests.compose.test_job_results import layers_of

NETWORKS = JobNetworks()


def command(*words: str | Path) -> int:
    return run_app(build_app, [str(word) for word in words])


@pytest.fixture
def written(room, tmp_path) -> Path:
    """A job file, done by the command."""
    file = tmp_path / "job.json"
    file.write_text(json.dumps(room.job(*layers_of(room), empty=True)))
    assert command("job", file, "--out", tmp_path / "a.png", "--layers") == 0
    return tmp_path / "a.png"


def test_a_job_is_replayed_to_the_byte(written, capsys):
    assert command("replay", written, "--out", written.with_name("b.png")) == 0
    assert written.read_bytes() == written.with_name("b.png").read_bytes()
    report = json.loads(written.with_suffix(".json").read_text())
    assert report["drift"]["changed_outside"] == 0
    assert [entry["name"] for entry in report["layers"]] == ["far", "near", "middle", "it", "far", "far"]
    assert written.with_name("a_layers.ora").is_file()


def test_a_moved_background_is_named_and_a_changed_one_is_refused(written, room, capsys):
    moved = written.with_name("moved.png")
    moved.write_bytes((room.folder / "without.png").read_bytes())
    assert command("replay", written, "--background", moved, "--out", written.with_name("b.png")) == 0
    assert np.array_equal(read_image(written).rgb_u8, read_image(written.with_name("b.png")).rgb_u8)
    write_png(moved, room.with_u8)
    for option, file, reason in (
        ("--background", moved, "the background or its depth map has changed since"),
        ("--object", moved, "only --background and --background-depth are found elsewhere"),
        ("--background", written.with_name("none.png"), "none.png"),
    ):
        assert command("replay", written, option, file, "--out", written.with_name("c.png")) == 2
        assert reason in capsys.readouterr().err
    assert not written.with_name("c.png").exists()


def test_a_changed_input_of_a_layer_is_refused_by_name(room, tmp_path, capsys):
    thing, file = tmp_path / "thing.png", tmp_path / "job.json"
    thing.write_bytes((room.folder / "object.png").read_bytes())
    file.write_text(json.dumps(room.job(room.capsule(object="thing.png", name="egg"), empty=True)))
    assert command("job", file, "--out", tmp_path / "a.png") == 0
    image = read_image(thing)
    write_png(thing, image.rgb_u8 ^ 1, alpha_u8=image.alpha_u8)
    assert command("replay", tmp_path / "a.png") == 2
    assert "layer egg is not what the image was made with" in capsys.readouterr().err


def test_a_job_of_images_in_memory_says_why_it_has_no_replay(room, tmp_path, capsys):
    job = {**room.job(room.capsule(), empty=True), "background": room.without_u8}
    compose_layers(job, NETWORKS).save(tmp_path / "a.png")
    assert command("replay", tmp_path / "a.png") == 2
    assert "used images in memory" in capsys.readouterr().err


def edit(room: Room, out: Path, *words: str | Path) -> int:
    files = ("--background", room.file("with.png"), "--background-depth", room.file("with_depth.png"))
    known = ("--anchors", room.file("anchors.json"), "--model", room.model, "--depth-model", room.depth_model)
    return command("edit", *words, *files, *known, "--eraser", "opencv", "--out", out)


SAID = {
    "Remove the capsule": ["erase"],
    "Move the capsule to the left of the torus": ["erase", "object"],
    "Replace the capsule with the cat": ["object"],
    "Remove the torus. Move the yellow capsule in front of the wall": None,
    "Move the capsule to the left of the torus and remove the torus": ["erase", "object", "erase"],
}


@pytest.mark.parametrize("text", SAID)
def test_one_sentence_is_a_job(room, tmp_path, capsys, text):
    code = edit(room, tmp_path / "a.png", text, "--objects", f"cat={room.file('object.png')}")
    if SAID[text] is None:
        assert code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: job: layer 1 (move yellow capsule): ")
        assert "wall" in error
        return
    assert code == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert [entry["kind"] for entry in report["layers"]] == SAID[text]
    assert report["drift"]["changed_outside"] == 0


UNKNOWN = {
    "Remove the giraffe": "layer 1 (erase giraffe): --locator geometric knows",
    "Move the giraffe behind the torus": "layer 1 (move giraffe): --locator geometric knows",
    "Replace the giraffe with the cat": "layer 1 (replace giraffe): --locator geometric knows",
    "Remove the capsule. Remove the capsule": "layer 1 (erase capsule): --locator geometric knows",
    "Place the horse behind the torus": "no image of the horse is given in objects (given: cat)",
    "Rotate the torus": "it begins with 'rotate', which is not a known verb",
}


@pytest.mark.parametrize("text", UNKNOWN)
def test_what_cannot_be_found_is_refused_with_the_reason_and_nothing_is_written(room, tmp_path, capsys, text):
    assert edit(room, tmp_path / "a.png", text, "--objects", f"cat={room.file('object.png')}") == 2
    error = capsys.readouterr().err
    assert UNKNOWN[text] in error
    assert error.count("\n") == 1 or error.splitlines()[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_fits_two_objects_is_refused(room, tmp_path, capsys):
    layers = [room.capsule(name="red cup"), room.capsule(name="blue cup", box=[0.6, 0.1, 0.8, 0.3])]
    with pytest.raises(ValueError, match=r"layer 3 \(erase cup\): 'cup' may be 'red cup' or 'blue cup'"):
        compose_layers(room.job(*layers, {"erase": "cup"}, empty=True), NETWORKS)


def test_an_object_that_others_hide_completely_is_not_erased_by_name(room):
    small = room.capsule(name="small", box=[0.3, 0.4, 0.5, 0.6], depth=[0.6, 0.62])
    large = room.capsule(name="large", box=[0.1, 0.1, 0.8, 0.9], depth=[0.9, 0.95])
    with pytest.raises(
        ValueError, match=r"layer 3 \(erase small\): nothing of the small is visible any more"
    ):
        compose_layers(room.job(small, large, {"erase": "small"}, empty=True), NETWORKS)


@pytest.fixture(scope="module")
def inpainter(tmp_path_factory) -> Path:
    from tests.inpainting.small_paintings import write_inpainter

    return write_inpainter(tmp_path_factory.mktemp("models") / "inpainter")


def text_job(room: Room, inpainter: Path, *layers: dict[str, Any]) -> dict[str, Any]:
    return room.job(*layers, empty=True, inpainter=str(inpainter), steps=2)


def test_texts_paint_their_masks_only_and_have_a_depth(room, inpainter):
    layer = {"text": "a red cube", "box": [0.1, 0.1, 0.4, 0.5]}
    result = compose_layers(text_job(room, inpainter, layer), NETWORKS)
    changed_pixels = (result.image_u8 != room.without_u8).any(axis=2)
    assert changed_pixels.any()
    assert not changed_pixels[:, 40:].any()
    assert not changed_pixels[50:].any()
    outside = result.scene.owner == 0
    assert np.array_equal(result.scene.depth_01[outside], result.scene.before[0].depth_01[outside])
    assert result.scene.places["red cube"].box01_xyxy == pytest.approx((0.1, 0.1, 0.4, 0.5), abs=0.02)


def test_what_is_nearer_than_a_text_stays(room, inpainter):
    torus = room.masks[TORUS]
    layer = {"text": "a red cube", "mask": room.file("torus_mask.png")}
    free = compose_layers(text_job(room, inpainter, layer), NETWORKS)
    assert (free.image_u8 != room.without_u8).any(axis=2)[torus].mean() > 0.5
    wide = {"text": "a red cube", "box": [0.0, 0.0, 1.0, 1.0], "depth": 0.4}
    behind = compose_layers(text_job(room, inpainter, wide), NETWORKS)
    nearer = behind.scene.before[0].depth_01 > 0.42
    assert np.array_equal(behind.image_u8[nearer], room.without_u8[nearer])
    assert (torus & nearer).sum() > 0.9 * torus.sum()
    with pytest.raises(
        ValueError, match=r"layer 1 \(text red cube\): nearer objects hide all of it at depth 0"
    ):
        compose_layers(text_job(room, inpainter, {**layer, "depth": 0.0}), NETWORKS)


def test_several_texts_in_one_pass_are_those_of_the_command(room, inpainter, tmp_path):
    masks = [room.file("torus_mask.png"), room.file("capsule_mask.png")]
    layer = {"text": ["a cube", "a ball"], "masks": masks, "name": "two", "seed": 3}
    result = compose_layers(text_job(room, inpainter, layer), NETWORKS)
    from inpainting.paint import build_app as paint

    words = [
        "--image",
        room.file("without.png"),
        "--masks",
        ",".join(masks),
        "--prompts",
        "a cube",
        "--prompts",
    ]
    words += [
        "a ball",
        "--seed",
        "3",
        "--steps",
        "2",
        "--model",
        str(inpainter),
        "--out",
        str(tmp_path / "a.png"),
    ]
    assert run_app(paint, [*words, "--no-sheet"]) == 0
    assert np.array_equal(result.image_u8, read_image(tmp_path / "a.png").rgb_u8)


def test_a_text_instead_of_an_object(room, inpainter):
    layer = {"replace": "capsule", "text": "a red cube", "anchors": room.file("anchors.json")}
    job = {**room.job(layer, inpainter=str(inpainter), steps=2)}
    result = compose_layers(job, NETWORKS)
    painted = (result.image_u8 != room.with_u8).any(axis=2)
    assert painted[room.masks[CAPSULE]].mean() > 0.8
    assert set(result.scene.places) == {TORUS, "a red cube"}


def test_a_path_of_out_that_is_an_input_is_refused(room, tmp_path, capsys):
    file = tmp_path / "job.json"
    file.write_text(json.dumps(room.job(room.capsule(), empty=True)))
    assert command("job", file, "--out", room.file("without.png")) == 2
    assert "is one of the inputs and would be overwritten" in capsys.readouterr().err
