"""Names of jobs that would share a file, what a result is the result of, and what a batch says."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from compose.batch import read_jobs
from ldm import files
from ldm.images import read_image
from tests.batches import HIDDEN, batch, cutouts, dreambooth, job, write
from tests.images import Case


@pytest.mark.parametrize(
    ("first", "second", "where"),
    [
        ({"name": "dog", "num_samples": 2}, {"name": "dog_0"}, "dog_0.png"),
        ({"name": "dog_1"}, {"name": "dog", "num_samples": 2}, "dog_1.png"),
        ({"name": "a/dog", "num_samples": 3}, {"name": "a/dog_2"}, "a/dog_2.png"),
        ({"name": "Dog"}, {"name": "dog"}, "dog.png"),
        ({"name": "a/x"}, {"name": "A/x"}, "A/x.png"),
        ({"name": "Stra\u00dfe"}, {"name": "STRASSE"}, "STRASSE.png"),
        ({"name": "a/./x"}, {"name": "a/x"}, "a/x.png"),
        ({"name": "dog"}, {"name": "dog.png/x"}, "dog.png"),
        ({"name": "dog.json/x"}, {"name": "dog"}, "dog.json"),
        ({"name": "dog"}, {"name": "dog_sheet"}, "dog_sheet.png"),
        ({}, {"name": "000001"}, "000001.png"),
    ],
)
def test_jobs_with_a_file_in_common_are_refused_with_both_lines(case: Case, capsys, first, second, where):
    write(case, job(case, **first), "", job(case, **second))
    assert batch(case) == 2
    shown = capsys.readouterr().err
    assert "line 3: its name" in shown
    assert f"{where}, which is taken by line 1" in shown
    assert not (case.folder / "many").exists()


def test_names_that_only_look_alike_are_fine_and_the_list_of_failures_is_not(case: Case) -> None:
    names = ("dog", "dog_0", "a/dog", "dog0", "dog_", "dogs/dog")
    path = write(case, *(job(case, name=name) for name in names))
    assert [item.name for item in read_jobs(path, None, case.folder)] == list(names)
    path = write(case, job(case, name="failed-0-of-1"))
    with pytest.raises(ValueError, match="line 1: its name 'failed-0-of-1' is that of the list of failures"):
        read_jobs(path, None, case.folder)


def test_concepts_that_differ_in_case_only_are_refused(case: Case, capsys) -> None:
    objects, backgrounds = cutouts(case.folder / "one")
    shutil.copytree(objects / "dog", objects / "Dog")
    assert dreambooth(case, objects, backgrounds) == 2
    shown = capsys.readouterr().err
    assert "taken by" in shown
    assert "Dog" in shown


def change_weights(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value + 0.01 for key, value in load_file(file).items()}, file)


def change_config(folder: Path) -> None:
    card = json.loads((folder / "compositor.json").read_text())
    card["sampling"] = {**card["sampling"], "detail": 0.9}
    (folder / "compositor.json").write_text(json.dumps(card))


@pytest.mark.parametrize("change", [change_weights, change_config])
def test_new_weights_make_new_images_and_the_old_ones_stay(case: Case, tmp_path: Path, change) -> None:
    model = Path(shutil.copytree(case.model, tmp_path / "model"))
    path, out = write(case, job(case, name="a", model=str(model))), case.folder / "many" / "a.png"
    assert batch(case) == 0
    (item,) = read_jobs(path, None, case.folder)
    first = out.read_bytes()
    assert item.is_done(out)
    change(model)
    assert not item.is_done(out)
    assert batch(case) == 0
    assert item.is_done(out)
    assert out.with_name("a.old1.png").read_bytes() == first
    assert not np.array_equal(read_image(out).rgb_u8, read_image(out.with_name("a.old1.png")).rgb_u8)


def test_version_anchors_and_depth_network_decide_too(case: Case, tmp_path: Path, monkeypatch) -> None:
    anchors, depth = tmp_path / "anchors.json", Path(shutil.copytree(case.depth_model, tmp_path / "depth"))
    anchors.write_text('{"bed": {"box": [0.1, 0.2, 0.5, 0.9]}}')
    more = {"instruction": "Place the cup left of the bed", "locator": "geometric", "anchors": str(anchors)}
    free = {"box": None, "depth": None, "background_depth": None, "depth_model": str(depth)}
    path = write(case, job(case, **more, **free))
    (item,) = read_jobs(path, None, case.folder)
    seen = [item.digest()]
    anchors.write_text('{"bed": {"box": [0.2, 0.2, 0.5, 0.9]}}')
    seen.append(item.digest())
    (depth / "depth.json").write_text(json.dumps(json.loads((depth / "depth.json").read_text())) + " ")
    seen.append(item.digest())
    (depth / "manifest.json").write_text("{}")  # says how it was made; nothing reads it
    (depth / ".hashes.json").write_text("{}")
    assert item.digest() == seen[-1]
    monkeypatch.setattr("ldm.files.__version__", "9.9")
    seen.append(item.digest())
    assert len(set(seen)) == 4


def test_a_model_is_read_once_for_many_jobs(case: Case, monkeypatch) -> None:
    reads: list[str] = []
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *args, **more: (reads.append(path.name), real(path, *args, **more))[1]
    )
    monkeypatch.setattr(files, "_HASHES", {})
    path = write(case, *(job(case, name=f"j{index}") for index in range(5)))
    jobs = read_jobs(path, None, case.folder)
    assert len({item.digest() for item in jobs}) == 5
    weights = [name for name in reads if name.endswith(".safetensors")]
    assert len(weights) == len(list(case.model.rglob("*.safetensors")))


def test_the_configuration_of_a_model_is_read_once_for_a_file_of_jobs(case: Case, monkeypatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr("compose.batch.load_compositor_config", read.append)
    path = write(case, *(job(case, name=f"n{number}") for number in range(20)))
    jobs = read_jobs(path, None, case.folder)
    assert len(jobs) == 20
    assert read == [case.model]


def test_a_line_for_every_job_has_its_name_its_number_and_the_time_left(case: Case, caplog) -> None:
    caplog.set_level("INFO")
    write(case, *(job(case, name=name) for name in ("dog/a", "b")), job(case, name="bad", **HIDDEN))
    assert batch(case, "--sheet") == 1
    lines = [record.getMessage() for record in caplog.records]
    assert any(re.match(r"1/3 bad: nearer objects .*\(\d\d:\d\d left\)", line) for line in lines)
    assert any(re.fullmatch(r"2/3 dog/a: \d+ % visible \(\d\d:\d\d left\)", line) for line in lines)
    assert any(re.fullmatch(r"3/3 b: \d+ % visible \(00:00 left\)", line) for line in lines)
    many = case.folder / "many"
    assert read_image(many / "dog" / "a_sheet.png").size[1] > 7 * 200
    assert {path.name for path in many.glob("*_sheet*")} == {"b_sheet.png"}


def test_a_batch_answers_in_json(case: Case, capsys) -> None:
    write(case, job(case, name="a"), job(case, name="bad", **HIDDEN))
    assert batch(case, "--json") == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["made"], printed["kept"], list(printed["failed"])) == (["a"], 0, ["bad"])
    write(case, job(case, name="a"))
    assert batch(case, "--json") == 0
    assert json.loads(capsys.readouterr().out) | {"out": ""} == {
        "out": "", "made": [], "kept": 1, "failed": {},
    }  # fmt: skip


def test_a_folder_that_cannot_be_written_is_found_before_work(case: Case, capsys, monkeypatch) -> None:
    monkeypatch.setattr("compose.composer.prepare", lambda *args, **kwargs: pytest.fail("worked"))
    write(case, job(case))
    (case.folder / "many").touch()
    assert batch(case) == 2
    assert "many: a part of its path is a file, not a folder" in capsys.readouterr().err


def test_the_built_in_detector_is_no_path(case: Case, tmp_path: Path, monkeypatch) -> None:
    """All of its files must be there before a job starts; another name is a folder, as before."""
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    sentence = {"instruction": "Place the cup left of the bed", "box": None, "depth": None}
    path = write(case, job(case, **sentence, detector="builtin"))
    with pytest.raises(ValueError, match=r"line 1: .*u2netp.onnx: no such file; get it with: python -m ldm"):
        read_jobs(path, None, case.folder)
    (tmp_path / "u2netp").mkdir()
    (tmp_path / "u2netp" / "u2netp.onnx").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"line 1: detector: .*builtin_detector is not a folder; get it with: "
    ):
        read_jobs(path, None, case.folder)
    (tmp_path / "builtin_detector").mkdir()
    (item,) = read_jobs(path, None, case.folder)
    assert (item.settings.detector, item.settings.locator_name) == (Path("builtin"), "geometric")
    with pytest.raises(ValueError, match="detector: .*mine is not a folder$"):
        read_jobs(write(case, job(case, **sentence, detector="mine")), None, case.folder)
