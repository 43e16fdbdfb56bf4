"""Remove, move and replace, by name and sentence, in photographs: one of the test data, one made here."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from compose import compose_layers
from compose.scene import JobResult
from ldm.images import fitted, read_image, read_mask, resize, write_png

SIDE = 256  # pixels; more than the scenes of the small networks have
YELLOW = np.array([250, 200, 0], np.uint8)


@pytest.fixture(params=["made", "photograph"])
def bed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A cat with a tail on a bed, its outline and box, and a yellow clock."""
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    if request.param == "made":
        rng = np.random.default_rng(0)
        room = np.full((SIDE, SIDE, 3), (225, 180, 190)) + rng.normal(0, 4, (SIDE, SIDE, 1))
        old = (np.hypot((x - 0.7) / 0.15, (y - 0.55) / 0.17) < 1) | (
            (abs(x - 0.53) < 0.015) & (abs(y - 0.45) < 0.1)
        )
        old |= (abs(y - 0.54) < 0.015) & (x > 0.515) & (x < 0.6)
        room[old] = (130, 90, 60) + rng.normal(0, 6, (int(old.sum()), 1))
        room_u8, box = np.clip(room, 0, 255).astype(np.uint8), [0.5, 0.34, 0.86, 0.73]
        clock = np.hypot(x - 0.5, y - 0.5) < 0.4
        clock_u8 = np.where(clock[..., None], YELLOW, np.uint8(255))
    else:
        data = request.getfixturevalue("test_data") / "data" / "composite"
        room_u8 = read_image(data / "backgrounds" / "cocoee_000000047948.jpg").rgb_u8
        room_u8 = resize(room_u8, (SIDE, SIDE))
        about = yaml.safe_load(Path("benchmarks/photographs.yaml").read_text())[
            "d11_clock_replaces_cat_cocoee"
        ]
        drawn = np.zeros((SIDE, SIDE), np.uint8)
        old = cv2.fillPoly(drawn, [np.rint(np.multiply(about["old"], SIDE)).astype(np.int32)], 1) > 0
        box = about["anchors"]["cat"]
        clock_u8 = read_image(data / "objects" / "clock_03.jpg").rgb_u8
        size = fitted(clock_u8.shape[:2], SIDE)
        clock_u8, clock = resize(clock_u8, size), read_mask(data / "object_masks" / "clock_03.png")
        clock = resize(clock, size)
    write_png(tmp_path / "room.png", room_u8)
    write_png(tmp_path / "clock.png", clock_u8, alpha_u8=clock * np.uint8(255))
    (tmp_path / "anchors.json").write_text(json.dumps({"brown cat": {"box": box}}))
    return {"folder": tmp_path, "room_u8": room_u8, "old": old, "box": box}


def done(bed: dict[str, Any], *layers: dict[str, Any]) -> JobResult:
    folder = bed["folder"]
    keys = {"background": folder / "room.png", "anchors": folder / "anchors.json"}
    more = {"objects": {"clock": folder / "clock.png"}, "cutout": "grabcut", "eraser": "opencv"}
    result = compose_layers({**keys, **more, "layers": list(layers)})
    assert result.report["drift"]["changed_outside"] == 0
    assert (result.image_u8 == bed["room_u8"])[~result.edit_mask].all()
    return result


def left(bed: dict[str, Any], image_u8: np.ndarray) -> float:
    """The fraction of the old object that is still seen: pixels nearer to it than to the bed around it."""
    room_u8, old = bed["room_u8"].astype(np.float32), bed["old"].astype(np.uint8)
    ring = cv2.dilate(old, np.ones((41, 41))) > cv2.dilate(old, np.ones((21, 21)))
    cat, cover = np.median(room_u8[old > 0], axis=0), np.median(room_u8[ring], axis=0)
    far = [np.linalg.norm(image_u8 - colour, axis=2) for colour in (cat, cover)]
    return float((far[0] < far[1])[old > 0].mean())


@pytest.mark.parametrize(
    "layer", [{"erase": "brown cat"}, {"erase": "cat"}, {"say": "Remove the cat."}], ids=str
)
def test_a_removed_object_is_gone_with_its_tail(bed: dict[str, Any], layer: dict[str, str]) -> None:
    assert left(bed, bed["room_u8"]) > 0.6
    result = done(bed, layer)
    assert left(bed, result.image_u8) < 0.1  # a smear of its shadow
    assert (result.edit_mask & bed["old"]).sum() > 0.95 * bed["old"].sum()  # its outline by hand


def test_a_moved_object_is_the_same_elsewhere_and_gone_where_it_was(bed: dict[str, Any]) -> None:
    x0, y0, x1, y1 = bed["box"]
    shift = round(0.45 * SIDE)
    moved = [x0 - shift / SIDE, y0, x1 - shift / SIDE, y1]
    result = done(bed, {"move": "cat", "box": moved, "depth": 0.6})
    assert left(bed, result.image_u8) < 0.1  # a smear of its shadow
    there = np.roll(result.image_u8, shift, axis=1).astype(int)
    body = cv2.erode(bed["old"].astype(np.uint8), np.ones((15, 15))) > 0
    assert (
        np.corrcoef(there[body].ravel(), bed["room_u8"][body].ravel())[0, 1] > 0.8
        or bed["room_u8"][body].std() < 40
    )
    assert abs(there[body].mean(axis=0) - bed["room_u8"][body].mean(axis=0)).max() < 25


@pytest.mark.parametrize(
    "layer",
    [{"replace": "brown cat", "object": "clock"}, {"say": "Replace the cat with the clock."}],
    ids=["replace", "say"],
)
def test_a_replaced_object_is_gone_and_the_new_one_stands_there(
    bed: dict[str, Any], layer: dict[str, str]
) -> None:
    if "object" in layer:
        layer = {**layer, "object": bed["folder"] / "clock.png"}
    result = done(bed, layer)
    image = result.image_u8.astype(int)
    yellow = (image[..., 0] > 170) & (image[..., 1] - image[..., 2] > 60)
    assert yellow[bed["old"]].mean() > 0.2
    assert yellow[~result.edit_mask].mean() < 0.05
    assert (result.edit_mask & bed["old"]).sum() > 0.95 * bed["old"].sum()  # its outline by hand


def test_what_is_not_known_is_refused_and_nothing_is_done(bed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tiger"):
        done(bed, {"say": "Remove the cat. Remove the tiger."})


def test_the_example_of_a_photograph_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its three layers, over a disc that stands on a floor instead of the fetched photograph."""
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path / "models"))
    example = tmp_path / "assets" / "examples" / "coffee"
    shutil.copytree("assets/examples/coffee", example)
    y, x = np.mgrid[0:400, 0:600]
    boards = (y // 4 + x // 8)[..., None] % 2 * 20
    image = (boards + (150, 100, 60)).astype(np.uint8)
    disc = np.hypot((x - 280) / 200, (y - 220) / 160) < 1
    image[disc] = (160, 30, 20)
    write_png(tmp_path / "models" / "coffee" / "coffee.png", image)
    keys = {**yaml.safe_load((example / "scene.yaml").read_text()), "cutout": "grabcut"}
    (example / "scene.yaml").write_text(yaml.safe_dump(keys))
    result = compose_layers(example / "scene.yaml")
    assert result.report["drift"]["changed_outside"] == 0
    assert [layer["kind"] for layer in result.report["layers"]] == ["erase", "object", "object"]
    red = (np.abs(result.image_u8.astype(int) - (160, 30, 20)) < 40).all(axis=2)
    assert red[30:150, 500:580].mean() > 0.5  # behind
    assert red[260:380, 40:160].mean() > 0.5  # in front
