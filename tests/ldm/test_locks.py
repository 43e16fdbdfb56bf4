"""One writer at a time; items that processes share are done once; a dead process holds nothing."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from ldm.checkpoints import folder_written_whole
from ldm.locks import alone, held, lock_beside, one_writer, taken, taken_together


@dataclass
class Settings:
    out: Path


@pytest.mark.parametrize("inside", [True, False])
def test_a_second_writer_is_refused_in_one_line_and_nothing_stays(tmp_path: Path, inside: bool) -> None:
    out = tmp_path / "new" / "run"
    for _ in range(2):  # the lock is free again afterwards
        with one_writer(out, inside=inside):
            lock = out / ".lock" if inside else out.parent / ".run.lock"
            assert lock.is_file()
            message = f"^{out}: another process is writing it; wait for its end, or name another$"
            with pytest.raises(ValueError, match=message), one_writer(out, inside=inside):
                pytest.fail("two writers")
        assert not lock.exists()


def test_a_folder_is_written_by_one_process(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with folder_written_whole(target) as partial:
        (partial / "a").write_text("first")
        with pytest.raises(ValueError, match="another process is writing"), folder_written_whole(target):
            pytest.fail("two writers")
        assert (partial / "a").read_text() == "first"
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/a"]


def test_a_kill_between_the_renames_of_a_folder_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "a").write_text("before")
    (tmp_path / "model.old").mkdir()  # of the user
    with pytest.raises(ValueError, match="failed"), folder_written_whole(tmp_path / "model"):
        raise ValueError("failed")
    assert (tmp_path / "model" / "a").read_text() == "before"
    with folder_written_whole(tmp_path / "model") as partial:
        (partial / "a").write_text("after")
    assert (tmp_path / "model" / "a").read_text() == "after"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.old"}


def test_the_settings_name_the_folder_and_only_the_first_process_holds_it(tmp_path, monkeypatch) -> None:
    settings = Settings(tmp_path / "run")

    def work(given: Settings) -> bool:
        """What it does."""
        return (given.out / ".lock").exists()

    assert alone(work)(settings) is True
    assert alone(work).__doc__ == "What it does."
    with one_writer(settings.out):
        with pytest.raises(ValueError, match="another process is writing it"):
            alone(work)(settings)
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert alone(work)(settings) is True


def test_shared_items_are_done_once_and_those_of_others_come_last(tmp_path: Path) -> None:
    done = {tmp_path / "old"}
    items = [tmp_path / name for name in ("old", "mine", "theirs", "too")]
    seen = []
    with held(lock_beside(items[2])) as free:
        assert free
        for item in taken(items[:2] + items[3:], done.__contains__, Path):
            assert lock_beside(item).exists()
            seen.append(item.name)
            done.add(item)
    assert seen == ["mine", "too"]

    def other_has_done_it(item: Path) -> bool:
        return item in done or not lock_beside(item).exists()

    assert list(taken(items, other_has_done_it, Path)) == []
    assert list(tmp_path.iterdir()) == []


def test_the_lock_that_a_dead_process_left_of_a_done_item_goes(tmp_path: Path) -> None:
    items = [tmp_path / name for name in ("a", "b")]
    lock_beside(items[1]).touch()
    assert list(taken(items, lambda path: True, Path)) == []
    assert list(tmp_path.iterdir()) == []


def test_items_are_held_together_and_one_that_is_waited_for_comes_alone(tmp_path: Path) -> None:
    items = [tmp_path / name for name in "abcdefg"]
    done, parts = {items[1]}, []
    with contextlib.ExitStack() as others:
        for item in (items[2], items[5]):
            assert others.enter_context(held(lock_beside(item)))
        for part in taken_together(items, done.__contains__, Path, lambda item: 3):
            assert all(lock_beside(item).exists() for item in part)
            if len(parts) == 1:
                others.close()
            parts.append("".join(item.name for item in part))
            done.update(part)
    assert parts == ["ade", "g", "c", "f"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 2, 5])
def test_locks_of_items_go_when_their_work_ends_in_an_error(tmp_path: Path, count: int) -> None:
    items = [tmp_path / name for name in "abc"]
    parts = taken_together(items, lambda item: False, Path, lambda item: count)
    assert len(next(parts)) == min(count, 3)
    assert len(list(tmp_path.iterdir())) == min(count, 3)
    with pytest.raises(KeyboardInterrupt):
        parts.throw(KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == []


def hold(path: Path, ready) -> None:
    with held(path):
        ready.set()
        signal.pause()


def test_the_lock_of_a_dead_process_is_taken_over_and_a_living_one_is_waited_for(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path / ".a.lock", ready))
    other.start()
    assert ready.wait(20)
    with held(tmp_path / ".a.lock") as free:
        assert not free
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert (tmp_path / ".a.lock").exists()
    assert list(taken([tmp_path / "a"], lambda path: False, Path)) == [tmp_path / "a"]
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    message = r"cannot write in .*/file/run: a part of its path is a file"
    with pytest.raises(ValueError, match=message), one_writer(tmp_path / "file" / "run"):
        pytest.fail("written")


def test_a_folder_in_which_nothing_was_written_goes_and_one_of_the_user_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine", "run"):
        with pytest.raises(ValueError, match="refused"), one_writer(tmp_path / name):
            raise ValueError("refused")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_half_written_folders_of_dead_processes_go_and_those_of_others_stay(tmp_path: Path) -> None:
    for name in (".dead.partial", ".other.v2.partial", ".mine.partial"):
        (tmp_path / name).mkdir()
    with one_writer(tmp_path / "other.v2", inside=False), folder_written_whole(tmp_path / "mine") as partial:
        assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
            partial.name,
            ".other.v2.partial",
        }
