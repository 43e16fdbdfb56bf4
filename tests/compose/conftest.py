"""Fixtures of composites: a rendered room, and compositors that are read once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.compose.rendered import Room


@pytest.fixture(scope="session", autouse=True)
def networks_are_read_once() -> Iterator[None]:
    """To read a compositor takes longer than a small composite. Reading is tested in `tests/cldm`."""
    from compose import models
    from tests.copies import read_once

    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(models, "load_compositor", read_once(models.load_compositor))
        yield


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory, small_compositor: Path, small_depth_network: Path) -> Room:
    """A rendered room with exact depth and masks."""
    from tests.compose.rendered import render_room

    return render_room(tmp_path_factory.mktemp("room"), small_compositor, small_depth_network)
