"""Fixtures of all tests. Extra real data is read only from the folder that BIFROST_TEST_DATA names."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Tests are offline and leave a busy machine alone; both can be set otherwise from outside."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of extra real data, with `data/` and `golden/`; the test is skipped without it."""
    named = os.environ.get("BIFROST_TEST_DATA")
    if not named:
        pytest.skip("needs real data: set BIFROST_TEST_DATA to its folder")
    folder = Path(named).resolve()
    assert folder.is_dir(), f"BIFROST_TEST_DATA={named} is not a folder"
    return folder
