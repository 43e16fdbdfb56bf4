"""Arrays of many scenes: a full disk is noticed before they are filled."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tiny.world import cached_arrays


@dataclass
class Arrays:
    a: np.ndarray


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no posix_fallocate here")
@pytest.mark.parametrize("full", [True, False])
def test_room_is_reserved_before_an_array_is_filled(tmp_path: Path, monkeypatch, full: bool) -> None:
    asked = []

    def reserve(file: int, start: int, length: int) -> None:
        asked.append(length)
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", reserve)

    def cached() -> Arrays:
        files = [Path("one"), Path("two")]
        return cached_arrays(Arrays, tmp_path, {}, 3, files, lambda file: {"a": np.ones((2, 4), np.float32)})

    if full:
        with pytest.raises(OSError, match="no space left on the disk") as caught:
            cached()
        assert caught.value.filename == str(tmp_path / "a.npy")
    else:
        assert cached().a.sum() == 12
    assert asked == [128 + 3 * 4 * 4]  # header and numbers
