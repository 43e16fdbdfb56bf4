"""Fixtures of tests of jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.compose.rendered import Room


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory, small_compositor: Path, small_depth_network: Path) -> Room:
    """A rendered room with exact depth and masks."""
    from tests.compose.rendered import render_room

    return render_room(tmp_path_factory.mktemp("room"), small_compositor, small_depth_network)
