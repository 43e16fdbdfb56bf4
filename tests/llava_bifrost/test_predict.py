"""Locators with random weights: every answer parses, candidates are ranked, jobs continue, errors tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.geometry import iou
from datasets.relations import Place
from ldm.images import read_image, write_png
from ldm.settings.cli import run_app
from ldm.settings.config import write_config
from llava_bifrost.language.answer import Candidate, parse_answer
from llava_bifrost.language.instruction import InstructionError, Request
from llava_bifrost.locator import (
    BROKEN,
    CONFIG,
    Locator,
    LocatorConfig,
    distinct,
    load_locator,
    rank,
    read_locator_config,
)
from llava_bifrost.predict.__main__ import build_app
from llava_bifrost.propose import read_anchors
from tests.ldm.small_mllm import FAMILIES, NAMES, PHRASES, small_folder

IMAGE = np.random.default_rng(1).integers(0, 255, (70, 90, 3), dtype=np.uint8)
ORDER = "Place the dog behind the sofa"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("locators")
    found = {family: small_folder(family, root / family) for family in FAMILIES}
    write_config(found["llava_words"] / CONFIG, LocatorConfig(decimals=2))
    return found


@pytest.fixture(scope="module")
def words(folders: dict[str, Path]) -> Locator:
    return load_locator(folders["llava_words"], "cpu")


def instructions(count: int) -> tuple[list[np.ndarray], list[str]]:
    rng = np.random.default_rng(3)
    texts, images = [], []
    for _ in range(count):
        target, anchor, other = rng.choice(NAMES, 3, replace=False)
        clauses = [f"{rng.choice(PHRASES)} the {name}" for name in (anchor, other)[: rng.integers(1, 3)]]
        text = (
            f"Replace the {target}" if rng.random() < 0.1 else f"Place the {target} {' and '.join(clauses)}"
        )
        texts.append(text)
        sides = rng.integers(20, 120, 2)
        images.append(rng.integers(0, 255, (*sides, 3), dtype=np.uint8))
    return images, texts


@pytest.mark.parametrize(
    ("family", "count"), [(f, 200 if f in ("llava", "llava_words") else 25) for f in FAMILIES]
)
def test_every_answer_parses(folders: dict[str, Path], family: str, count: int):
    """Random weights say anything; the form still holds, and the box has an area."""
    locator = load_locator(folders[family], "cpu")
    images, texts = instructions(count)
    found: list[Candidate] = []
    for start in range(0, count, 50):
        found += locator.locate_many(images[start : start + 50], texts[start : start + 50])
    assert len(found) == count
    assert len({one.text for one in found}) > 1
    if locator.codec.name == "bifrost":
        assert all(parse_answer(one.text) == one.location for one in found)
    assert all(one.log_probability < 0 for one in found)


@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl"])
def test_the_other_format(folders: dict[str, Path], family: str, tmp_path: Path):
    for file in folders[family].iterdir():
        (tmp_path / file.name).symlink_to(file)
    codec = read_locator_config(folders[family], family).codec
    write_config(tmp_path / CONFIG, LocatorConfig(format="maxmedmin", codec=codec))
    locator = load_locator(tmp_path, "cpu")
    for one in locator.locate_many(*instructions(10)):
        assert one.location.extent is not None


def test_a_batch_gives_the_answers_of_singles(words: Locator):
    images, texts = instructions(6)
    alone = [words.locate(image, text)[0] for image, text in zip(images, texts, strict=True)]
    for one, other in zip(words.locate_many(images, texts), alone, strict=True):
        assert (one.text, one.location) == (other.text, other.location)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-3)


def test_candidates(words: Locator):
    greedy = words.locate(IMAGE, ORDER)[0]
    found = words.locate(IMAGE, ORDER, 5, seed=1)
    assert 2 <= len(found) <= 5
    assert greedy.location in [one.location for one in found]
    scores = [one.score for one in found]
    assert None not in scores
    assert [round(score or 0, 2) for score in scores] == sorted(
        (round(s or 0, 2) for s in scores), reverse=True
    )
    assert len(distinct(found)) == len(found)
    assert found == words.locate(IMAGE, ORDER, 5, seed=1)
    assert found != words.locate(IMAGE, ORDER, 5, seed=2)
    assert greedy.score is None


def test_ranking_follows_geometry():
    sofa = Place((0.3, 0.4, 0.7, 0.8), 0.6, 0.5, 0.7)
    depth_01 = np.repeat(np.linspace(0, 1, 100, dtype=np.float32)[:, None], 100, axis=1)
    request = Request("dog", (("behind", "sofa"),))
    behind, before = Place.of((0.4, 0.2, 0.6, 0.4), 0.4), Place.of((0.4, 0.6, 0.6, 0.9), 0.9)
    hanging = Place.of((0.4, 0.05, 0.6, 0.2), 0.45)
    known = request, {"sofa": sofa}, depth_01
    candidates = [Candidate(where, p, "") for where, p in ((before, -1.0), (hanging, -2.0), (behind, -9.0))]
    best, *rest = rank(candidates, *known)
    assert best.location == behind

    def score(box: tuple[float, float, float, float], d: float, *known: Any) -> float:
        return rank([Candidate(Place.of(box, d), 0.0, "")], *known)[0].score or 0.0

    good = score(behind.box01_xyxy, behind.d, *known)
    assert 0 < score(before.box01_xyxy, before.d, *known) <= BROKEN < good
    assert score(hanging.box01_xyxy, hanging.d, *known) < 0.3 < good, "it has no support"
    assert score((0.01, 0.01, 0.99, 0.4), 0.4, *known) < 0.5 * good, "it is too large"
    assert score((0.0, 0.2, 0.5, 0.4), 0.4) < 1 == score((0.1, 0.2, 0.5, 0.4), 0.4)
    assert [one.log_probability for one in rank(candidates)] == [-1.0, -2.0, -9.0]


def test_near_repetitions_are_one():
    boxes = [(0.1, 0.1, 0.5, 0.5), (0.1, 0.1, 0.5, 0.505), (0.1, 0.1, 0.5, 0.9)]
    depths = [(0.5, -3.0), (0.51, -1.0), (0.5, -2.0)]
    found = distinct([Candidate(Place.of(box, d), p, "") for box, (d, p) in zip(boxes, depths, strict=True)])
    assert [one.log_probability for one in found] == [-3.0, -2.0]
    assert iou(found[0].location.box01_xyxy, found[1].location.box01_xyxy) < 0.9


def test_anchors_are_asked_of_the_locator(words: Locator):
    request = words.understand("Place the cat between the dog and the lamp")
    assert request is not None
    found = words.find_anchors(IMAGE, request)
    assert set(found) == {"dog", "lamp"}
    asked = words.locate(IMAGE, "Replace the dog with the reference image")[0]
    assert found["dog"] == asked.location


def test_errors(words: Locator, folders: dict[str, Path], tmp_path: Path):
    with pytest.raises(
        InstructionError, match=r"'wolf' is not .* knows: blue, cat, chair, .*--locator geometric"
    ):
        words.locate(IMAGE, "Place the wolf behind the sofa")
    with pytest.raises(InstructionError, match="'grey'"):
        words.locate(IMAGE, "Place the dog behind the grey sofa")
    with pytest.raises(InstructionError, match="known forms"):
        words.locate(IMAGE, "The dog should be somewhere")
    with pytest.raises(ValueError, match="candidates must be at least 1"):
        words.locate(IMAGE, ORDER, 0)
    with pytest.raises(ValueError, match="image must be a path, a PIL image, or an array"):
        words.locate(IMAGE / 255, ORDER)
    with pytest.raises(ValueError, match="no locator there"):
        load_locator(tmp_path)
    write_config(tmp_path / CONFIG, LocatorConfig())
    text = (tmp_path / CONFIG).read_text()
    (tmp_path / CONFIG).write_text(text.replace("bifrost", "xml"))
    with pytest.raises(ValueError, match=r"locator.json: unknown codec 'xml'"):
        read_locator_config(tmp_path, "llava")
    (tmp_path / "config.json").write_text('{"model_type": "llava", "mm_projector_type": "mlp2x_gelu"}')
    with pytest.raises(ValueError, match="llava_bifrost.model convert"):
        load_locator(tmp_path)


def test_an_open_vocabulary_takes_any_sentence(folders: dict[str, Path], caplog: pytest.LogCaptureFixture):
    locator = load_locator(folders["llava"], "cpu")
    assert locator.locate(IMAGE, "The xylophone should lean against the wall.")
    assert "asked as it stands" in caplog.text
    assert locator.locate(IMAGE, "Place the xylophone behind the grey wolf")


def test_anchor_files(tmp_path: Path):
    path = tmp_path / "anchors.json"
    path.write_text(json.dumps([{"name": "The Sofa", "box": [0.1, 0.2, 0.3, 0.4], "depth": 0.5}]))
    assert read_anchors(path)["the sofa"].d == 0.5
    one = {"sofa": {"box01_xyxy": [0.1, 0.2, 0.3, 0.4], "d": 0.5, "far": 0.4, "near": 0.7}}
    assert read_anchors(one) == {"sofa": Place((0.1, 0.2, 0.3, 0.4), 0.5, 0.4, 0.7)}
    assert read_anchors([{"name": "a", "box": [0, 0, 1, 1], "depth": [0.2, 0.4]}])["a"].near == 0.4
    for wrong, said in (
        ([{"name": "a", "box": [0, 0, 1], "depth": 0.5}], "a: .*3 numbers"),
        ([{"box": [0, 0, 1, 1], "depth": 0.5}], "needs a name"),
        ([{"name": "a", "box": [0, 0, 1, 1]}], "a: "),
        ([{"name": "a", "box": [0, 0, 1, 1], "depth": 0.5}] * 2, "twice"),
        ("text", "list of objects"),
    ):
        with pytest.raises(ValueError, match=said):
            read_anchors(wrong)


def test_image_command(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    image, sheet = tmp_path / "room.png", tmp_path / "out" / "sheet.png"
    write_png(image, IMAGE)
    arguments = [
        "image",
        "--model",
        str(folders["llava_words"]),
        "--image",
        str(image),
        "--instruction",
        ORDER,
    ]
    assert run_app(build_app, [*arguments, "--candidates", "3", "--out", str(sheet), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert 1 < len(report["candidates"]) <= 3
    assert {"box01_xyxy", "depth", "score", "log_probability", "answer"} <= set(report["candidates"][0])
    assert max(read_image(sheet).size) == 640
    assert run_app(build_app, arguments) == 0
    assert capsys.readouterr().out.startswith("box 0.")
    assert run_app(build_app, [*arguments[:-1], "Place the wolf behind the sofa"]) == 2
    assert "--locator geometric" in capsys.readouterr().err


def test_jobs_continue(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images, texts = instructions(5)
    jobs = tmp_path / "jobs.jsonl"
    lines = []
    for index, (image, text) in enumerate(zip(images, texts, strict=True)):
        write_png(tmp_path / f"{index}.png", image)
        lines.append(json.dumps({"id": f"job-{index}", "image": f"{index}.png", "instruction": text}))
    lines.append(json.dumps({"image": "0.png", "instruction": "Place the wolf on the sofa"}))
    jobs.write_text("\n".join(lines) + "\n")
    out = tmp_path / "jobs.answers.jsonl"
    command = ["jsonl", "--model", str(folders["llava_words"]), "--jobs", str(jobs), "--batch", "2"]
    assert run_app(build_app, command) == 0
    whole = out.read_bytes()
    answers = [json.loads(line) for line in whole.splitlines()]
    assert [one["id"] for one in answers] == [*(f"job-{index}" for index in range(5)), "6"]
    assert "wolf" in answers[-1]["error"]
    assert all(len(one["candidates"]) == 1 for one in answers[:-1])
    kept = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(kept[:2]) + kept[2][:30])
    assert run_app(build_app, command) == 0
    assert [json.loads(line)["id"] for line in out.read_bytes().splitlines()] == [
        one["id"] for one in answers
    ]
    assert run_app(build_app, [*command, "--out", str(tmp_path / "part.jsonl"), "--shard", "1/3"]) == 0
    part = [json.loads(line)["id"] for line in (tmp_path / "part.jsonl").read_text().splitlines()]
    assert part == ["job-1", "job-4"]
    jobs.write_text(lines[0] + "\n" + lines[0] + "\n")
    assert run_app(build_app, command) == 2
    assert "'job-0' is there 2 times" in capsys.readouterr().err
