"""The open benchmark of composites: deterministic, verifiable, boxes that fit their relations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from compose.benchmark.__main__ import build_app
from datasets.benchmark import (
    Instances,
    read_benchmark,
    read_benchmark_objects,
)
from ldm.files import write_atomic
from ldm.images import write_png
from ldm.settings.cli import run_app
from tests.datasets import trees
from tests.images import room, thing

IMAGES = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images with a cup and a table each, in the last one two cups; three concepts."""
    home = tmp_path_factory.mktemp("world")
    h, w = trees.SIZE
    annotations = []
    for k in range(IMAGES):
        write_png(home / f"val/{k:03d}.jpg", room(h, w))
        boxes = [[60, 40, 40, 50]] + ([[5, 40, 30, 40]] if k == IMAGES - 1 else [])
        for box in boxes:
            x0, y0, x1, y1 = box[0], box[1], box[0] + box[2], box[1] + box[3]
            outline = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": k, "category_id": 3, "bbox": box, "iscrowd": 0,
                 "segmentation": outline, "area": box[2] * box[3]}
            )  # fmt: skip
    document = {
        "images": [{"id": k, "file_name": f"{k:03d}.jpg", "height": h, "width": w} for k in range(IMAGES)],
        "categories": [{"id": 3, "name": "cup"}],
        "annotations": annotations,
    }
    write_atomic(home / "instances.json", json.dumps(document).encode())
    for concept in ("dog6", "red_ball", "teapot"):
        rgb_u8, mask = thing()
        write_png(home / f"objects/{concept}/00.png", rgb_u8, alpha_u8=mask.astype(np.uint8) * 255)
    write_atomic(home / "classes.json", b'{"teapot": "pot"}')
    return home


def run(*arguments: str) -> int:
    return run_app(build_app, list(arguments))


def build(world: Path, out: Path, *more: str) -> int:
    return run(
        "build", "--instances", f"{world}/instances.json", "--images", f"{world}/val", "--objects",
        f"{world}/objects", "--classes", f"{world}/classes.json", "--out", str(out), *more,
    )  # fmt: skip


def test_the_same_settings_give_the_same_bytes(world: Path, tmp_path: Path) -> None:
    assert build(world, tmp_path / "a.json", "--backgrounds", "3") == 0
    assert build(world, tmp_path / "b.json", "--backgrounds", "3") == 0
    assert build(world, tmp_path / "c.json", "--backgrounds", "3", "--seed", "1") == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_bytes() != (tmp_path / "c.json").read_bytes()
    manifest = read_benchmark(tmp_path / "a.json")
    assert len(manifest.cases) == 9
    assert manifest.name == "dreambooth-coco-3x3"
    assert {case.background for case in manifest.cases} <= {f"{k:03d}.jpg" for k in range(IMAGES - 1)}
    assert {case.instruction.split(" ")[2] for case in manifest.cases} == {"dog", "red", "pot"}
    assert all(case.instruction.endswith("the cup.") for case in manifest.cases)


def test_verify_names_what_is_missing_or_differs(world: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    assert build(copy, tmp_path / "m.json", "--backgrounds", "4") == 0
    flags = ["--images", f"{copy}/val", "--objects", f"{copy}/objects"]
    capsys.readouterr()
    assert run("verify", str(tmp_path / "m.json"), *flags) == 0
    (copy / "val/001.jpg").unlink()
    write_png(copy / "objects/teapot/00.png", room(20, 20), alpha_u8=np.full((20, 20), 255, np.uint8))
    assert run("verify", str(tmp_path / "m.json"), *flags) == 1
    shown = capsys.readouterr().out
    assert "missing: pictures/001.jpg" in shown
    assert "differs: objects/teapot/00.png" in shown
    shutil.rmtree(copy / "val")
    assert build(copy, tmp_path / "bare.json", "--backgrounds", "4") == 0, "images may come later"
    roots = {"pictures": world / "val", "objects": copy / "objects"}
    assert {what for _, what in read_benchmark(tmp_path / "bare.json").differing_files(roots)} == {
        "not hashed"
    }


def test_boxes_stand_as_their_relation_says(world: Path) -> None:
    anchor = Instances(world / "instances.json").anchors[0][0]
    x0, y0, x1, y1 = anchor.box01_xyxy
    rng = np.random.default_rng(0)
    drawn = {name: [anchor.place_beside(name, 0.7, rng) for _ in range(50)]
             for name in ("left of", "right of", "in front of", "behind")}  # fmt: skip
    boxes = {name: [box for box in found if box is not None] for name, found in drawn.items()}
    assert all(boxes.values())
    assert all(box[2] < x0 for box in boxes["left of"])
    assert all(box[0] > x1 for box in boxes["right of"])
    assert all(box[3] > y1 and box[0] < x1 and box[2] > x0 for box in boxes["in front of"])
    assert all(box[3] < y1 and box[0] < x1 and box[2] > x0 for box in boxes["behind"])


def test_depth_follows_from_the_relation(world: Path, tmp_path: Path) -> None:
    assert build(world, tmp_path / "m.json", "--backgrounds", "4") == 0
    known = Instances(world / "instances.json")
    depth_01 = np.full(trees.SIZE, 0.1, np.float32)
    expected = {"left of": 0.5, "right of": 0.5, "in front of": 0.6, "behind": 0.4}
    for case in read_benchmark(tmp_path / "m.json").cases:
        mask = known.mask(case.anchor.annotation)
        assert mask.sum() == pytest.approx(40 * 50, rel=0.1)
        assert case.depth_in(mask, np.where(mask, 0.5, depth_01)) == pytest.approx(expected[case.relation])


def test_two_things_of_one_name_are_no_anchors(world: Path) -> None:
    assert Instances(world / "instances.json").anchors[IMAGES - 1] == []


def test_what_is_wrong_is_named(world: Path, tmp_path: Path, capsys) -> None:
    assert build(world, tmp_path / "m.json", "--backgrounds", "5") == 2
    assert "has 4 images where every object fits" in capsys.readouterr().err
    write_png(tmp_path / "objects/x/0.png", room(20, 20))
    with pytest.raises(ValueError, match=r"0.png has no transparency"):
        read_benchmark_objects(tmp_path / "objects", None)
    (tmp_path / "m.json").write_text('{"format": 9}')
    with pytest.raises(ValueError, match="format 9, this code reads format 1"):
        read_benchmark(tmp_path / "m.json")
    (tmp_path / "m.json").write_text('{"format": 1, "cases": [{}], "name": "a", "seed": 0, "files": {}}')
    with pytest.raises(ValueError, match=r"m.json is not a benchmark manifest: 'anchor'"):
        read_benchmark(tmp_path / "m.json")


def test_builds_on_the_real_slices(test_data: Path, tmp_path: Path) -> None:
    coco, dream = test_data / "data/coco", test_data / "data/dreambooth"
    arguments = ["--instances", f"{coco}/annotations/instances_val2017.json", "--images", f"{coco}/val2017"]
    arguments += ["--objects", f"{dream}/AnyDoor_DreamBooth", "--classes", f"{dream}/classes.json"]
    assert run("build", *arguments, "--backgrounds", "1", "--out", str(tmp_path / "m.json")) == 0
    manifest = read_benchmark(tmp_path / "m.json")
    assert len(manifest.cases) == 12
    roots = {"pictures": coco / "val2017", "objects": dream / "AnyDoor_DreamBooth"}
    assert list(manifest.differing_files(roots)) == []
