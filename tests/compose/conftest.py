"""Fixtures of composites: a rendered room, and compositors that are read from a folder once."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.compose.rendered import Room


@pytest.fixture(scope="session", autouse=True)
def compositors_are_read_once() -> Iterator[None]:
    """To read one takes longer than a small composite. Each caller has a copy of its own to change.

    A file of another size or time makes another compositor. Reading itself is tested in `tests/cldm`.
    """
    import torch

    from compose import models
    from tests.copies import Original

    load = models.load_compositor
    read = lru_cache(maxsize=6)(lambda folder, dtype, files: Original(load(folder, dtype)))

    def copied(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
        found = [(path, path.stat()) for path in sorted(folder.rglob("*"))]
        files = tuple((path, now.st_size, now.st_mtime_ns) for path, now in found)
        return read(folder.resolve(), dtype, files).copied()

    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(models, "load_compositor", copied)
        yield


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory, small_compositor: Path, small_depth_network: Path) -> Room:
    """A rendered room with exact depth and masks."""
    from tests.compose.rendered import render_room

    return render_room(tmp_path_factory.mktemp("room"), small_compositor, small_depth_network)
