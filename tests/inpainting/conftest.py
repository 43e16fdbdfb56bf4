"""A small inpainter in memory and on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from inpainting.models.text_to_image.load import (
    Inpainter,
)
from tests.inpainting.small_inpainter import save_inpainter, small_inpainter


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Inpainter:
    return small_inpainter(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def saved(model: Inpainter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own layout, in single precision; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_inpainter(model, folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, saved: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(saved, tmp_path / "model"))
