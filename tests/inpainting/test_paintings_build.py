"""Splits, all steps in a row, noun roots: equal to the real slice, nothing lost by a kill or a change."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import spacy
from spacy.tokens import Doc

from inpainting.data.ops import BuildSettings, build_paintings
from inpainting.data.steps import describe, texts
from inpainting.data.steps.regions import RegionSettings, make_masks
from inpainting.data.steps.split import SplitSettings, split_images
from inpainting.data.steps.texts import RootSettings, extract_roots, rule_root
from ldm.images import read_image
from tests.conftest import ROOT
from tests.inpainting.painting_set import (
    PAINTINGS,
    REGIONS,
    SPLIT,
    UNANNOTATED,
    PaintingSet,
    killed,
    tree,
    write_set,
)


@pytest.fixture
def made(tmp_path: Path) -> PaintingSet:
    return write_set(tmp_path)


def settings(made: PaintingSet, out: Path | None = None, mode: str = "copy") -> BuildSettings:
    return BuildSettings(
        made.images,
        made.annotations,
        made.captions,
        made.table,
        out or made.out,
        mode=mode,
        workers=2,
        roots="rule",
    )


def placed(images: Path) -> dict[str, str]:
    """Image -> the folder that it is in; each is in one."""
    found = [(path.stem, path.parent.name) for path in images.glob("*/*.jpg")]
    assert len(found) == len(dict(found))
    return dict(found)


WANTED = {stem: SPLIT.get(stem, "train") for stem in REGIONS} | {UNANNOTATED: "unannotated"}


def test_build_makes_the_whole_set(made: PaintingSet) -> None:
    build_paintings(settings(made))
    assert placed(made.images) == WANTED
    for stem, count in REGIONS.items():
        document = json.loads((made.out / "entities" / stem / "annotations.json").read_text())
        assert len(document) == count
        for name, entry in document.items():
            assert list(entry) == ["concept", "noun_chunk_root", "caption"]
            assert (made.out / "masks" / stem / f"{name}.png").is_file()
    assert len(list(made.images.glob("*.jpg"))) == len(PAINTINGS)  # copied, not moved


def test_build_equals_the_real_slice(test_data: Path, tmp_path: Path) -> None:
    paintings = test_data / "data/paintings"
    raw, processed = paintings / "raw", paintings / "processed"
    files = [raw / name for name in ("images", "annotations.json", "llava.json", "wikiart_images.csv")]
    build_paintings(BuildSettings(*files, out_dir=tmp_path, roots="rule"))
    wanted = {name: data for name, data in tree(processed).items() if not name.endswith(".png")}
    found = tree(tmp_path)
    assert len(wanted) == 10 + 9
    for name, data in wanted.items():
        assert found[name] == data, name  # images in their splits, concepts, roots and captions, bytes equal
    assert {name for name in found if name.startswith("images") and name.endswith("jpg")} == {
        name for name in wanted if name.startswith("images")
    }


@pytest.mark.parametrize(("place", "count"), [("append", 3), ("append", 20), ("append", 41), ("replace", 30)])
def test_killed_and_run_again_is_the_same(made: PaintingSet, place: str, count: int) -> None:
    cut, whole = made.root / "cut", made.root / "whole"
    build_paintings(settings(made, whole))
    killed(lambda: build_paintings(settings(made, cut)), place, count)
    build_paintings(settings(made, cut))
    assert {name: data for name, data in tree(cut).items() if not name.endswith(".tmp")} == tree(whole)


def test_a_second_build_does_nothing_and_a_change_is_followed(made: PaintingSet) -> None:
    build_paintings(settings(made))
    before = {path: path.stat().st_mtime_ns for path in made.out.rglob("*") if path.is_file()}
    build_paintings(settings(made))
    assert {path: path.stat().st_mtime_ns for path in made.out.rglob("*") if path.is_file()} == before

    def change(document: dict) -> None:
        document["carl_portrait.jpg"]["entities"] = {"a green cat": {"bboxes": [[0.1, 0.1, 0.5, 0.5]]}}

    made.edit(made.annotations, change)
    build_paintings(settings(made))
    document = json.loads((made.out / "entities/carl_portrait/annotations.json").read_text())
    assert document["mask_0"] == {
        "concept": "a green cat", "noun_chunk_root": "cat", "caption": "thing 0 of carlportrait",
    }  # fmt: skip


def test_what_was_left_out_is_tried_again(made: PaintingSet) -> None:
    image = made.images / "emil_wide-river.jpg"
    whole = image.read_bytes()
    image.write_bytes(b"no image")
    build_paintings(settings(made))
    assert not (made.out / "masks/emil_wide-river").exists()
    before = tree(made.out)
    build_paintings(settings(made))  # still damaged: tried again, and no later step is upset
    assert tree(made.out) == before
    image.write_bytes(whole)
    build_paintings(settings(made))
    assert placed(made.images) == WANTED
    document = json.loads((made.out / "entities/emil_wide-river/annotations.json").read_text())
    assert document["mask_1"]["caption"] == "thing 1 of emilwideriver"


def test_models_make_what_is_missing(made: PaintingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """From images and a table alone; the networks are replaced by what they would say."""
    entries = json.loads(made.annotations.read_text())
    sizes = {read_image(made.images / name).rgb_u8.tobytes(): entry for name, entry in entries.items()}
    monkeypatch.setattr(describe, "open_model", lambda *_, **__: None)
    monkeypatch.setattr(
        describe, "describe_paintings", lambda _, images, limit: [sizes[image.tobytes()] for image in images]
    )
    monkeypatch.setattr(
        describe,
        "caption_crops",
        lambda _, crops, concepts, limit: [f"The image shows {concept} here." for concept in concepts],
    )
    made.annotations.unlink()
    made.captions.unlink()
    asked = replace(settings(made), annotator_id="kosmos", model_id="llava", batch_size=3)
    build_paintings(asked)
    assert json.loads(made.annotations.read_text()) == entries
    assert placed(made.images) == WANTED
    document = json.loads((made.out / "entities/gina_dancers/annotations.json").read_text())
    assert document["mask_1"]["caption"] == "a mans face here"
    before = tree(made.out)
    build_paintings(asked)
    assert tree(made.out) == before


def test_missing_files_are_named_with_their_command(made: PaintingSet) -> None:
    made.captions.unlink()
    with pytest.raises(ValueError, match=r"llava.json does not exist; .*fetch-annotations.*--model-id"):
        build_paintings(settings(made))
    made.annotations.unlink()
    with pytest.raises(ValueError, match=r"annotations.json does not exist; .*fetch-annotations"):
        build_paintings(settings(made))


@pytest.mark.parametrize("mode", ["copy", "move", "symlink"])
def test_split_modes(made: PaintingSet, mode: str) -> None:
    make_masks(RegionSettings(made.annotations, image_dir=made.images, out_dir=made.out / "masks", workers=2))
    contents = {path.name: path.read_bytes() for path in made.images.glob("*.jpg")}
    before = tree(made.root)
    split_images(SplitSettings(made.images, made.out / "masks", made.table, dry_run=True, **{mode: True}))
    assert tree(made.root) == before
    split_images(SplitSettings(made.images, made.out / "masks", made.table, **{mode: True}))
    assert placed(made.images) == WANTED
    assert {path.name: path.read_bytes() for path in made.images.glob("*/*.jpg")} == contents
    assert len(list(made.images.glob("*.jpg"))) == (0 if mode == "move" else len(PAINTINGS))
    assert all(path.is_symlink() == (mode == "symlink") for path in made.images.glob("*/*.jpg"))
    # Another table, the folder spelled otherwise: every image changes its folder and none is doubled, also
    # where there is no original any more.
    for path in made.images.glob("*.jpg") if mode == "copy" else ():
        path.unlink()
    rows = list(csv.reader(made.table.open()))
    made.table.write_text(
        "\n".join(",".join([*row[:3], {"train": "val"}.get(row[3], row[3])]) for row in rows)
    )
    spelled = Path(os.path.relpath(made.images))
    split_images(SplitSettings(spelled, made.out / "masks", made.table, **{mode: True}), made.images)
    assert placed(made.images) == {k: {"train": "val"}.get(v, v) for k, v in WANTED.items()}
    assert {path.name: path.read_bytes() for path in made.images.glob("*/*.jpg")} == contents


def test_a_killed_move_loses_no_image(made: PaintingSet) -> None:
    make_masks(RegionSettings(made.annotations, image_dir=made.images, out_dir=made.out / "masks", workers=2))
    contents = {path.name: path.read_bytes() for path in made.images.glob("*.jpg")}
    settings = SplitSettings(made.images, made.out / "masks", made.table, move=True)
    split = lambda: split_images(settings)  # noqa: E731
    killed(split, "append", 4)
    split()
    assert placed(made.images) == WANTED
    assert {path.name: path.read_bytes() for path in made.images.glob("*/*.jpg")} == contents


def test_images_without_a_split_are_named(made: PaintingSet) -> None:
    make_masks(RegionSettings(made.annotations, image_dir=made.images, out_dir=made.out / "masks", workers=2))
    made.table.write_text(
        made.table.read_text().replace("Large,val", "Large,").replace("Large,test", "Large,tset")
    )
    journal = split_images(SplitSettings(made.images, made.out / "masks", made.table))
    assert journal is not None
    assert set(journal.left_out) == {"bo_harbour.no-2.jpg", "carl_portrait.jpg"}
    assert "'tset', allowed are train, val, test" in journal.left_out["carl_portrait.jpg"]
    made.table.write_text("name,split\na,b\n")
    with pytest.raises(ValueError, match=r"wikiart_images.csv: the table needs one column file_name"):
        split_images(SplitSettings(made.images, made.out / "masks", made.table))


def test_the_random_split_is_scikit_learns(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    for k in range(20):
        (images / f"{k:02d}.jpg").touch()
        (masks / f"{k:02d}").mkdir(parents=True)
    with pytest.raises(ValueError, match="--val-size and --test-size"):
        split_images(SplitSettings(images, masks, None, 10, 10))
    split_images(SplitSettings(images, masks, None, 3, 4))
    # train_test_split(range(20), test_size=7, random_state=42), then its second part with test_size=4.
    assert sorted(os.listdir(images / "val")) == sorted(VAL)
    assert sorted(os.listdir(images / "test")) == sorted(TEST)
    assert len(os.listdir(images / "train")) == 13


# Computed by scikit-learn.
VAL = ["08.jpg", "01.jpg", "11.jpg"]
TEST = ["00.jpg", "17.jpg", "05.jpg", "15.jpg"]


def test_the_rule_agrees_with_the_real_slice(test_data: Path) -> None:
    found = (test_data / "data/paintings/processed/entities").glob("*/annotations.json")
    entries = [entry for path in found for entry in json.loads(path.read_text()).values()]
    assert len(entries) == 29
    assert all(rule_root(entry["concept"]) == entry["noun_chunk_root"] for entry in entries)


def test_the_rule_agrees_with_a_list_of_phrases() -> None:
    rows = list(csv.DictReader((ROOT / "tests/fixtures/noun_roots.csv").open()))
    right = [rule_root(row["phrase"]) == row["root"] for row in rows]
    assert len(rows) == 100
    assert sum(right) >= 99


def test_spacys_first_chunk_decides_where_its_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocab = spacy.blank("en").vocab
    heads, tags = [1, 1, 1, 4, 2], ["DET", "NOUN", "ADP", "DET", "NOUN"]
    words, parts = ["a", "woman", "with", "a", "hat"], ["det", "ROOT", "prep", "det", "pobj"]
    document = Doc(vocab, words=words, heads=heads, deps=parts, pos=tags)
    bare = Doc(vocab, words=["reclining"], heads=[0], deps=["ROOT"], pos=["VERB"])

    class Model:
        meta = {"version": "3.8.0"}

        def __call__(self, concept: str) -> Doc:
            return bare if concept == "reclining" else document

    monkeypatch.setattr(spacy.util, "is_package", lambda name: name == texts.MODEL)
    monkeypatch.setattr(spacy, "load", lambda name: Model())
    concepts = {"mask_0": "a woman with a hat", "mask_1": "reclining"}
    path = tmp_path / "a/annotations.json"
    path.parent.mkdir()
    path.write_text(json.dumps({name: {"concept": concept} for name, concept in concepts.items()}))
    journal = extract_roots(RootSettings(tmp_path))
    assert journal.inputs is not None
    assert journal.inputs["method"] == "spacy en_core_web_sm 3.8.0"
    entries = json.loads(path.read_text())
    assert [entries[name]["noun_chunk_root"] for name in concepts] == ["woman", "reclining"]
    monkeypatch.setattr(spacy.util, "is_package", lambda name: False)
    journal = extract_roots(RootSettings(tmp_path))
    assert journal.inputs is not None
    assert journal.inputs["method"].startswith("rule over the tags of textblob")
    with pytest.raises(ValueError, match="python -m spacy download en_core_web_sm"):
        extract_roots(RootSettings(tmp_path, "spacy"))


def test_what_decided_stands_in_the_journal(made: PaintingSet) -> None:
    build_paintings(settings(made))
    with (made.out / "entities/stamp_extract-noun-chunk-roots.jsonl").open() as file:
        assert json.loads(file.readline())["inputs"]["method"].startswith("rule over the tags of textblob")
    assert sorted(os.listdir(made.out)) == ["entities", "images", "masks"]
