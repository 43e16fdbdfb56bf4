"""Annotation files in the format of COCO: names, ids, damaged records, panoptic images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.benchmark import Instances
from datasets.sources import coco
from datasets.sources.readers import read_annotated
from datasets.sources.still import LvisConfig, PanopticConfig
from ldm.files import read_json, write_atomic
from llava_bifrost.build_dataset.objects import read_instances
from tests.datasets.coco_files import Tree, annotation, image, put, square


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


@pytest.mark.parametrize(
    ("record", "there", "name"),
    [
        (image(1, "a/1.png"), (), "a/1.png"),
        (image(1, "c.png", coco_url="https://bucket.example/d.png?X-Signature=ab"), (), "c.png"),
        (image(1, "c.png", coco_url="https://tool.example/api/images/7/data"), (), "c.png"),
        (image(1, "folder\\sub\\1.png"), (), "folder/sub/1.png"),
        (image(1, "./c.png"), (), "c.png"),
        (image(1, coco_url="http://host/val2017/7.jpg"), ("val2017/7.jpg", "7.jpg"), "val2017/7.jpg"),
        (image(1, coco_url="http://host/val2017/7.jpg"), ("7.jpg",), "7.jpg"),
        (image(1, "COCO_val2014_07.jpg", coco_url="http://host/val2017/07.jpg"), ("07.jpg",), "07.jpg"),
        (
            image(1, "COCO_val2014_07.jpg", coco_url="http://host/val2017/07.jpg"),
            ("val2017/07.jpg",),
            "val2017/07.jpg",
        ),
        (
            image(1, "COCO_val2014_07.jpg", coco_url="http://host/val2017/07.jpg"),
            ("COCO_val2014_07.jpg", "07.jpg"),
            "COCO_val2014_07.jpg",
        ),
        (image(1, "a/1.png", coco_url="http://host/b/1.png"), ("b/1.png", "1.png"), "a/1.png"),
        (image(1, file_name=None, coco_url="http://host/7%20b.jpg?token=x/y.jpg"), (), "7 b.jpg"),
    ],
)
def test_file_name_comes_first_and_keeps_its_folders(tree, record, there, name):
    for file in there:
        put(tree.images / file)
    document = tree.write([record], [annotation(1, 1)])
    assert tree.lvis([record], [annotation(1, 1)]) == {name: 1}
    assert read_instances(document, tree.path, tree.images)[0].file == name


def test_equal_base_names_in_two_folders_are_two_items(tree):
    images = [image(1, "a/1.png"), image(2, "b/1.png"), image(3, "1.png")]
    assert tree.lvis(images, [annotation(1, 1), annotation(2, 2)]) == {"a/1.png": 1, "b/1.png": 1}
    document = tree.write(images, [annotation(1, 1), annotation(2, 2)])
    assert [photograph.name for photograph in read_instances(document, tree.path)] == ["1", "a-1", "b-1"]


TWENTY = [image(k, f"{k:02d}.png") for k in range(20)]
THEIRS = [annotation(k, k) for k in range(20)]


@pytest.mark.parametrize(
    ("images", "annotations", "lost", "warning"),
    [
        ([*TWENTY, image(50)], THEIRS, 0, "1 of 21 images cannot be used: 50 ('file_name' is missing)"),
        ([*TWENTY[:19], image(7, "other.png")], THEIRS[:19], 2,
         "2 of 20 images cannot be used: 7 (other records have the same id 7)"),
        (TWENTY, [*THEIRS, annotation(99, 77)], 0,
         "1 of 21 annotations cannot be used: 99 (there is no image 77); left out"),
        (TWENTY, [*THEIRS[:19], {"id": 4}], 1, "1 of 20 annotations cannot be used: 4 ('image_id' is m"),
        (TWENTY, [*THEIRS[:19], None], 1, "1 of 20 annotations cannot be used: number 19"),
        (TWENTY, [*THEIRS[:19], annotation(19, 19, segmentation=[[1, 2, [3]]])], 1, "1 of 20 annotations"),
        ([*TWENTY[:19], image(19, "19.png", height=0)], THEIRS, 1, "19 (its size is 30 x 0)"),
        ([*TWENTY, TWENTY[3]], THEIRS, 0, ""),
    ],
)  # fmt: skip
def test_few_bad_records_are_left_out_and_named(tree, caplog, images, annotations, lost, warning):
    items = tree.lvis(images, annotations)
    assert sum(items.values()) == 20 - lost
    assert len(caplog.messages) == bool(warning)
    assert warning in caplog.text
    assert not warning or str(tree.path) in caplog.text


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([image(1, "c.png"), image(1, "d.png")], [annotation(1, 1), annotation(2, 1)],
         r"s.json: 2 of 2 images cannot be used: 1 \(other records have the same id 1\), 1 .*at most 10%"),
        (TWENTY, [*THEIRS, *(annotation(k, k + 100) for k in range(7))],
         r"7 of 27 annotations cannot be used: 0 \(there is no image 100\), .*, \.\.\.; at most 10%"),
        (TWENTY, [{"id": k} for k in range(20)], r"20 of 20 annotations .*: 0 \('image_id' is miss"),
        ({}, [], "instances.json has no entry 'images'"),
        (TWENTY, None, "instances.json has no entry 'annotations'"),
    ],
)  # fmt: skip
def test_many_bad_records_refuse_the_file(tree, images, annotations, message):
    tree.path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    with pytest.raises(ValueError, match=message):
        LvisConfig(images=tree.images, depth=tree.depth, annotations=tree.path).open()


@pytest.mark.parametrize("key", ["abc", "7", 7, "caf\u00e9"])
def test_ids_are_numbers_or_texts(tree, key):
    other = str(key) if isinstance(key, int) else key
    document = tree.write([image(key, "c.png")], [annotation("a1", other), annotation(3, key)])
    assert tree.lvis([image(key, "c.png")], [annotation("a1", other)]) == {"c.png": 1}
    photograph = read_instances(document, tree.path)[0]
    assert len(photograph.objects) == 2
    assert photograph.id == read_instances(document, tree.path)[0].id >= 0
    assert photograph.id == 7 or not str(key).isdecimal()


def test_sizes_and_crowds_decide_as_before_and_areas_may_be_absent(tree):
    small, crowd = annotation(2, 1, area=9), annotation(3, 1, iscrowd=1)
    bare = {key: value for key, value in annotation(4, 1).items() if key not in ("area", "iscrowd", "bbox")}
    assert tree.lvis([image(1, "c.png")], [annotation(1, 1), small, crowd, bare]) == {"c.png": 2}
    with pytest.raises(ValueError, match="no objects above 10 pixels in"):
        tree.lvis([image(1, "c.png")], [small, crowd])


def test_benchmark_counts_every_rival_and_leaves_doubtful_images_out(tree, caplog):
    left, right = [1, 5, 7, 10], [20, 5, 7, 10]
    images = [image(k, f"{k:02d}.png") for k in range(40)]
    annotations = [annotation(k, k, bbox=left) for k in range(40)]
    annotations += [annotation(50, 18, bbox=right), annotation(0, 19, bbox=right)]
    annotations += [annotation(60, 17, category_id=9, bbox=right)]
    tree.write(images, annotations)
    known = Instances(tree.path)
    assert {key for key in range(40) if not known.anchors.get(key)} == {0, 17, 18, 19}
    assert "2 of 43 annotations cannot be used: 0 (other records have the same id 0)" in caplog.text
    assert "(there is no usable annotation 0)" in caplog.text
    assert "(there is no category 9)" in caplog.text
    assert known.mask(5).sum() == known.mask("5").sum() == 100
    with pytest.raises(ValueError, match="has no annotation 99"):
        known.mask(99)
    tree.write([image("x", "a/1.png"), image("y", coco_url="http://h/2.png")],
               [annotation("p", "x", bbox=left), annotation("p", "x", bbox=left)])  # fmt: skip
    known = Instances(tree.path)
    assert [anchor.annotation for anchor in known.anchors["x"]] == ["p"], (
        "the same record twice is one object"
    )
    assert known.images["y"].file == "2.png"


def test_photographs_with_a_bad_annotation_are_left_out(tree, caplog):
    more = [image(k, f"{k:02d}.png") for k in range(20, 40)]
    document = tree.write(
        [*TWENTY, *more, image(40, "07.jpg")], [*THEIRS[:19], annotation(19, 19, bbox=None)]
    )
    names = [photograph.name for photograph in read_instances(document, tree.path)]
    assert names == [f"{k:02d}" for k in range(40) if k not in (7, 19)]
    assert "3 of 41 images cannot be used: 7 (2 images are called 07), 19 (" in caplog.text


@pytest.mark.parametrize(("flag", "kept"), [("0", 1), ("0.0", 1), (None, 1), (False, 1), ("1", 0), (1.0, 0)])
def test_flags_are_numbers_texts_or_null(tree, flag, kept):
    other = annotation(2, 1)
    assert tree.lvis([image(1, "c.png")], [annotation(1, 1, iscrowd=flag), other]) == {"c.png": 1 + kept}
    segments = [{"id": 7, "category_id": 1}, {"id": 9, "category_id": 2}]
    source = panoptic(tree, segments, [{"id": 1, "isthing": flag}, {"id": 2, "isthing": "1"}]).open()
    assert [view.mask().sum() for view in source.views(0)] == [100, 25][kept:]


def panoptic(tree: Tree, segments: list[Any], categories: list[Any], **of_image: Any) -> PanopticConfig:
    ids = np.where(square(), 7, np.where(square(0, 20, 5), 9, 300)).astype(np.int32)
    rgb_u8 = np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8)
    for folder in ("masks/a", "images/a", "depth/a"):
        (tree.images.parent / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb_u8).save(tree.images.parent / "masks/a/1.png")
    record = {"image_id": 1, "file_name": "a\\1.png", "segments_info": segments, **of_image}
    tree.write([{"id": "1", "file_name": "a\\1.jpg"}], [record], categories)
    return PanopticConfig(images=tree.images, depth=tree.depth, annotations=tree.path,
                          masks=tree.images.parent / "masks", min_pixels=50)  # fmt: skip


def test_panoptic_files_without_iscrowd_area_or_isthing_are_read(tree):
    bare = [{"id": 7, "category_id": 1}, {"id": "9", "category_id": "1"}]
    source = panoptic(tree, bare, [{"id": 1}]).open()
    masks = [view.mask() for view in source.views(0)]
    assert source.name(0) == "a/1.jpg"
    assert [mask.sum() for mask in masks] == [100, 25]
    full = [{"id": 7, "category_id": 1, "area": 100, "iscrowd": 0}, {"id": 9, "category_id": 1, "area": 25},
            {"id": 300, "category_id": 2, "area": 475}]  # fmt: skip
    source = panoptic(tree, full, [{"id": 1, "isthing": 1}, {"id": 2, "isthing": 0}]).open()
    assert [view.mask().sum() for view in source.views(0)] == [100]


@pytest.mark.parametrize(
    ("segments", "of_image", "message"),
    [
        ([{"id": 7, "category_id": 5}], {}, "1 of 1 annotations .*there is no category 5"),
        ([{"id": 7, "category_id": 1}], {"image_id": 8}, "1 of 1 annotations .*there is no image 8"),
        ([{"category_id": 1}], {}, "1 of 1 annotations .*'id' is missing"),
    ],
)
def test_orphans_of_panoptic_files_are_named(tree, segments, of_image, message):
    with pytest.raises(ValueError, match=message):
        panoptic(tree, segments, [{"id": 1}], **of_image).open()


def test_lvis_of_both_versions_finds_the_images_of_coco(test_data, tmp_path):
    images, lvis = test_data / "data/coco/val2017", test_data / "data/lvis"
    for name in ("lvis_v0.5_val_slice.json", "lvis_schema_from_coco.json"):
        source = LvisConfig(images=images, depth=tmp_path, annotations=lvis / name).open()
        there = [k for k in range(len(source)) if (images / source.name(k)).is_file()]
        assert there
        for view in source.views(there[0]):
            assert read_annotated(view.image, view.mask().shape)[1] is None


@pytest.mark.parametrize("segmentation", [[[1.0, 2.0, 3.0, 2.0, 3.0, 9.5]], [[1] * 6, [2] * 8], []])
def test_polygons_are_arrays_as_soon_as_they_are_read(tmp_path: Path, segmentation: list[Any]) -> None:
    runs = {"size": [4, 4], "counts": [16]}
    annotations = [{"id": 1, "segmentation": segmentation}, {"id": 2, "segmentation": runs}, {"id": 3}]
    write_atomic(tmp_path / "a.json", json.dumps({"annotations": annotations}).encode())
    first, second, third = read_json(tmp_path / "a.json", hook=coco.with_packed_segmentation)["annotations"]
    assert isinstance(first["segmentation"], tuple)
    assert [polygon.tolist() for polygon in first["segmentation"]] == segmentation
    assert second["segmentation"] == runs
    assert third == {"id": 3}
