"""The builder on synthetic photographs: what it asks is true, what it shows lacks the object."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.relations import Place
from ldm.images import read_image
from ldm.settings.cli import run_app
from ldm.settings.config import load_config
from llava_bifrost.build_dataset.__main__ import build_app
from llava_bifrost.build_dataset.coco import CocoBuild, CocoSource
from llava_bifrost.build_dataset.files import merge_shards
from llava_bifrost.build_dataset.records import read_records
from llava_bifrost.language.answer import parse_answer, satisfies
from llava_bifrost.language.instruction import Request, make_question
from llava_bifrost.language.reading import parse_instruction
from llava_bifrost.settings import MergeShardsSettings
from tests.datasets.photographs import COUNT, contents, photograph, records, run, settings, write_coco


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def built(coco: Path, small_depth_network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "set"
    run(settings(coco, small_depth_network, out))
    return out


def anchors_of(meta: dict[str, Any]) -> dict[str, Place]:
    return {name: Place(tuple(one["box01_xyxy"]), one["d"], one["far"], one["near"])
            for name, one in meta["anchors"].items()}  # fmt: skip


def test_every_record_is_a_conversation_about_a_image(built: Path) -> None:
    found = records(built)
    assert {record["meta"]["kind"] for record in found} == {"place", "replace"}
    assert len({record["id"] for record in found}) == len(found)
    for record in found:
        human, answer = (turn["value"] for turn in record["conversations"])
        assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"]
        request = parse_instruction(human)
        stored = record["meta"]["request"]
        assert request == Request(stored["target"], tuple(map(tuple, stored["relations"])), stored["replace"])
        assert human == f"<image>\n{make_question(request)}"
        location, meta = parse_answer(answer), record["meta"]
        assert location.box01_xyxy == pytest.approx(meta["box01_xyxy"], abs=6e-4)
        assert location.d == pytest.approx(meta["depth"], abs=6e-4)
        assert 0 <= meta["far"] <= meta["depth"] <= meta["near"] <= 1
        assert (built / "images" / record["image"]).is_file()
        assert set(meta["anchors"]) == set(request.anchors)


def test_what_is_asked_is_true(built: Path) -> None:
    places = [record["meta"] for record in records(built) if record["meta"]["kind"] == "place"]
    assert len(places) >= 5
    for meta in places:
        where = Place.of(tuple(meta["box01_xyxy"]), meta["depth"], meta["far"], meta["near"])
        request = Request(meta["request"]["target"], tuple(map(tuple, meta["request"]["relations"])))
        assert all(satisfies(where, request, anchors_of(meta)).values())


def test_the_object_is_gone_and_the_rest_is_there(coco: Path, built: Path) -> None:
    document = json.loads((coco / "instances.json").read_text())
    ids = {one["name"].lower().replace("_", " "): one["id"] for one in document["categories"]}
    seen = 0
    for record in records(built):
        if record["meta"]["kind"] != "place" or record["image"].startswith("p6"):  # two cats
            continue
        name, index = record["meta"]["request"]["target"], int(record["image"][1])
        before = photograph(index)[0].astype(int)
        after = read_image(built / "images" / record["image"]).rgb_u8.astype(int)
        box = next(one["bbox"] for one in document["annotations"]
                   if one["image_id"] == index + 1 and one["category_id"] == ids[name])  # fmt: skip
        x, y, r = box[0] + box[2] // 2, box[1] + box[3] // 2, box[2] // 2
        rows, columns = np.mgrid[:96, :128]
        away = np.hypot(rows - y, columns - x)
        # JPEG changes noise by a few levels; a disc differs from its floor by far more.
        assert np.abs(after - before)[away > r + 12].mean() < 6
        assert np.abs(after - before)[away < r - 3].mean() > 10
        seen += 1
    assert seen >= 5


def test_the_depth_by_rules_is_named_for_photographs(
    coco: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without --depth it comes from rules, and the log says what that means and how to get a network."""
    caplog.set_level("INFO")
    CocoSource(CocoBuild(images=coco / "images", annotations=coco / "instances.json", out=tmp_path))
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "assets/depth is no full-size network, and meets photographs" in said
    assert "python -m ldm.registry pull depth" in said


def test_crowds_and_empty_images_are_counted(built: Path) -> None:
    report = json.loads((built / "statistics.json").read_text())
    assert report["items"] == COUNT
    assert report["samples"] == len(records(built)) == sum(report["kinds"].values())
    assert report["dropped"]["no target"] == 1
    named = [record["meta"] for record in records(built) if record["image"].startswith("p6")]
    assert named
    assert all("cat" not in meta["anchors"] for meta in named)  # beside a crowd of cats


def test_published_rules_keep_their_thresholds(coco: Path, small_depth_network: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    given = settings(coco, small_depth_network, out, published=True, format="maxmedmin")
    report = run(given)
    assert report is not None
    assert report["samples"] == 0
    assert report["dropped"] == {"no target": COUNT}  # no disc covers a fifth of its image


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"--images": "absent"}, "images: there is no folder absent"),
        ({"--annotations": "absent.json"}, "absent.json does not exist"),
        ({"--eraser": "absent.pt"}, "eraser absent.pt"),
        ({"--depth": "absent"}, "depth model absent"),
        ({"--shard": "2/2"}, "shard must be i/n"),
        ({"--format": "xyz"}, "center, maxmedmin"),
        ({"--decimals": "9"}, "decimals"),
        ({"--seed": "1"}, "was begun with another batch, replace, seed, targets, thresholds (recipe.json)"),
    ],
)
def test_wrong_settings_are_refused(
    coco: Path,
    small_depth_network: Path,
    built: Path,
    change: dict,
    reason: str,
    capsys: pytest.CaptureFixture,
) -> None:
    given = {"--images": coco / "images", "--annotations": coco / "instances.json", "--out": built,
             "--depth": small_depth_network, **change}  # fmt: skip
    before = contents(built)
    assert run_app(build_app, ["coco", *(str(part) for pair in given.items() for part in pair)]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.splitlines()[-1].startswith("error: ")
    assert contents(built) == before


def test_a_question_without_an_image_is_refused(built: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "set")
    (part,) = (folder / "parts").iterdir()
    first, *rest = part.read_text().splitlines(keepends=True)
    line = next(line for line in (json.loads(each) for each in (first, *rest)) if line["records"])
    for text in ("Place the dog", "<image>\n<image>\nPlace the dog", "Place the dog\n<image>"):
        line["records"][0]["conversations"][0]["value"] = text
        part.write_text("".join([first, *rest, json.dumps(line) + "\n"]))
        with pytest.raises(ValueError, match="must begin with one <image>"):
            merge_shards(MergeShardsSettings(folder))


@pytest.mark.parametrize("name", ["coco", "location"])
def test_real_images(test_data: Path, name: str, tmp_path: Path) -> None:
    images, annotations = {
        "coco": ("coco/val2017", "coco/annotations/instances_val2017.json"),
        "location": ("location/images", "location/instances.json"),
    }[name]
    given = CocoBuild(images=test_data / "data" / images, annotations=test_data / "data" / annotations,
                      out=tmp_path / "set", targets=3, replace=1, device="cpu")  # fmt: skip
    report = run(given)
    assert report is not None
    assert report["kinds"]["place"] >= 3
    assert report["kinds"]["replace"] >= 1
    assert len(read_records(given.out / "dataset.json")) == report["samples"]


def test_the_settings_files_are_those_of_the_paper() -> None:
    given = load_config(CocoBuild, Path("configs/llava_bifrost/build_published.yaml"))
    assert given.published
    assert given.format == "maxmedmin"
