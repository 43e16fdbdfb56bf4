"""Reports of predicted prompts: tables, intervals, what is missing, wrong files, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nltk
import pytest
from PIL import Image

from benchmarks.small_models import write_clip
from inpainting.data.steps.texts import RootSettings, extract_roots, rule_root
from inpainting.models.image_to_text.evaluation.predictions import (
    BERTSCORE,
    Prediction,
    PromptMetricModels,
    read_predictions,
)
from inpainting.models.image_to_text.evaluation.report import NAMES, PUBLISHED, measure_prompts, tracked
from inpainting.models.image_to_text.score import build_app
from inpainting.models.image_to_text.settings import MetricFolders
from ldm.metrics.clip import Clip
from ldm.settings.cli import run_app
from tests.inpainting.prompt_rows import drawn, row, write_roberta


def test_last_regions_and_numbers_of_masks_are_tables_of_their_own() -> None:
    rows = drawn(31, seed=7)  # ten images of three regions, and one of one region that is not the last
    report = measure_prompts(rows, resamples=0)
    last = measure_prompts([one for one in rows if one.last], resamples=0)
    three, one = measure_prompts(rows[:30], resamples=0), measure_prompts(rows[30:], resamples=0)
    for name in NAMES:
        assert report[f"{name}_last"] == last[name]
        for count, alone in (("3", three), ("1", one)):
            numbers = report["by_number_of_masks"][count]
            assert numbers.get(name, {}).get("value") == alone[name]
    assert (report["images"], report["regions"], report["last_region"]["bleu1"]["n"]) == (11, 31, 10)
    assert one["accuracy_last"] is None


def test_a_run_in_which_every_image_was_left_out_is_no_report_of_nothing() -> None:
    with pytest.raises(ValueError, match="^there is no prediction to measure$"):
        measure_prompts([], resamples=0)


def test_intervals_resample_whole_images_and_repeat() -> None:
    rows = [replace(one, root="cat" if one.stem[-1] in "02468" else "dog") for one in drawn(60, seed=8)]
    rows = [replace(one, prediction=f"cat {one.prediction.replace('dog', 'hill')}") for one in rows]
    report = measure_prompts(rows, seed=1, resamples=400)
    again = measure_prompts(rows, seed=1, resamples=400)
    assert report["with_intervals"] == again["with_intervals"]
    for name in ("accuracy", "bleu1", "bleu4", "rougeL_fmeasure"):
        number = report["with_intervals"][name]
        assert number["low"] < number["value"] < number["high"]
    accuracy = report["with_intervals"]["accuracy"]
    images, share = 20, accuracy["value"]  # images are right or wrong as a whole
    normal = 2 * 1.96 * (share * (1 - share) / images) ** 0.5
    assert accuracy["high"] - accuracy["low"] == pytest.approx(normal, rel=0.2)


def test_what_is_missing_is_named_and_the_rest_is_measured(tmp_path: Path) -> None:
    absent = MetricFolders(tmp_path / "no_clip", tmp_path / "no_roberta")
    report = measure_prompts(drawn(6, seed=0), PromptMetricModels.load(absent), resamples=20)
    assert {"clipscore", *BERTSCORE} <= set(report["skipped"])
    assert "no_clip" in report["skipped"]["clipscore"]
    assert report["clipscore"] is None
    assert "clipscore" not in tracked(report)
    assert all(number["judge"] for number in report["with_intervals"].values())
    assert set(report["with_intervals"]) | set(report["skipped"]) == set(NAMES)
    clip = PromptMetricModels(clip=Clip.load(write_clip(tmp_path / "clip")))
    hidden = measure_prompts(drawn(6, seed=0), clip, resamples=0)
    assert hidden["skipped"]["clipscore"] == "image_0 mask_0 has no `crop`"
    moved = measure_prompts([replace(one, crop="moved.png") for one in drawn(6, seed=0)], clip, resamples=0)
    assert "moved.png" in moved["skipped"]["clipscore"]
    json.dumps([report, hidden, moved], allow_nan=False)


def test_rouge_lsum_is_there_where_nltk_can_split_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "find", lambda name: name)
    monkeypatch.setattr(nltk, "sent_tokenize", lambda text: text.split(". "))
    rows = [row(0, "a cat sits. two dogs sleep", "two dogs sleep. a cat sits")]
    report = measure_prompts(rows, resamples=0)
    assert report["rougeLsum_fmeasure"] == 1.0  # sentence by sentence
    assert report["rougeL_fmeasure"] == 0.5


def test_empty_answers_are_counted_and_are_wrong() -> None:
    report = measure_prompts([row(0, " "), row(1, "a cat on a mat")], resamples=0)
    assert (report["empty_predictions"], report["accuracy"], report["rougeL_recall"]) == (1, 0.5, 0.5)


GOOD = json.loads(row(0, "a cat").line())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0\ta red cat", "names no image"),
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        (json.dumps(GOOD | {"prediction": None}), "`prediction` must be a text, got None"),
        (json.dumps(GOOD | {"last": 1}), "`last` must be true or false, got 1"),
        (json.dumps(GOOD | {"root": ""}), "extract-noun-chunk-roots"),
        (json.dumps(GOOD | {"stem": ""}), "`stem` and `region`"),
    ],
)
def test_a_wrong_line_is_refused_by_file_line_and_key(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(row(1, "a dog").line() + line + "\n")
    with pytest.raises(ValueError, match=r"predictions\.jsonl:2: .*") as caught:
        read_predictions(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(0, "a"), row(0, "b")], "image_0 mask_0 is there twice"),
        ([row(0, "a", last=True), row(1, "b", last=True)], "image_0 has two regions with `last`"),
        ([], "holds no prediction"),
    ],
)
def test_two_runs_in_one_file_are_refused(tmp_path: Path, rows: list[Prediction], message: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(one.line() for one in rows))
    with pytest.raises(ValueError, match=message):
        read_predictions(path)


def test_the_command_sets_runs_beside_the_published_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, roberta = write_clip(tmp_path / "clip"), write_roberta(tmp_path / "roberta")
    Image.new("RGB", (9, 4), "red").save(tmp_path / "crop.png")
    files = []
    for name in ("one", "two"):
        files.append(tmp_path / f"{name}.jsonl")
        rows = [replace(one, crop=str(tmp_path / "crop.png")) for one in drawn(9, seed=len(name))]
        files[-1].write_text("".join(one.line() for one in rows))
        assert read_predictions(files[-1]) == rows
    judges = ["--clip", str(clip), "--roberta", str(roberta), "--resamples", "50"]
    out, table = tmp_path / "out/metrics.json", tmp_path / "table.md"
    where = ["--out", str(out), "--table", str(table)]
    assert run_app(build_app, [*map(str, files), *where, *judges]) == 0
    shown = capsys.readouterr().out
    assert table.read_text() == shown
    assert all(f"| {model}, published |" in shown for model in PUBLISHED)
    assert f"| {files[1]}, 9 regions |" in shown
    assert f"| {files[1]}, last of 3 images |" in shown
    both = json.loads(out.read_text())
    assert list(both) == [path.as_posix() for path in files]
    assert both[str(files[0])]["judges"]["clip"]["path"] == clip.as_posix()

    assert run_app(build_app, [str(files[0]), "--out", str(out), *judges]) == 0
    alone = json.loads(out.read_text())
    assert alone == both[str(files[0])]
    assert alone["bertscore_f1"] == alone["with_intervals"]["bertscore_f1"]["value"]


def test_the_published_text_file_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "predictions.txt"
    path.write_text("0\ta red cat\n1\ta dog\n")
    assert run_app(build_app, [str(path), "--out", str(tmp_path / "metrics.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "metrics.json").exists()


def annotated(folder: Path) -> list[Prediction]:
    """The regions of a folder of entities, each predicted as its caption."""
    rows = []
    for path in sorted(folder.glob("*/annotations.json")):
        entries = json.loads(path.read_text())
        for number, (name, entry) in enumerate(entries.items(), 1):
            last, crop = number == len(entries), str(path.parent / f"{name}.png")
            root, caption = entry["noun_chunk_root"], entry["caption"]
            rows.append(Prediction(path.parent.name, name, caption, caption, root, last, crop=crop))
    return rows


def test_the_report_names_who_found_the_noun_roots(tmp_path: Path) -> None:
    entry = {"concept": "a man in a black hat", "noun_chunk_root": "?", "caption": "the man wears a hat"}
    (tmp_path / "entities/carl").mkdir(parents=True)
    (tmp_path / "entities/carl/annotations.json").write_text(json.dumps({"mask_0": entry}))
    assert measure_prompts(annotated(tmp_path / "entities"), resamples=0)["noun_roots"] == [
        "as given with the data"
    ]
    extract_roots(RootSettings(tmp_path / "entities", method="rule"))
    report = measure_prompts(annotated(tmp_path / "entities"), resamples=0)
    assert report["noun_roots"][0].startswith("rule over the tags of textblob")
    assert report["accuracy"] == 1.0


def test_accuracy_of_real_captions_is_the_same_with_the_rules_roots(test_data: Path) -> None:
    folder = test_data / "data/paintings/processed/entities"
    by_hand = annotated(folder)
    entries = [json.loads(path.read_text()) for path in sorted(folder.glob("*/annotations.json"))]
    concepts = [entry["concept"] for found in entries for entry in found.values()]
    found = [replace(one, root=rule_root(what)) for one, what in zip(by_hand, concepts, strict=True)]
    agree = sum(one.root == two.root for one, two in zip(by_hand, found, strict=True))
    assert (agree, len(by_hand)) == (29, 29)
    numbers = tracked(measure_prompts(by_hand, resamples=0))
    assert numbers == tracked(measure_prompts(found, resamples=0))
    assert numbers["accuracy"] == 1.0
    assert numbers["accuracy_words"] <= numbers["accuracy"]
