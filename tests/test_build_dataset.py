"""The builder on synthetic photographs: what it asks is true, what it writes survives a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from datasets.relations import Place
from ldm.config import load_config
from ldm.images import read_picture, write_png
from ldm.options import run_app
from llava_bifrost.build_coco import CocoBuild, CocoSource
from llava_bifrost.build_dataset import build_app
from llava_bifrost.build_files import build, merge, read_part
from llava_bifrost.build_records import check_record
from llava_bifrost.build_removal import Thresholds
from llava_bifrost.location import (
    Location,
    Request,
    make_question,
    parse_answer,
    parse_instruction,
    satisfies,
)

CATEGORIES = ["dog", "cat", "Milk_bottle", "dining table"]
COUNT = 8


def photograph(index: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A floor that comes nearer downwards, with three coloured discs on it, and their annotations."""
    rng = np.random.default_rng(index)
    h, w = 96, 128
    noise = rng.integers(0, 8, (h, w, 3))
    rgb_u8 = (noise + np.linspace(60, 200, h)[:, None, None]).astype(np.uint8)
    objects = []
    for number, middle in enumerate((24, 62, 102)):
        x, y, r = int(middle + rng.integers(-6, 7)), int(rng.integers(30, 74)), int(rng.integers(10, 16))
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        outline = np.stack([x + r * np.cos(angle), y + r * np.sin(angle)], 1)
        colour = [int(one) for one in rng.integers(0, 255, 3)]
        cv2.fillPoly(rgb_u8, [np.round(outline).astype(np.int32)], colour)
        objects.append({
            "category_id": number + 1, "iscrowd": 0, "bbox": [x - r, y - r, 2 * r, 2 * r], "area": 3 * r * r,
            "segmentation": [[round(float(value), 2) for value in outline.ravel()]],
        })  # fmt: skip
    return rgb_u8, objects


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures and instances.json; picture 7 has no object, a crowd blurs picture 6."""
    root = tmp_path_factory.mktemp("coco")
    images, annotations = [], []
    for index in range(COUNT):
        rgb_u8, objects = photograph(index)
        write_png(root / "images" / f"p{index}.png", rgb_u8)
        images.append({"id": index + 1, "file_name": f"p{index}.png", "width": 128, "height": 96})
        if index == 6:
            objects[0]["category_id"] = objects[1]["category_id"]
            objects[0]["iscrowd"] = 1
        annotations += [{**one, "image_id": index + 1} for one in objects if index != 7]
    for number, one in enumerate(annotations):
        one["id"] = number
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(CATEGORIES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(document))
    return root


def settings(coco: Path, depth: Path, out: Path, **changes: Any) -> CocoBuild:
    given: dict[str, Any] = {"targets": 2, "replace": 0.6, "batch": 2, "device": "cpu", **changes}
    given.setdefault("thresholds", Thresholds(depth_error=1.0))
    given |= {"images": coco / "images", "annotations": coco / "instances.json", "depth": str(depth)}
    return CocoBuild(out=out, **given)


def run(given: CocoBuild) -> dict[str, Any] | None:
    return build(CocoSource(given), given)[1]


def contents(out: Path) -> dict[str, bytes]:
    """The final files of a data set, without its parts."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.parent.name != "parts")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def differing(one: Path, other: Path) -> list[str]:
    """Final files that are not the same in both data sets."""
    a, b = contents(one), contents(other)
    return sorted(name for name in {*a, *b} if a.get(name) != b.get(name))


@pytest.fixture(scope="module")
def built(coco: Path, small_depth_network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "set"
    run(settings(coco, small_depth_network, out))
    return out


def records(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "dataset.json").read_text())


def anchors_of(meta: dict[str, Any]) -> dict[str, Place]:
    return {name: Place(tuple(one["box01_xyxy"]), one["d"], one["far"], one["near"])
            for name, one in meta["anchors"].items()}  # fmt: skip


def test_every_record_is_a_conversation_about_a_picture(built: Path) -> None:
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
        assert location.depth == pytest.approx(meta["depth"], abs=6e-4)
        assert 0 <= meta["far"] <= meta["depth"] <= meta["near"] <= 1
        assert (built / "images" / record["image"]).is_file()
        assert set(meta["anchors"]) == set(request.anchors)


def test_what_is_asked_is_true(built: Path) -> None:
    places = [record["meta"] for record in records(built) if record["meta"]["kind"] == "place"]
    assert len(places) >= 5
    for meta in places:
        where = Location(tuple(meta["box01_xyxy"]), meta["depth"], meta["far"], meta["near"])
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
        after = read_picture(built / "images" / record["image"]).rgb_u8.astype(int)
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


def test_crowds_and_empty_pictures_are_counted(built: Path) -> None:
    report = json.loads((built / "statistics.json").read_text())
    assert report["items"] == COUNT
    assert report["samples"] == len(records(built)) == sum(report["kinds"].values())
    assert report["dropped"]["no target"] == 1
    named = [record["meta"] for record in records(built) if record["image"].startswith("p6")]
    assert named
    assert all("cat" not in meta["anchors"] for meta in named)  # beside a crowd of cats


def test_shards_merge_to_the_same_files(
    coco: Path, small_depth_network: Path, built: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    assert run(settings(coco, small_depth_network, out, shard="1/2")) is None
    with pytest.raises(ValueError, match="4 of 8 items are built"):
        merge(out)
    assert run(settings(coco, small_depth_network, out, shard="0/2")) is None
    merge(out)
    assert differing(out, built) == []


def test_killed_and_continued_gives_the_same_files(
    coco: Path, small_depth_network: Path, built: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    given = settings(coco, small_depth_network, out)
    script = (
        "import sys, time, llava_bifrost.build_files as files\n"
        "from llava_bifrost.build_dataset import build_app\n"
        "from ldm.options import run_app\n"
        "write = files.append\n"
        "def slow(*args):\n    write(*args)\n    time.sleep(0.3)\n"
        "files.append = slow\n"
        "sys.exit(run_app(build_app, sys.argv[1:]))\n"
    )
    arguments = ["coco", "--images", given.images, "--annotations", given.annotations, "--out", out,
                 "--depth", given.depth, "--targets", 2, "--replace", 0.6, "--batch", 2, "--device", "cpu",
                 "--thresholds.depth-error", 1]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], env=environment)
    part = out / "parts" / "shard-0-of-1.jsonl"
    until = time.monotonic() + 120
    while len(read_part(part)) < 3 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 3 <= len(read_part(part)) < COUNT
    assert not (out / "dataset.json").exists()
    # What a kill in the middle of a write leaves behind.
    with part.open("ab") as file:
        file.write(b'{"item": "p7", "rec')
    (out / "images" / ".p5_0.jpg.0123.tmp").write_bytes(b"half")
    run(given)
    assert differing(out, built) == []
    before = part.read_bytes()
    run(given)
    assert part.read_bytes() == before
    assert differing(out, built) == []


def test_published_rules_keep_their_thresholds(coco: Path, small_depth_network: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    given = settings(coco, small_depth_network, out, published=True, format="maxmedmin")
    report = run(given)
    assert report is not None
    assert report["samples"] == 0
    assert report["dropped"] == {"no target": COUNT}  # no disc covers a fifth of its picture


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
        ({"--seed": "1"}, "begun with other settings"),
    ],
)
def test_wrong_settings_are_refused(
    coco: Path, small_depth_network: Path, built: Path, change: dict, reason: str,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    given = {"--images": coco / "images", "--annotations": coco / "instances.json", "--out": built,
             "--depth": small_depth_network, **change}  # fmt: skip
    before = contents(built)
    assert run_app(build_app, ["coco", *(str(part) for pair in given.items() for part in pair)]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.splitlines()[-1].startswith("error: ")
    assert contents(built) == before


def test_merging_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_app(build_app, ["merge", "--out", str(tmp_path)]) == 2
    assert "holds no data set" in capsys.readouterr().err


def test_a_question_without_a_picture_is_refused(built: Path) -> None:
    record = records(built)[0]
    check_record(record)
    for text in ("Place the dog", "<image>\n<image>\nPlace the dog", "Place the dog\n<image>"):
        record["conversations"][0]["value"] = text
        with pytest.raises(ValueError, match="must begin with one <image>"):
            check_record(record)


def test_damaged_parts_are_refused(coco: Path, small_depth_network: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    part = out / "parts" / "shard-0-of-1.jsonl"
    part.parent.mkdir(parents=True)
    part.write_text("no json\n")
    with pytest.raises(ValueError, match="is damaged"):
        run(settings(coco, small_depth_network, out))


@pytest.mark.parametrize("name", ["coco", "location"])
def test_real_pictures(test_data: Path, name: str, tmp_path: Path) -> None:
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
    for record in records(given.out):
        check_record(record)


def test_the_settings_files_are_those_of_the_paper() -> None:
    given = load_config(CocoBuild, Path("configs/llava_bifrost/build_published.yaml"))
    assert given.published
    assert given.format == "maxmedmin"
