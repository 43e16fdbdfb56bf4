"""Commands that write a sheet, table, report or figure keep what stood there, or replace it on demand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.harness import short_json, write_results
from cldm.convert import convert as conversion
from cldm.convert.plan import Plan
from compose.benchmark import report as scores
from datasets.benchmark import write_benchmark
from datasets.scenes.__main__ import build_app as scenes_app
from datasets.uvo_process import build_app as uvo_app
from inpainting.data.steps import describe
from inpainting.models.image_to_text.evaluation.predictions import PromptMetricModels
from inpainting.models.image_to_text.score import build_app as score_app
from inpainting.models.text_to_image import test as painting_tests
from ldm.images import encode_png
from ldm.result import COMMITTED, write_result
from ldm.settings.cli import run_app
from run_dataset_debug import build_app as debug_app
from scripts.docs.make_examples import make_examples
from tests.inpainting.prompt_rows import drawn
from tiny import report as evaluation

SHEET = ["sheet", "--size", "64,64", "--count", "1", "--supersample", "1", "--out"]
GRAY = np.zeros((8, 8, 3), np.uint8)


def scene_sheet(out: Path, number: int, *more: str) -> None:
    assert run_app(scenes_app, [*SHEET, str(out), "--first-seed", str(number), *more]) == 0


def source_sheet(out: Path, number: int, *more: str) -> None:
    words = ["--source", "scenes", "--n", "1", "--size", "64", "--seed", str(number), "scenes.folder=none"]
    assert run_app(debug_app, ["--out", str(out), *words, *more]) == 0


def uvo_table(out: Path, number: int) -> None:
    given = out.with_name("video.json")
    videos = [{"id": 1, "file_names": [f"{number}.jpg"], "width": 4, "height": 4}]
    given.write_text(json.dumps({"videos": videos, "annotations": [], "categories": []}))
    assert run_app(uvo_app, [str(given), str(out)]) == 0


def prompt_scores(out: Path, number: int, *more: str) -> None:
    rows = out.with_name("rows.jsonl")
    rows.write_text("".join(row.line() for row in drawn(4, seed=number)))
    words = [str(rows), "--out", str(out), "--table", str(out.with_suffix(".md")), "--resamples", "0"]
    assert run_app(score_app, [*words, *more]) == 0


def painting_table(out: Path, number: int) -> None:
    assert run_app(painting_tests.build_app, ["compute", "--table", "--out", str(out)]) == 0


def conversion_report(out: Path, number: int) -> None:
    settings = SimpleNamespace(source=Path(f"{number}.ckpt"), report=out)
    conversion.log_report("dpt", Plan({}, {}), (), settings)  # type: ignore[arg-type]


def composite_scores(out: Path, number: int, overwrite: bool = False) -> None:
    case = SimpleNamespace(instruction="-")
    found = SimpleNamespace(cases=[case], thumbnails=[[GRAY] * 3], of=lambda name: np.array([float(number)]))
    body = {"folders": [{"folder": f"{number}"}], "networks": {}, "skipped": {}}
    scores.write_score(body, found, out, overwrite)  # type: ignore[arg-type]


def evaluation_files(out: Path, number: int) -> None:
    evaluation.write_evaluation(out, {"a": number}, [str(number)], GRAY + number)


def manifest(out: Path, number: int) -> None:
    write_benchmark(out, "a", number, [], {})


def benchmark(out: Path, number: int) -> None:
    write_results(out, {"a": number})


WRITERS: dict[str, tuple[Callable[..., None], str]] = {
    "datasets.scenes sheet": (scene_sheet, "a.png"),
    "run_dataset_debug": (source_sheet, "a.png"),
    "datasets.uvo_process": (uvo_table, "a.json"),
    "image_to_text.score": (prompt_scores, "a.json"),
    "cldm.convert --report": (conversion_report, "a.json"),
    "compose.benchmark score": (composite_scores, "a.json"),
    "compose.benchmark build": (manifest, "a.json"),
    "tiny evaluations": (evaluation_files, "a.json"),
    "benchmarks": (benchmark, "a.json"),
}


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PromptMetricModels, "load", lambda *given: PromptMetricModels())


@pytest.mark.parametrize("name", WRITERS)
def test_another_result_keeps_the_one_that_is_there(tmp_path: Path, name: str) -> None:
    write, file = WRITERS[name]
    out = tmp_path / file
    out.write_text("my own notes")
    write(out, 1)
    first = out.read_bytes()
    assert (tmp_path / f"a.old1{out.suffix}").read_text() == "my own notes"
    write(out, 2)
    assert (tmp_path / f"a.old1{out.suffix}").read_text() == "my own notes"
    assert (tmp_path / f"a.old2{out.suffix}").read_bytes() == first
    assert out.read_bytes() != first
    write(out, 2)
    assert not (tmp_path / f"a.old3{out.suffix}").exists()


@pytest.mark.parametrize("name", ["datasets.scenes sheet", "run_dataset_debug", "image_to_text.score"])
def test_overwrite_replaces(tmp_path: Path, name: str) -> None:
    write, file = WRITERS[name]
    write(tmp_path / file, 1)
    before = {path.name for path in tmp_path.iterdir()}
    write(tmp_path / file, 2, "--overwrite")
    assert {path.name for path in tmp_path.iterdir()} == before


def test_files_that_belong_together_are_kept_together(tmp_path: Path) -> None:
    prompt_scores(tmp_path / "a.json", 1)
    first = {path.name: path.read_bytes() for path in tmp_path.glob("a.*")}
    prompt_scores(tmp_path / "a.json", 2)
    assert {path.name for path in tmp_path.glob("a.*")} == {"a.json", "a.md", "a.old1.json", "a.old1.md"}
    assert {name: (tmp_path / name.replace("a.", "a.old1.")).read_bytes() for name in first} == first


def test_a_table_that_a_person_wrote_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "a.md"
    out.write_text("mine")
    painting_table(out, 1)
    assert (tmp_path / "a.old1.md").read_text() == "mine"
    painting_table(out, 1)
    assert len(list(tmp_path.iterdir())) == 2


def test_descriptions_that_a_person_changed_are_kept(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encode_png(GRAY))
    monkeypatch.setattr(describe, "open_model", lambda *given, **named: None)
    entry = {"description": "a", "entities": {}}
    monkeypatch.setattr(describe, "describe_paintings", lambda model, images, longest: [entry] * len(images))
    settings = describe.AnnotateSettings(image_dir=tmp_path / "images", out=tmp_path / "out" / "b.json")
    describe.annotate_images(settings)
    made = settings.out.read_bytes()
    settings.out.write_text('{"a.png": "changed by hand"}')
    describe.annotate_images(settings)
    assert settings.out.read_bytes() == made
    assert settings.out.with_name("b.old1.json").read_text() == '{"a.png": "changed by hand"}'


@pytest.mark.parametrize("folder", COMMITTED)
def test_the_committed_tables_and_figures_are_replaced(tmp_path: Path, monkeypatch, folder: str) -> None:
    monkeypatch.setattr("ldm.result.ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    for out in (Path(folder) / "a.json", tmp_path / folder / "a.json", Path(folder) / "a.json"):
        write_result({out: str(out).encode()})
    write_result({Path("a.json"): b"1"})
    write_result({Path("a.json"): b"2"})
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")}
    assert left == {f"{folder}/a.json", "a.json", "a.old1.json"}


def test_examples_go_into_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files, which would be overwritten; name a new folder"):
        make_examples(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


LONG = "x" * 60


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        ({"a": 1, "b": None, "c": [True, 0.5]}, ['{"a": 1, "b": null, "c": [true, 0.5]}']),
        ([LONG, LONG, LONG], [f'["{LONG}", "{LONG}", "{LONG}"]']),
        ({"a": [LONG, LONG], "b": []}, ["{", f' "a": ["{LONG}", "{LONG}"],', ' "b": []', "}"]),
        ([{"a": LONG}, {"[{": LONG}], ["[", f' {{"a": "{LONG}"}},', f' {{"[{{": "{LONG}"}}', "]"]),
        ("[{" * 60, ['"' + "[{" * 60 + '"']),
    ],
)
def test_results_of_benchmarks_have_a_row_a_line(value: object, lines: list[str]) -> None:
    assert short_json(value) == "\n".join(lines)
    assert json.loads(short_json(value)) == value
