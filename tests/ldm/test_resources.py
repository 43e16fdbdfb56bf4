"""A full disk, missing memory and unwritable places: one line, and nothing half-written."""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from inpainting.data.downloader import gather
from inpainting.data.steps.split import transfer
from ldm.checkpoints import folder_written_whole
from ldm.files import write_all_atomic, write_json, written_whole
from ldm.images import write_png
from ldm.journal import Journal, append_line, run_step
from ldm.registry.pull import changing, download, unpack
from ldm.settings.cli import command, run_app, single_app
from ldm.settings.config import setting
from ldm.settings.resources import lacks_memory, user_message
from ldm.training.run import CsvLogger, Layout, write_checkpoint
from tests.compose.test_inference_many import batch, job, write
from tests.images import Case, forbid_loading

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.ENOSPC, "No space left on device", "source.jpg"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    Exception("No space left on device (os error 28)"),  # of tokenizers
]
LARGE = [
    OSError(errno.EFBIG, "File too large"),
    OSError(errno.EFBIG, "File too large", "source.jpg"),
    SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
    Exception("File too large (os error 27)"),  # of tokenizers
]
NO_MEMORY = [
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((10**6, 10**6), np.dtype(float)),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    cv2.error("OpenCV(5.0.0) error: (-4:Insufficient memory) Failed to allocate 270000000000 bytes"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("std::bad_alloc"),
]


def kind(error: BaseException) -> str:
    return f"{type(error).__name__} {str(error)[:20]}"


def named(target: Path) -> str:
    return f"{target}: cannot be written: no space left on the disk"


@pytest.mark.parametrize("error", [*FULL, *LARGE], ids=kind)
@pytest.mark.parametrize("writer", [written_whole, folder_written_whole])
def test_a_full_disk_is_named_by_what_was_written(tmp_path: Path, error: Exception, writer: Any) -> None:
    target = tmp_path / "new" / "model"
    target.parent.mkdir()

    def work() -> None:
        with writer(target) as partial:
            (partial / "a" if partial.is_dir() else partial).write_bytes(b"half")
            raise error

    with pytest.raises(OSError, match="cannot be written") as raised:
        work()
    text = named(target)
    if error in LARGE:
        text = f"{target}: cannot be written: file larger than the disk or ulimit allows"
    assert user_message(raised.value) == text
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError("unexpected pos 1"), RuntimeError("shape"), KeyError("a")])
def test_other_errors_stay_as_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, folder_written_whole(tmp_path / "a"):
        raise error
    assert raised.value is error


def full(*ignored: object, **more: object) -> None:
    raise FULL[1]


def test_writers_of_every_kind_name_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source.jpg", tmp_path / "out" / "a"
    source.write_bytes(b"image")
    log = CsvLogger(target.with_suffix(".csv"))
    log.append({"step": 1, "loss": 2.0})
    journal = Journal(target.with_suffix(".jsonl"), {})
    layout = Layout(beside=lambda folder: full())
    monkeypatch.setattr(shutil, "copy2", full)
    works = {
        target: lambda: transfer(source, target, "copy"),
        target.with_name("step"): lambda: write_checkpoint(target.with_name("step"), layout, {}, {}),
    }
    for path, work in works.items():
        with pytest.raises(OSError, match="no space left") as raised:
            work()
        assert user_message(raised.value) == named(path)
    monkeypatch.setattr(Path, "open", full)
    works = {
        target.with_suffix(".png"): lambda: write_png(
            target.with_suffix(".png"), np.zeros((2, 2, 3), np.uint8)
        ),
        target.with_suffix(".json"): lambda: write_json(target.with_suffix(".json"), {}),
        tmp_path / "one": lambda: write_all_atomic({tmp_path / "one": b"1"}),
        log.path: lambda: log.append({"step": 2, "loss": 1.0}),
        journal.path: lambda: journal.add("item", {}),
        tmp_path / "lines": lambda: append_line(tmp_path / "lines", {}),
    }
    for path, work in works.items():
        with pytest.raises(OSError, match="no space left") as raised:
            work()
        assert user_message(raised.value) == named(path)
    assert sorted(path.name for path in target.parent.iterdir()) == ["a.csv", "a.jsonl"]


def test_a_full_disk_ends_a_step_and_leaves_no_item_out(tmp_path: Path) -> None:
    def work(item: str) -> dict[str, Any]:
        with written_whole(tmp_path / item) as partial:
            if item == "b":
                raise FULL[0]
            partial.write_bytes(b"x")
        return {}

    with pytest.raises(OSError, match="no space left"):
        run_step(tmp_path / "stamp_a.jsonl", {}, list("abc"), work, redo=False)
    journal = Journal(tmp_path / "stamp_a.jsonl", {})
    assert (set(journal.done), journal.left_out, journal.complete) == ({"a"}, {}, False)
    assert not (tmp_path / "b").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("error", NO_MEMORY, ids=kind)
def test_missing_memory_is_recognised(error: Exception) -> None:
    assert lacks_memory(error)
    assert (user_message(error) or "").startswith("not enough memory: ")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shape mismatch"), ValueError("out of memory"), OSError(2, "No such file"), KeyError()],
)
def test_other_errors_are_no_missing_memory(error: Exception) -> None:
    assert not lacks_memory(error)


@dataclass(frozen=True)
class Settings:
    out: Path = setting(Path("out.png"))
    background: Path | None = setting(None)
    weights: Path | None = setting(None)
    num_samples: int = setting(1)
    batch: int = setting(8)
    size: tuple[int, int] = setting((512, 512))
    seed: int = setting(3)
    offload: bool = setting(False)


def failing(error: BaseException | None) -> Any:
    def work(settings: Settings) -> None:
        """Fail."""
        if error is not None:
            raise error

    return work


def run(work: Any, *argv: str) -> int:
    return run_app(single_app(command(Settings, work), bare=True), list(argv))


@pytest.mark.parametrize("error", NO_MEMORY, ids=kind)
def test_missing_memory_names_what_was_asked_for(tmp_path, capsys, monkeypatch, error) -> None:
    monkeypatch.chdir(tmp_path)
    write_png(Path("a.png"), np.zeros((30, 50, 3), np.uint8))
    Path("a.safetensors").write_bytes(b"no image")
    assert run(failing(error), "--background=a.png", "--weights=a.safetensors", "--num-samples=4") == 2
    asked = "background a.png (50 x 30 pixels), num_samples 4, batch 8, size 512,512"
    shown = capsys.readouterr().err
    advice = "smaller values or offload" if "CUDA" in str(error) else "smaller values"
    assert shown.startswith(f"error: not enough memory for {asked} ({advice} need less): ")
    assert shown.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.safetensors"]


@pytest.mark.parametrize("argv", [["--out=file/a.png"], ["--out=file/sub/folder"]])
def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path, capsys, monkeypatch, argv) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    assert run(failing(AssertionError("worked")), *argv) == 2
    reason = f"{tmp_path / 'file'} is not a writable folder (a part of its path is a file, not a folder)"
    assert capsys.readouterr().err == f"error: --out {argv[0][6:]} cannot be written: {reason}\n"


def test_a_folder_that_is_there_is_checked_itself(tmp_path: Path, capsys, monkeypatch) -> None:
    def denied(dir: Path) -> Any:
        raise OSError(errno.EROFS, "Read-only file system", str(dir))

    monkeypatch.setattr("ldm.settings.resources.tempfile.TemporaryFile", denied)
    assert run(failing(AssertionError("worked")), f"--out={tmp_path}") == 2
    assert f"{tmp_path} is not a writable folder (read-only file system)" in capsys.readouterr().err


@pytest.mark.parametrize("error", NO_MEMORY[:5], ids=kind)
def test_a_job_without_memory_is_recorded_and_the_rest_goes_on(case: Case, monkeypatch, error) -> None:
    import compose.composer as module

    real = module.prepare

    def prepare(settings: Any, *rest: Any, **more: Any) -> Any:
        if settings.seed == 2:
            raise error
        return real(settings, *rest, **more)

    monkeypatch.setattr(module, "prepare", prepare)
    write(case, *(job(case, name=name, seed=seed) for seed, name in enumerate("abc", 1)))
    assert batch(case) == 1
    assert {path.stem for path in (case.folder / "many").glob("*.png")} == {"a", "c"}
    failed = (case.folder / "many" / "failed-0-of-1.json").read_text()
    assert "not enough memory for background" in failed
    assert "(128 x 96 pixels)" in failed


def test_a_batch_finds_an_unwritable_folder_before_any_job(case: Case, monkeypatch, capsys) -> None:
    forbid_loading(monkeypatch)
    write(case, job(case, name="a"))
    assert batch(case, "--out", str(case.folder / "room.png" / "many")) == 2
    assert "room.png is not a writable folder" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz"])
def test_archives_that_do_not_fit_name_the_folder_and_not_the_archive(tmp_path, monkeypatch, ending) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "w.bin").write_bytes(b"weights")
    kind = {".tar.gz": "gztar"}.get(ending, ending[1:])
    archive = Path(shutil.make_archive(str(tmp_path / "a"), kind, tmp_path / "in"))
    folder = tmp_path / "models" / "thing"
    monkeypatch.setattr("zipfile.ZipFile.extractall", full)
    monkeypatch.setattr("tarfile.TarFile.extractall", full)
    with pytest.raises(OSError, match="No space left") as raised:
        unpack(archive, folder)
    assert user_message(raised.value) == f"{folder}: No space left on device"
    with pytest.raises(OSError, match="no space left") as raised, changing(folder):
        unpack(archive, folder.with_name(".thing.new"))
    assert user_message(raised.value) == named(folder)
    monkeypatch.undo()
    archive.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"{archive}: not a readable archive"):
        unpack(archive, folder)


def test_copies_and_downloads_that_do_not_fit_name_their_file(tmp_path: Path, monkeypatch) -> None:
    source = tmp_path / "annotations.json"
    source.write_text("{}")
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="no space left") as raised:
        gather([source], tmp_path / "out")
    assert user_message(raised.value) == named(tmp_path / "out" / "annotations.json")
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr("urllib.request.urlopen", full)
    with pytest.raises(OSError, match="No space left") as raised:
        download("http://localhost/a", tmp_path / "out" / "a")
    assert user_message(raised.value) == f"{tmp_path / 'out' / 'a'}: No space left on device"
