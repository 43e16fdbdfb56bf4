"""Layers over a rendered scene, whose truth is exact: with and without a solid, its mask and its depth."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compose import compose, compose_layers, load_models
from compose.job import read_job
from compose.layering import JobResult
from compose.verbs import JobNetworks
from datasets.geometry import box_to_pixels, mask_of_box
from ldm.images import write_mask
from ldm.metrics.numbers import psnr_over
from tests.compose.rendered import CAPSULE, TORUS, Room

NETWORKS = JobNetworks()


def run(room: Room, *layers: dict[str, Any], **more: Any) -> JobResult:
    result = compose_layers(room.job(*layers, **more), NETWORKS)
    drift = result.report["drift"]
    assert drift["changed_outside"] == drift["max_abs_outside"] == 0
    changed = (result.image_u8 != result.background.own_u8).any(axis=2)
    assert drift["changed_inside"] == changed.sum()
    assert not (changed & ~result.edit_mask).any()
    return result


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def test_an_object_layer_is_the_composite_of_the_image_verb(room):
    layer = room.capsule(seed=3)
    result = run(room, layer, empty=True)
    settings = read_job(room.job(layer, empty=True)).layers[0].settings
    alone = compose(settings, load_models(settings), progress=False)
    assert np.array_equal(result.image_u8, alone.images_u8[0])
    assert result.report["layers"][0]["visible_fraction"] == alone.report["visible_fraction"]
    assert result.report["layers"][0]["seed"] == 3


def test_an_object_put_where_it_was_covers_what_it_covered_at_its_depth(room):
    result = run(room, room.capsule(), empty=True)
    thing, truth = result.scene.things["capsule"], room.masks[CAPSULE]
    assert overlap(thing.mask, truth) > 0.8
    both = thing.mask & truth
    assert np.abs(result.scene.depth_01 - room.depth_01)[both].mean() < 0.05
    assert np.array_equal(result.scene.depth_01[~thing.mask], result.scene.before[0].depth_01[~thing.mask])


ERASED = {
    "mask": lambda room: {"erase": "it", "mask": room.file("capsule_mask.png")},
    "name": lambda room: {"erase": CAPSULE, "anchors": room.file("anchors.json")},
    "noun": lambda room: {"erase": "capsule", "anchors": room.file("anchors.json")},
    "sentence": lambda room: {
        "say": "Please remove the yellow capsule",
        "anchors": room.file("anchors.json"),
    },
    "whole box": lambda room: {"erase": "capsule", "anchors": room.file("anchors.json"), "grow": 0.03},
}


@pytest.mark.parametrize("way", ERASED)
def test_what_is_erased_looks_and_lies_as_the_scene_without_it(room, way):
    result = run(room, ERASED[way](room))
    hole = room.masks[CAPSULE]
    before, after = (psnr_over(u8, room.without_u8, hole) for u8 in (room.with_u8, result.image_u8))
    assert after > before + 4
    errors = [np.abs(d - room.without_depth_01)[hole].mean() for d in (room.depth_01, result.scene.depth_01)]
    assert errors[1] < 0.4 * errors[0]
    assert result.report["layers"][0]["by"] == "opencv"


def test_what_is_in_front_of_an_erased_object_stays(room):
    """The torus is put anew, nearer, over a part of the capsule; then the capsule behind it goes."""
    x0, y0, x1, y1 = room.places[CAPSULE].box01_xyxy
    front = room.capsule(name="new", box=[x0, (y0 + y1) / 2, x1, min(1.0, y1 + 0.1)], depth=[0.8, 0.9])
    erase = {"erase": "capsule", "mask": room.file("capsule_mask.png")}
    both = run(room, front, {"erase": CAPSULE, "anchors": room.file("anchors.json"), "grow": 0.05})
    alone = run(room, front)
    new = alone.scene.things["new"].mask
    assert np.array_equal(both.image_u8[new], alone.image_u8[new])
    assert np.array_equal(both.scene.things["new"].mask, new)
    assert erase["erase"] not in both.scene.places


def test_an_object_that_a_layer_put_is_taken_back_to_the_byte(room):
    result = run(room, room.capsule(), {"erase": "capsule"}, empty=True)
    assert np.array_equal(result.image_u8, room.without_u8)
    assert np.allclose(result.scene.depth_01, result.scene.before[0].depth_01, atol=1 / 65535)
    assert "capsule" not in result.scene.places


def test_what_was_erased_behind_a_placed_object_does_not_come_back_with_it(room):
    x0, y0, x1, y1 = room.places[CAPSULE].box01_xyxy
    front = room.capsule(name="new", box=[x0, y0, x1, y1], depth=[0.8, 0.9])
    torus = {"erase": TORUS, "anchors": room.file("anchors.json")}
    lies_on = room.capsule(name="new", box=list(room.places[TORUS].box01_xyxy), depth=[0.9, 0.95])
    for layer, gone in ((lies_on, torus), (front, torus)):
        result = run(room, layer, gone, {"erase": "new"})
        assert psnr_over(result.image_u8, room.with_u8, room.masks[CAPSULE]) > 20
    hidden = run(room, lies_on, torus, {"erase": "new"})
    inside = mask_of_box(box_to_pixels(room.places[TORUS].box01_xyxy, (96, 96)), (96, 96))
    inside &= room.masks[TORUS]
    assert (hidden.image_u8[inside].min(axis=1) < 40).mean() < 0.5 * (
        room.with_u8[inside].min(axis=1) < 40
    ).mean()


PLACES = {  # box, far and near; every two overlap, and so do their depths
    "far": ([0.2, 0.3, 0.55, 0.7], [0.60, 0.80]),
    "middle": ([0.35, 0.35, 0.7, 0.8], [0.68, 0.88]),
    "near": ([0.25, 0.5, 0.6, 0.9], [0.76, 0.96]),
}


@pytest.mark.parametrize("order", list(permutations(PLACES)), ids="-".join)
def test_objects_hide_each_other_by_depth_whatever_their_order(room, order):
    def layer(name: str) -> dict[str, Any]:
        box, depth = PLACES[name]
        return room.capsule(name=name, box=box, depth=depth)

    alone = {name: run(room, layer(name), empty=True).scene.things[name].mask for name in PLACES}
    masks = {
        name: thing.mask for name, thing in run(room, *map(layer, order), empty=True).scene.things.items()
    }
    left, hidden = np.ones((96, 96), bool), 0
    for name in ("near", "middle", "far"):
        assert np.array_equal(masks[name], alone[name] & left)
        hidden += (alone[name] & ~left).sum()
        left &= ~alone[name]
    assert hidden > 100


def test_the_scene_hides_objects_by_depth(room):
    torus = room.places[TORUS]
    behind = room.capsule(box=list(torus.box01_xyxy), depth=[0.3, 0.5])
    before = room.capsule(box=list(torus.box01_xyxy), depth=[0.85, 0.95])
    result = run(room, {**behind, "name": "behind"}, empty=True)
    assert not (result.scene.things["behind"].mask & room.masks[TORUS]).sum() > 0.1 * room.masks[TORUS].sum()
    assert (run(room, before, empty=True).scene.things["capsule"].mask & room.masks[TORUS]).sum() > 100


MOVES = {
    "box": {"box": [0.05, 0.5, 0.35, 0.75]},
    "box and depth": {"box": [0.05, 0.5, 0.35, 0.75], "depth": [0.7, 0.8]},
    "box in pixels": {"box": ["5px", "48px", "34px", "72px"]},
    "words": {"to": "to the left of the torus"},
    "sentence": {"instruction": "Place the capsule to the left of the dotted black torus"},
}


@pytest.mark.parametrize("way", MOVES)
def test_a_moved_object_leaves_its_place_and_stands_at_the_new_one(room, way):
    layer = {"move": "capsule", "anchors": room.file("anchors.json"), **MOVES[way]}
    result = run(room, layer)
    thing, old = result.scene.things[CAPSULE], room.masks[CAPSULE]
    assert (result.scene.owner[old] > 0).mean() > 0.98  # cleared or painted
    cleared = old & ~(result.scene.owner == 2)
    if cleared.sum() > 50:
        before, after = (psnr_over(u8, room.without_u8, cleared) for u8 in (room.with_u8, result.image_u8))
        assert after > before + 3
    assert thing.mask.any()
    if "box" in MOVES[way]:
        inside = mask_of_box(box_to_pixels((0.04, 0.49, 0.36, 0.76), (96, 96)), (96, 96))
        assert not (thing.mask & ~inside).any()
    else:
        assert thing.place.middle < room.places[TORUS].middle
        assert result.report["layers"][1]["placement"]["satisfied"] == {
            "to the left of the dotted black torus": True
        }


def test_a_moved_object_keeps_its_size_for_its_depth(room):
    """To the other side of the torus, at about the same depth: about as large as it is."""
    layer = {"move": "capsule", "to": "next to the torus", "anchors": room.file("anchors.json")}
    new, old = run(room, layer).scene.things[CAPSULE].place, room.places[CAPSULE]
    area = [(p.x1 - p.x0) * (p.y1 - p.y0) * (0.5 / p.d) ** 2 for p in (new, old)]
    assert 0.4 < area[0] / area[1] < 2.5


def test_a_layer_that_was_put_is_moved_as_a_whole_though_it_was_partly_hidden(room):
    hidden = room.capsule(box=list(room.places[TORUS].box01_xyxy), depth=[0.3, 0.5])
    free = {"box": [0.05, 0.1, 0.4, 0.4], "depth": [0.8, 0.9]}
    result = run(room, hidden, {"move": "capsule", **free}, empty=True)
    direct = run(room, room.capsule(**free), empty=True)
    assert np.array_equal(result.image_u8, direct.image_u8)
    assert np.array_equal(result.scene.things["capsule"].mask, direct.scene.things["capsule"].mask)


def test_later_sentences_know_what_earlier_layers_placed_and_moved(room):
    egg = room.capsule(name="golden egg", box=[0.1, 0.4, 0.3, 0.6], depth=[0.7, 0.75])
    second = {
        "object": room.file("object.png"),
        "name": "ball",
        "instruction": "Place the ball to the right of the egg",
    }
    move = {"move": "egg", "box": [0.6, 0.5, 0.8, 0.7]}
    first = run(room, egg, second, empty=True).scene.places
    moved = run(room, egg, move, second, empty=True).scene.places
    assert first["ball"].middle > first["golden egg"].middle
    assert moved["ball"].middle > moved["golden egg"].middle > 0.65


REPLACED = {
    "mask": {"replace": "it", "mask": "capsule_mask.png", "object": "object.png"},
    "name": {"replace": "capsule", "anchors": "anchors.json", "object": "object.png"},
    "sentence": {"say": "Replace the yellow capsule with the cat", "anchors": "anchors.json"},
}


@pytest.mark.parametrize("way", REPLACED)
def test_a_replaced_object_is_gone_and_the_new_one_stands_there(room, way):
    files = {
        key: room.file(value) if value.endswith((".png", ".json")) else value
        for key, value in REPLACED[way].items()
    }
    layer = {**files, "name": "cat"} if way != "sentence" else files
    result = run(room, layer, objects={"cat": room.file("object.png")})
    assert "cat" in result.scene.things
    assert CAPSULE not in result.scene.places
    thing, old = result.scene.things["cat"], room.places[CAPSULE]
    assert overlap(thing.mask, room.masks[CAPSULE]) > 0.5
    assert abs(thing.place.d - old.d) < 0.08
    assert result.report["layers"][0]["mode"] == "replace"


def test_a_replaced_layer_gives_its_place(room):
    new = {"replace": "capsule", "object": room.file("object.png"), "name": "egg", "seed": 5}
    result = run(room, room.capsule(), new, empty=True)
    direct = run(room, room.capsule(name="egg", seed=5), empty=True)
    assert np.array_equal(result.image_u8, direct.image_u8)
    assert set(result.scene.things) == {"egg"}


def test_the_same_job_gives_the_same_bytes_and_does_not_touch_its_inputs(room, tmp_path):
    before = {path: path.read_bytes() for path in room.folder.iterdir()}
    job = room.job(room.capsule(), {"erase": TORUS, "anchors": room.file("anchors.json")}, empty=True)
    for name in ("a.png", "b.png"):
        compose_layers(job, NETWORKS).save(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert {path: path.read_bytes() for path in room.folder.iterdir()} == before


def test_images_in_memory_do_as_files_do(room):
    layer = room.capsule()
    files = run(room, layer, empty=True)
    job = room.job(layer, empty=True)
    job["background"] = room.without_u8
    assert np.array_equal(compose_layers(job, NETWORKS).image_u8, files.image_u8)


def test_a_mask_of_another_size_is_refused_with_the_layer(room, tmp_path):
    write_mask(tmp_path / "small.png", np.ones((4, 4), bool))
    with pytest.raises(ValueError, match=r"layer 1 \(erase it\): mask .*small.png is 4 x 4 pixels"):
        run(room, {"erase": "it", "mask": str(tmp_path / "small.png")})


def test_job_paths_start_from_the_file(room, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (room.folder / "job.yaml").write_text(
        f"background: without.png\nmodel: {room.model}\nbackground_depth: without_depth.png\n"
        "layers:\n- {object: object.png, box: [0.2, 0.2, 0.5, 0.5], depth: 0.9}\n"
    )
    result = compose_layers(Path(room.folder / "job.yaml"), NETWORKS)
    assert list(result.scene.things) == ["object"]
