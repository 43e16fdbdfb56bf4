"""A step of bulk work whose output cannot be written: it ends, and leaves no item out for that."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from ldm.files import UnwritableError, read_json, write_atomic
from ldm.journal import Journal, run_step
from ldm.locks import held


def refuse(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails while an item is at work."""
    if how == "lock":
        with held(tmp_path / "file" / ".lock"):
            pass
    elif how in ("folder is a file", "target is a folder", "name"):
        names = {"folder is a file": "file/a", "target is a folder": "folder", "name": "n" * 300 + "/a"}
        write_atomic(tmp_path / names[how], b"a")
    elif how == "limit":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            write_atomic(tmp_path / "large", bytes(2000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    else:
        number = {"permission": errno.EACCES, "read-only": errno.EROFS, "device": errno.EIO}[how]
        with monkeypatch.context() as patched:
            patched.setattr("os.replace", Mock(side_effect=OSError(number, os.strerror(number))))
            write_atomic(tmp_path / "a", b"a")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("permission", "cannot write .*/a: permission denied"),
        ("read-only", "cannot write .*/a: read-only file system"),
        ("device", "cannot write .*/a: input/output error"),
        ("lock", "cannot write in .*file: a part of its path is a file, not a folder"),
        ("limit", "file larger than the disk or ulimit allows: '.*large'"),
        ("folder is a file", None),
        ("target is a folder", None),
        ("name", None),
    ],
)
def test_an_output_that_cannot_be_written_ends_a_step_unless_its_name_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, reason: str | None
) -> None:
    """It says nothing about the item, which the next run does; its journal is that of one run."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()

    def work(item: str, fails: bool) -> dict[str, Any]:
        if item == "b" and fails:
            refuse(tmp_path, how, monkeypatch)
        if item == "c":
            read_json(tmp_path / "absent.json")
        return {}

    stamp, alone = tmp_path / "stamp_a.jsonl", tmp_path / "stamp_b.jsonl"
    context = pytest.raises((OSError, UnwritableError), match=reason) if reason else nullcontext()
    with context:
        run_step(stamp, {}, list("abcd"), lambda item: work(item, True), redo=False)
    journal = Journal(stamp, {})
    if not reason:
        assert (list(journal.done), list(journal.left_out), journal.complete) == (
            ["a", "d"],
            ["b", "c"],
            True,
        )
        return
    assert (list(journal.done), journal.left_out, journal.complete) == (["a"], {}, False)
    run_step(stamp, {}, list("abcd"), lambda item: work(item, False), redo=False)
    run_step(alone, {}, list("abcd"), lambda item: work(item, False), redo=False)
    assert stamp.read_text() == alone.read_text()
    assert list(Journal(stamp, {}).left_out) == ["c"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "large"))]
