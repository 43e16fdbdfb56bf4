"""Masks and entities: published rules, the pixels of the real slice, damage left out by name, resumption."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inpainting.data.paintings import MAKE_ENTITIES, MAKE_MASKS
from inpainting.data.steps.regions import (
    ObjectRegion,
    RegionSettings,
    make_entities,
    make_masks,
    pixel_box,
    region_files,
)
from inpainting.data.steps.texts import (
    EntitySettings,
    FolderSettings,
    RootSettings,
    captions_to_annotations,
    captions_to_folder,
    extract_roots,
)
from ldm.journal import Journal, JournalReader, in_order
from tests.inpainting.painting_set import PAINTINGS, REGIONS, PaintingSet, killed, tree, write_set


@pytest.fixture
def made(tmp_path: Path) -> PaintingSet:
    return write_set(tmp_path)


def test_area_limits_are_inclusive_and_not_rounded() -> None:
    # 1 % of 100 x 100 is exactly a 10 x 10 box; a hair less is refused.
    assert pixel_box((0.0, 0.0, 10.0, 10.0), (100, 100)) == (0, 0, 10, 10)
    assert pixel_box((0.0, 0.0, 10.0, 9.99), (100, 100)) is None
    assert pixel_box((0.0, 0.0, 100.0, 65.0), (100, 100)) == (0, 0, 100, 65)
    assert pixel_box((0.0, 0.0, 100.0, 65.1), (100, 100)) is None
    assert pixel_box((1.99, 5.0, 9.99, 9.99), (10, 10)) == (1, 5, 9, 9)


def test_regions_are_numbered_over_the_entities_that_stay() -> None:
    entry = {"entities": {p: {"bboxes": b} for p, b in PAINTINGS["dora_still-life"][1].items()}}
    settings = RegionSettings(Path("a.json"), image_dir=Path("images"), out_dir=Path("masks"))
    assert settings.regions(entry, (64, 80)) == [
        ObjectRegion("mask_0", "a bowl of fruit", ((24, 19, 56, 44),)),
        ObjectRegion("mask_1", "a blue cloth", ((0, 38, 80, 64),)),
    ]


def test_several_boxes_are_one_mask_and_a_collage(tmp_path: Path) -> None:
    image = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    boxes = [(0, 0, 4, 6), (10, 5, 20, 8), (2, 2, 5, 5)]
    regions = [ObjectRegion("mask_0", "a dog", tuple(boxes))]
    (mask_png,) = region_files(MAKE_MASKS, tmp_path, image, regions).values()
    mask_u8 = np.array(Image.open(io.BytesIO(mask_png)))
    collage_png = region_files(MAKE_ENTITIES, tmp_path, image, regions)[tmp_path / "mask_0.png"]
    collage = np.array(Image.open(io.BytesIO(collage_png)))
    assert set(np.unique(mask_u8)) == {0, 255}
    assert np.count_nonzero(mask_u8) == 24 + 30 + 9 - 6
    assert collage.shape == (2 * 6, 2 * 10, 3)  # cells of the largest height and width, a square grid
    assert (collage[:6, :4] == image[:6, :4]).all()
    assert (collage[:3, 10:20] == image[5:8, 10:20]).all()
    assert (collage[6:9, :3] == image[2:5, 2:5]).all()
    assert (collage[6:, 10:] == 127).all()
    assert (collage[3:6, 10:] == 127).all()


def test_the_folders_of_a_set(made: PaintingSet) -> None:
    make_masks(RegionSettings(made.annotations, image_dir=made.images, out_dir=made.out / "masks", workers=2))
    make_entities(
        RegionSettings(made.annotations, image_dir=made.images, out_dir=made.out / "entities", workers=2)
    )
    for stem, count in REGIONS.items():
        (w, h), _ = PAINTINGS[stem]
        names = {f"mask_{j}.png" for j in range(count)}
        assert {path.name for path in (made.out / "masks" / stem).iterdir()} == names
        assert {p.name for p in (made.out / "entities" / stem).iterdir()} == names | {"annotations.json"}
        with Image.open(made.out / "masks" / stem / "mask_0.png") as mask:
            assert (mask.mode, mask.size) == ("L", (w, h))
            assert set(np.unique(np.asarray(mask))) <= {0, 255}
    assert not (made.out / "masks/fritz_empty").exists()
    text = (made.out / "entities/gina_dancers/annotations.json").read_text()
    assert text.startswith('{\n    "mask_0": {\n        "concept": "a woman dancing"\n')


def test_the_real_slice_gives_the_same_pixels(test_data: Path, tmp_path: Path) -> None:
    paintings = test_data / "data/paintings"
    raw, processed = paintings / "raw", paintings / "processed"
    for kind, make in (("masks", make_masks), ("entities", make_entities)):
        make(
            RegionSettings(
                raw / "annotations.json", image_dir=raw / "images", out_dir=tmp_path / kind, workers=2
            )
        )
        wanted = {path.relative_to(processed) for path in (processed / kind).rglob("*.png")}
        assert {path.relative_to(tmp_path) for path in (tmp_path / kind).rglob("*.png")} == wanted
        assert len(wanted) == 29
        for name in wanted:
            with Image.open(processed / name) as there, Image.open(tmp_path / name) as here:
                assert there.mode == here.mode
                assert (np.asarray(there) == np.asarray(here)).all(), name


def test_damage_is_named_and_the_rest_goes_on(made: PaintingSet, caplog: pytest.LogCaptureFixture) -> None:
    def damage(document: dict) -> None:
        document["anna-maria_bridge.jpg"]["entities"]["two boats"]["bboxes"] = [[0.1, 0.2, "x", 0.4]]
        document["bo_harbour.no-2.jpg"]["entities"]["boats"]["bboxes"][0][2] = 1.5
        document["carl_portrait.jpg"] = None
        document["dora_still-life.jpg"] = {"description": "no entities"}
        document["../outside.jpg"] = document["hugo_village.jpg"]
        document["not-there.jpg"] = document["hugo_village.jpg"]

    made.edit(made.annotations, damage)
    (made.images / "gina_dancers.jpg").write_bytes((made.images / "gina_dancers.jpg").read_bytes()[:400])
    with caplog.at_level(logging.WARNING):
        journal = make_masks(
            RegionSettings(made.annotations, image_dir=made.images, out_dir=made.out / "masks", workers=2)
        )
    reasons = {
        "anna-maria_bridge.jpg": "not 4 numbers in",
        "bo_harbour.no-2.jpg": "not 4 numbers in",
        "carl_portrait.jpg": "no object `entities`",
        "dora_still-life.jpg": "no object `entities`",
        "gina_dancers.jpg": "damaged",
        "../outside.jpg": "not the name of an image",
        "not-there.jpg": "no such image",
    }
    assert set(journal.left_out) == set(reasons)
    for name, reason in reasons.items():
        assert reason in journal.left_out[name]
        assert name in caplog.text
    folders = {path.name for path in (made.out / "masks").iterdir() if path.is_dir()}
    assert folders == {"emil_wide-river", "hugo_village"}
    assert JournalReader(journal.path).left_out == journal.left_out  # the journal is the list


def test_a_file_that_is_no_json_is_refused_with_its_name(made: PaintingSet) -> None:
    made.annotations.write_text(made.annotations.read_text()[:-20])
    with pytest.raises(ValueError, match=r"annotations.json cannot be read as JSON: .*line 1"):
        make_masks(
            RegionSettings(made.annotations, image_dir=made.images, out_dir=made.out / "masks", workers=1)
        )
    made.annotations.unlink()
    with pytest.raises(ValueError, match=r"annotations.json does not exist; .*fetch-annotations"):
        make_masks(
            RegionSettings(made.annotations, image_dir=made.images, out_dir=made.out / "masks", workers=1)
        )
    assert not (made.out / "masks").exists()


def test_later_fields_survive_and_follow_their_concept(made: PaintingSet) -> None:
    entities = made.out / "entities"
    make_entities(RegionSettings(made.annotations, image_dir=made.images, out_dir=entities, workers=1))
    extract_roots(RootSettings(entities, "rule"))
    captions_to_folder(FolderSettings(made.captions, entities))
    captions_to_annotations(EntitySettings(entities))
    before = tree(entities)
    make_entities(RegionSettings(made.annotations, image_dir=made.images, out_dir=entities, workers=1))
    assert tree(entities) == before

    def rename(document: dict) -> None:
        found = document["gina_dancers.jpg"]["entities"]
        boxes = {"a cat": found.pop("A woman dancing")}
        document["gina_dancers.jpg"]["entities"] = boxes | {"a man's face": found["a man's face"]}

    made.edit(made.annotations, rename)
    make_entities(RegionSettings(made.annotations, image_dir=made.images, out_dir=entities, workers=1))
    found = json.loads((entities / "gina_dancers/annotations.json").read_text())
    assert found["mask_0"] == {"concept": "a cat"}  # another thing: its old caption would be wrong
    assert found["mask_1"]["caption"] == "thing 1 of ginadancers"
    assert set(found) == {"mask_0", "mask_1"}
    assert not (entities / "gina_dancers/mask_2.png").exists()


@pytest.mark.parametrize(("place", "count"), [("append", 1), ("append", 4), ("replace", 2), ("replace", 9)])
def test_killed_and_run_again_is_the_same(made: PaintingSet, place: str, count: int) -> None:
    masks, entities = made.out / "masks", made.out / "entities"
    make_masks(
        RegionSettings(made.annotations, image_dir=made.images, out_dir=made.root / "whole/masks", workers=2)
    )
    make_entities(
        RegionSettings(
            made.annotations, image_dir=made.images, out_dir=made.root / "whole/entities", workers=2
        )
    )
    killed(
        lambda: make_masks(RegionSettings(made.annotations, image_dir=made.images, out_dir=masks, workers=2)),
        place,
        count,
    )
    killed(
        lambda: make_entities(
            RegionSettings(made.annotations, image_dir=made.images, out_dir=entities, workers=2)
        ),
        place,
        count,
    )
    make_masks(RegionSettings(made.annotations, image_dir=made.images, out_dir=masks, workers=2))
    make_entities(RegionSettings(made.annotations, image_dir=made.images, out_dir=entities, workers=2))
    for kind in ("masks", "entities"):
        found = {name: data for name, data in tree(made.out / kind).items() if not name.endswith(".tmp")}
        assert found == tree(made.root / "whole" / kind)


def test_a_resumed_step_does_only_what_is_missing(made: PaintingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(
        lambda: make_masks(
            RegionSettings(made.annotations, image_dir=made.images, out_dir=made.out / "masks", workers=1)
        ),
        "append",
        5,
    )
    read: list[str] = []
    from inpainting.data.steps import regions

    real = regions.read_image
    monkeypatch.setattr(regions, "read_image", lambda path: read.append(path.name) or real(path))
    make_masks(RegionSettings(made.annotations, image_dir=made.images, out_dir=made.out / "masks", workers=1))
    assert len(read) == len(PAINTINGS) - 4


def test_a_journal_of_other_inputs_begins_anew_or_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stamp_x.jsonl"
    Journal(path, {"a": 1}).add("one", {"n": 3})
    assert Journal(path, {"a": 1}).done == {"one": {"n": 3}}
    with pytest.raises(ValueError, match="was begun with a 1, now 2"):
        Journal(path, {"a": 2}, keep=True)
    assert Journal(path, {"a": 2}).done == {}


def test_many_missing_images_are_listed_but_not_all_shown(
    made: PaintingSet, caplog: pytest.LogCaptureFixture
) -> None:
    entry = json.loads(made.annotations.read_text())["hugo_village.jpg"]
    more = {f"missing_{number}.jpg": entry for number in range(100)}
    made.edit(made.annotations, lambda document: document.update(more))
    with caplog.at_level(logging.WARNING):
        journal = make_masks(
            RegionSettings(made.annotations, image_dir=made.images, out_dir=made.out / "masks", workers=1)
        )
    assert set(journal.left_out) == set(more)
    assert len(caplog.records) == 21
    assert "all stand in" in caplog.records[-1].message


def test_order_and_errors_of_threads() -> None:
    assert list(in_order(lambda n: n * n, range(50), 4)) == [n * n for n in range(50)]

    def fail(n: int) -> int:
        if n == 7:
            raise KeyError("seven")
        return n

    with pytest.raises(KeyError, match="seven"):
        list(in_order(fail, range(1000), 4))
