"""Files that people write: byte order marks, line ends, separators of texts, tables of spreadsheets."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compose.batch import read_jobs
from datasets.sources.still import FolderConfig
from datasets.sources.video import MvImgNetConfig
from inpainting.data.paintings import MaskManifest, read_entities, source_file
from inpainting.data.steps.split import SplitSettings
from inpainting.models.image_to_text.evaluation.predictions import read_predictions
from inpainting.prompts import PrompterConfig
from ldm.files import numbered_lines, read_json, read_table, read_text
from ldm.journal import JournalReader, append_line, read_lines
from ldm.registry.models import load_registry
from ldm.settings.config import load_config, read_config
from llava_bifrost.build_dataset.records import read_records
from llava_bifrost.predict.run import predict_jobs
from llava_bifrost.propose import read_anchors
from llava_bifrost.settings import PredictJobs
from tests.job_settings import Job
from tests.ldm.table_rows import ROWS, saved

ROOT = Path(__file__).parents[2]
BOM = b"\xef\xbb\xbf"
RECORD = {
    "id": "caf\xe9",
    "image": "a.png",
    "conversations": [
        {"value": "<image>\nwhere?"},
        {"value": "[0.10, 0.20, 0.50, 0.60], 0.60, 0.50, 0.40."},
    ],
    "meta": {"box01_xyxy": [0.1, 0.2, 0.5, 0.6], "depth": 0.5, "far": 0.4, "near": 0.6},
}
PREDICTION = {
    "stem": "s",
    "region": "mask_0",
    "prediction": "caf\xe9",
    "caption": "a",
    "root": "a",
    "last": True,
}
JOB = {"name": "caf\xe9", "background": "assets/examples/tent/room.png"}
JOB |= {"object": "assets/examples/tent/object.png", "box": [0.17, 0.19, 0.51, 0.64]}


def folder_pairs(path: Path) -> list[Any]:
    root = path.parent / "mine"
    for name in ("images", "masks", "depth"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("caf\xe9", "b"):
        (root / f"images/{name}.jpg").write_bytes(b"")
        (root / f"masks/{name}.png").write_bytes(b"")
    return [item[0] for item in FolderConfig(root=root, pairs=path).read()]


def splits(path: Path) -> Any:
    (path.parent / "masks" / "a").mkdir(parents=True, exist_ok=True)
    settings = SplitSettings(path.parent, masks_dir=path.parent / "masks", split_df_path=path)
    return settings.plan(["a.jpg"])[0]


def records(path: Path) -> Any:
    (path.parent / "a.png").write_bytes(b"")
    return [record.id for record in read_records(path)]


def answered(path: Path) -> Any:
    """Every job has an answer, so that reading it is all that is done; else a model would be missing."""
    out = path.with_name("answers.jsonl")
    out.write_text('{"id": "caf\xe9"}\n')
    return predict_jobs(PredictJobs(jobs=path, out=out))


def video_listing(path: Path) -> list[Any]:
    (path.parent / "depth").mkdir(exist_ok=True)
    return MvImgNetConfig(images=path.parent, depth=path.parent / "depth", listing=path).read()


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# What reads a file of a kind; a file of it, with one letter beyond ASCII; a part of what comes out of it.
READERS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "text": (lambda path: read_text(path).split(), "a caf\xe9\n", "caf\xe9"),
    "lines": (numbered_lines, "a\n\ncaf\xe9", "(3, 'caf\xe9')"),
    "json": (read_json, '{"a": "caf\xe9"}', "caf\xe9"),
    "json list": (lambda path: read_json(path, list), '["caf\xe9"]', "caf\xe9"),
    "table": (lambda path: read_table(path, ("a", "b")), "a,b\ncaf\xe9,2\n", "'b': '2'"),
    "yaml": (lambda path: load_config(Job, path), "image: caf\xe9.png\nmode: place\n", "caf\xe9.png"),
    "model configuration": (
        lambda path: read_config(PrompterConfig, path),
        dumped({"notice": "caf\xe9"}),
        "caf\xe9",
    ),
    "registry": (
        load_registry,
        "models: {x: {about: caf\xe9, folder: x, needs: [a], licence: n, size_gb: 1}}\n",
        "about='caf\xe9'",
    ),
    "jobs": (read_jobs, dumped(JOB) + "\n" + dumped(JOB | {"name": "y"}), "caf\xe9"),
    "predictions": (read_predictions, dumped(PREDICTION), "caf\xe9"),
    "jobs of the locator": (
        answered,
        dumped({"image": "a.png", "instruction": "b", "id": "caf\xe9"}),
        "'kept': 1",
    ),
    "anchors": (read_anchors, '{"caf\xe9": {"box": [0, 0, 1, 1], "depth": 0.5}}', "caf\xe9"),
    "records": (records, dumped([RECORD]), "caf\xe9"),
    "entities": (read_entities, '{"mask_0": {"concept": "caf\xe9"}}', "caf\xe9"),
    "annotations of paintings": (lambda path: read_json(source_file(path)), '{"a": "caf\xe9"}', "caf\xe9"),
    "mask manifest": (
        MaskManifest.read,
        dumped({"split": "caf\xe9", "seed": 1, "rules": {}, "items": {}, "left_out": {}}),
        "caf\xe9",
    ),
    "table of splits": (splits, "file_name,split,title\na.jpg,train,caf\xe9\n", "{'a.jpg': 'train'}"),
    "pairs": (folder_pairs, "caf\xe9 b\nb b\n", "'caf\xe9 in b', 'b'"),
    "listing of videos": (video_listing, "MVDir/1/caf\xe9/images\n1/b/images", "1/caf\xe9/images"),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_takes_what_windows_and_spreadsheets_write(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    read, text, part = READERS[name]
    path = tmp_path / ("file.yaml" if name in ("yaml", "registry") else "file")
    path.write_bytes(text.encode())
    plain = read(path)
    assert part in str(plain)
    for data in (BOM + text.encode(), text.replace("\n", "\r\n").encode()):
        path.write_bytes(data)
        assert str(read(path)) == str(plain)
    path.write_bytes(BOM + text.replace("\n", "\r\n").encode())
    assert str(read(path)) == str(plain)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
@pytest.mark.parametrize("name", READERS)
def test_every_reader_names_file_and_line_of_another_encoding(
    name: str, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    read, text, _ = READERS[name]
    path = tmp_path / ("file.yaml" if name in ("yaml", "registry") else "file")
    path.write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match="not UTF-8") as refused:
        read(path)
    line = 1 if encoding == "utf-16" else text[: text.index("\xe9")].count("\n") + 1
    at = 0 if encoding == "utf-16" else text.index("\xe9")
    message = str(refused.value)
    assert str(path) in message
    assert (
        f"line {line}: not UTF-8 (byte {'0xff' if at == 0 else '0xe9'} at {at}); save the file as UTF-8"
        in message
    )
    assert "\n" not in message


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\u001c", "\u00a0"])
def test_only_a_line_feed_ends_a_line(separator: str, tmp_path: Path) -> None:
    text = f"a dog{separator}on a chair"
    lines = [dumped(PREDICTION | {"prediction": text, "stem": stem}) for stem in "ab"]
    path = tmp_path / "predictions.jsonl"
    if separator >= " ":  # JSON writes control characters as escapes
        path.write_text("\n".join(lines), encoding="utf-8")
        assert [row.prediction for row in read_predictions(path)] == [text, text]
    path.write_text(f"{text}\n\n{text}\n", encoding="utf-8")
    assert numbered_lines(path) == [(1, text), (3, text)]
    append_line(tmp_path / "log.jsonl", {"item": text})
    append_line(tmp_path / "log.jsonl", {"item": text + "2"})
    assert read_lines(tmp_path / "log.jsonl") == [{"item": text}, {"item": text + "2"}]
    assert list(JournalReader(tmp_path / "log.jsonl").done) == [text, text + "2"]


@pytest.mark.parametrize("data", [b"notes of mine", b'{"a": 1}\nnotes', b"a\nb\n", b"\xff\xfe"])
def test_a_file_of_something_else_is_never_cut(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"notes:[12]: not JSON"):
        read_lines(path, repair=True)
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        (b'{"a": ', b""),
        (b"\0\0\0", b""),
        (b'{"a": "\xe2\x80', b""),
        (b'{"a": 2}', b'{"a": 2}\n'),  # an editor that drops the last line feed
    ],
)
def test_a_torn_last_line_is_cut_and_a_whole_one_stays(tail: bytes, kept: bytes, tmp_path: Path) -> None:
    path, sound = tmp_path / "log.jsonl", b'{"a": 1}\n'
    path.write_bytes(sound + tail)
    assert len(read_lines(path)) == 1 + bool(kept)
    assert path.read_bytes() == sound + tail
    assert len(read_lines(path, repair=True)) == 1 + bool(kept)
    assert path.read_bytes() == sound + kept


def test_a_one_line_object_is_no_file_of_answers(tmp_path: Path) -> None:
    jobs, out = tmp_path / "jobs.jsonl", tmp_path / "report.json"
    jobs.write_text(dumped({"image": "a.png", "instruction": "b"}))
    out.write_text('{"mine": 1}')
    with pytest.raises(ValueError, match=r"report.json is not a file of answers; name another"):
        predict_jobs(PredictJobs(jobs=jobs, out=out))
    assert out.read_text() == '{"mine": 1}'


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("start", [b"", BOM])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_is_the_same_however_a_spreadsheet_saves_it(
    mark: str, start: bytes, end: str, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(start + saved(ROWS, mark, end).encode())
    assert read_table(path, ("file_name", "url")) == ROWS
    padded = saved(ROWS, mark, end) + mark * 3 + end + end  # what a sheet keeps of rows that were emptied
    path.write_bytes(start + padded.encode())
    assert read_table(path, ("url", "title")) == ROWS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table needs one column a; its columns are none"),
        ("b;c\n1;2\n", "the table needs one column a; its columns are b, c"),
        ("a,a,b\n1,2,3\n", "the table needs one column a; its columns are a, a, b"),
        ("A,b\n1,2\n", "the table needs one column a; its columns are A, b"),
        (
            "a,b\nx, y.jpg,http://z\n",
            "line 2: the row has more fields than the header; quote fields that hold ','",
        ),
        ('a;b\n1;2\n"x";"y"z\n', "cannot be read as a CSV table: ';' expected after '\"'"),
        ('a,b\n"x,1\ny,2\n', "cannot be read as a CSV table: unexpected end of data"),
    ],
)
def test_a_table_that_cannot_be_read_right_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{re.escape(message)}"):
        read_table(path, ("a",))


def test_short_rows_and_names_with_blanks_in_the_header(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a , b\n1\n\n2,3,\n , \n")
    assert read_table(tmp_path / "t.csv", ("a", "b")) == [
        {"a": "1", "b": ""},
        {"a": "2", "b": "3"},
        {"a": " ", "b": " "},
    ]


# Files that no user writes: the log of a run, the kernel's table of memory, the program itself.
MACHINE_WRITTEN = {"ldm/training/run.py", "ldm/device.py", "ldm/settings/later.py"}
READS_TEXT = (".read_text", "json.load", "yaml.safe_load")
PRODUCTS = ("ldm", "datasets", "cldm", "llava_bifrost", "inpainting", "compose", "tiny")


def test_no_other_function_reads_text() -> None:
    found = []
    for path in [file for name in PRODUCTS for file in (ROOT / name).rglob("*.py")] + list(ROOT.glob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name in {"ldm/files.py", *MACHINE_WRITTEN}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                opens = called.endswith("open") and {key.arg for key in node.keywords} & {
                    "encoding",
                    "newline",
                }
                if opens or called.endswith(READS_TEXT):
                    found.append(f"{name}:{node.lineno}: {called}")
    assert not found, "ldm.files has the readers"
