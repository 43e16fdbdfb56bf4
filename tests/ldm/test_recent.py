"""What was computed of files is kept by their contents, up to a number of bytes."""

import os
from pathlib import Path

import numpy as np
import pytest

from ldm.decode import LoadedImage
from ldm.recent import FORGETFUL, Recent, bytes_of


def test_a_file_counts_by_its_contents(tmp_path: Path) -> None:
    recent, made = Recent(1000), []
    one, same, other = (tmp_path / name for name in ("a", "b", "c"))
    one.write_bytes(b"1")
    same.write_bytes(b"1")
    other.write_bytes(b"2")
    for path in (one, same, other, one):
        recent.once(lambda path=path: made.append(path.name), "depth", path)
    assert made == ["a", "c"]
    one.write_bytes(b"3")
    os.utime(one, ns=(1, 1))
    recent.once(lambda: made.append("new"), "depth", one)
    assert made == ["a", "c", "new"]
    recent.once(lambda: made.append("image"), "image", one)
    assert made[-1] == "image"


def test_the_value_that_was_used_longest_ago_goes() -> None:
    recent, made = Recent(250), []

    def use(*names: str) -> str:
        made.clear()
        for name in names:
            recent.once(lambda name=name: (made.append(name), np.zeros(100, np.uint8))[1], name)
        return "".join(made)

    assert use("a", "b", "a") == "ab"
    assert use("c", "a") == "c"  # b goes
    assert use("b", "a") == "b"  # c goes
    assert use("c") == "c"


def test_a_value_larger_than_the_limit_is_given_and_not_kept() -> None:
    recent = Recent(10)
    for _ in range(2):
        assert recent.once(lambda: np.ones(11, np.uint8), "big").sum() == 11
    assert not recent.values


def test_none_is_kept_without_a_limit(tmp_path: Path) -> None:
    assert FORGETFUL.once(lambda: 7, tmp_path / "not there") == 7
    assert not FORGETFUL.values


def test_a_failure_is_not_kept() -> None:
    recent = Recent(10)
    with pytest.raises(ZeroDivisionError):
        recent.once(lambda: 1 / 0, "x")
    assert recent.once(lambda: 3, "x") == 3


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (np.zeros((2, 3), np.float32), 24),
        (LoadedImage(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8)), 16),
        ([np.zeros(4, np.uint8), None, "text"], 4),
        ({"item": LoadedImage(np.zeros((1, 1, 3), np.uint8)), "cut": np.zeros(5, bool)}, 8),
        (None, 0),
    ],
)
def test_bytes_of_arrays_in_a_value(value, count) -> None:
    assert bytes_of(value) == count
