"""Answers as points in masks: JSONL and RefSpatial-Bench; unknown words are failures, not ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.relations import Place
from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import render_shards
from ldm.images import write_png
from ldm.mllm.model import Mllm
from llava_bifrost.evaluate import run as evaluate
from llava_bifrost.evaluate.run import GREEDY, SHUFFLED, greedy_answers, read_points, stands_in
from llava_bifrost.language.answer import AnswerError, Candidate
from llava_bifrost.locator import Locator, LocatorConfig
from llava_bifrost.settings import LocatorEvaluation
from tests.ldm.small_mllm import build_small, small_folder

SENTENCE = "Place the dog behind the sofa"


def photographs(folder: Path, count: int = 4) -> list[dict[str, str]]:
    """Images whose first pixel says where the mask is: left for even ones, right for odd ones."""
    rows = []
    for number in range(count):
        image, mask = np.full((40, 60, 3), 90, np.uint8), np.zeros((40, 60), np.uint8)
        image[0, 0] = number % 2
        mask[20:, 30 * (number % 2) : 30 + 30 * (number % 2)] = 255
        write_png(folder / "image" / f"{number}.png", image)
        write_png(folder / "mask" / f"{number}.png", mask)
        rows.append({"image": f"image/{number}.png", "sentence": SENTENCE, "mask": f"mask/{number}.png"})
    return rows


def written(folder: Path, form: str) -> Path:
    rows = photographs(folder)
    if form == "jsonl":
        (folder / "points.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        return folder / "points.jsonl"
    named = [
        {"id": k, "rgb_path": row["image"], "mask_path": row["mask"], "prompt": row["sentence"], "step": 1}
        for k, row in enumerate(rows)
    ]
    (folder / "question.json").write_text(json.dumps(named))
    return folder if form == "folder" else folder / "question.json"


def seeing(self: Locator, images_u8: Any, questions: Any) -> list[Candidate]:
    """A locator that puts things into the right half."""
    lefts = [0.6 * float(image[0, 0, 0]) for image in images_u8]
    return [Candidate(Place.of((left + 0.1, 0.4, left + 0.3, 0.8), 0.5), 0.0, "") for left in lefts]


@pytest.mark.parametrize("form", ["jsonl", "folder", "file"])
def test_points_are_counted_in_masks(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Locator, "answer", seeing)
    data = written(tmp_path / "bench", form)
    assert len(read_points(data)) == 4
    model = small_folder("llava", tmp_path / "model")
    out = tmp_path / "numbers.json"
    config = LocatorEvaluation(model=model, dataset=data, out=out, device="cpu", batch=3, scenes=3)
    table = evaluate.evaluate_locator(config)["points"]
    assert table[GREEDY]["in_mask"]["mean"] == 1
    assert table[SHUFFLED]["in_mask"]["mean"] == pytest.approx(1 / 3, abs=1e-3)  # 0 1 0 about 1 0 0
    assert table["any point"]["in_mask"]["mean"] == pytest.approx(0.25)
    assert json.loads(out.read_text())["points"][GREEDY]["answered"]["n"] == 3
    assert "point in mask" in out.with_suffix(".txt").read_text()


@pytest.mark.parametrize(
    ("box", "pixel"),
    [((0.1, 0.4, 0.3, 0.8), (32, 12)), ((0.0, 0.0, 1.0, 1.0), (39, 30)), ((0.9, 0.9, 1.0, 1.0), (39, 57))],
)
def test_the_point_is_where_the_object_stands(box: tuple, pixel: tuple[int, int]):
    mask = np.zeros((40, 60), bool)
    mask[pixel] = True
    assert stands_in(Place.of(box, 0.5), mask)
    assert not stands_in(Place.of(box, 0.5), ~mask)
    assert not stands_in(None, mask | True)


def test_an_unknown_word_is_a_failure_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture):
    model, processor = build_small("llava_words")
    locator = Locator(Mllm(model, processor, Path()), LocatorConfig(decimals=2))
    images = [np.full((40, 60, 3), 9, np.uint8)] * 4
    texts = [SENTENCE, "Place the giraffe behind the sofa", "Dogs bark.", SENTENCE]
    for constrained in (True, False):
        answers = greedy_answers(locator, texts, images, 8, constrained)
        assert answers[1] is None
        assert answers[2] is None
        assert (answers[0] is not None) == (answers[3] is not None)
    assert greedy_answers(locator, texts, images, 1)[0] is not None
    assert "counted as wrong: Place the giraffe behind the sofa: 'giraffe' is not a word" in caplog.text


def test_unknown_nouns_of_a_dataset_count(tmp_path: Path):
    """One of three names what the locator does not know; free answers and several candidates have rows."""
    model = small_folder("llava_words", tmp_path / "model")
    (model / "locator.json").write_text('{"decimals": 2}')
    write_png(tmp_path / "a.png", np.full((40, 60, 3), 9, np.uint8))
    records = []
    for number, name in enumerate(("dog", "giraffe", "cat")):
        turns = [
            {"value": f"<image>\nPlace the {name} behind the sofa"},
            {"value": "[0.10, 0.10, 0.30, 0.40], 0.30."},
        ]
        sofa = {"box01_xyxy": [0.1, 0.2, 0.4, 0.6], "d": 0.5, "far": 0.4, "near": 0.6}
        request = {"target": name, "relations": [["behind", "sofa"]], "replace": False}
        meta = {"request": request, "anchors": {"sofa": sofa}}
        records.append({"id": str(number), "image": "a.png", "conversations": turns, "meta": meta})
    (tmp_path / "data.json").write_text(json.dumps(records))
    config = LocatorEvaluation(
        model=model, dataset=tmp_path / "data.json", out=tmp_path / "n.json", device="cpu", candidates=3
    )
    rows = evaluate.evaluate_locator(config)["place"]
    assert rows[GREEDY]["parsed"] == {"n": 3, "mean": 0.6667, "low": 0.0, "high": 1.0}
    assert rows[evaluate.FREE]["parsed"]["n"] == 3
    assert rows[evaluate.FREE]["parsed"]["mean"] < 0.67
    assert rows[evaluate.RANKED.format(3)]["parsed"]["n"] == rows[evaluate.BEST.format(3)]["parsed"]["n"] == 3
    assert LocatorEvaluation().candidates > 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"image": "image/0.png", "sentence": "x"}'], "points.jsonl: record 1 lacks mask"),
        (['{"image": "image/0.png", "mask": "mask/0.png"}'], "record 1 lacks sentence"),
        (["{}", "[1]"], "points.jsonl: line 2: expected a JSON object"),
        (['{"image": '], "points.jsonl: line 1: not JSON"),
        (['{"image": "b.png", "sentence": "x", "mask": "mask/0.png"}'], "record 1: there is no file .*b.png"),
    ],
)
def test_wrong_records_are_named(lines: list[str], message: str, tmp_path: Path):
    photographs(tmp_path, 1)
    (tmp_path / "points.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        read_points(tmp_path / "points.jsonl")


def test_other_files_are_none_of_points(tmp_path: Path):
    (tmp_path / "data.json").write_text('[{"id": "0", "image": "a.png"}]')
    assert read_points(tmp_path / "data.json") == []


def test_an_answer_in_the_padding_costs_no_other(monkeypatch: pytest.MonkeyPatch):
    """In the codec of the padded square a box may lie outside the image; the others of its batch stay."""
    model, processor = build_small("llava")
    locator = Locator(Mllm(model, processor, Path()), LocatorConfig())
    images = [np.full((40, 60, 3), value, np.uint8) for value in (1, 2, 3)]

    def answer(images_u8: Any, questions: Any) -> list[Candidate]:
        if any(image[0, 0, 0] == 2 for image in images_u8):
            raise AnswerError("in its padding")
        return [Candidate(Place.of((0.1, 0.1, 0.2, 0.2), 0.5), 0.0, "") for _ in images_u8]

    monkeypatch.setattr(locator, "answer", answer)
    answers = greedy_answers(locator, [SENTENCE] * 3, images, 8)
    assert [place is not None for place in answers] == [True, False, True]


def test_shards_that_are_there_keep_their_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render_shards(StoreSettings(out=tmp_path, count=1, size=(32, 32), reference_size=(16, 16), split="eval"))
    asked: list[StoreSettings] = []
    monkeypatch.setattr(evaluate, "render_shards", lambda store: asked.append(store) or [])
    for folder in (tmp_path, tmp_path / "none"):
        assert evaluate.locator_cases(LocatorEvaluation(data=folder, scenes=4)) == []
    assert [store.size for store in asked] == [(32, 32), StoreSettings.size]
    assert [store.out for store in asked] == [tmp_path, tmp_path / "none"]
    assert {(store.count, store.split) for store in asked} == {(256, "eval")}
