"""Fixtures of all tests. Extra real data is read only from the folder that BIFROST_TEST_DATA names."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from ldm.files import STOPPED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.images import Case

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Tests are offline and leave a busy machine alone; both can be set otherwise from outside."""
    gc.disable()  # until all modules are imported
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["BIFROST_MODELS"] = "models/none"  # models that lie here for use change no test
    # Time limits on single examples fail on a busy machine and say nothing of the code.
    hypothesis.settings.register_profile("patient", deadline=None)
    hypothesis.settings.load_profile("patient")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes of `-n auto`: one for each core; each wants about 1.5 GiB of memory."""
    return min(os.cpu_count() or 1, 4)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a GPU are listed as skipped where there is none."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked:
        import torch

        for item in [] if torch.cuda.is_available() else marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU of NVIDIA (CUDA)"))


def pytest_collection_finish() -> None:
    """What the imports made stays to the end; the garbage collector need not look through it again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A command that ran in this process leaves its handlers, and a signal its mark, to no later test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for number, handler in before.items():
        signal.signal(number, handler)
    STOPPED.clear()


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


@pytest.fixture
def u2netp(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cut-out network where it was pulled; the test is skipped without it."""
    path = ROOT / "models" / "u2netp" / "u2netp.onnx"
    if not path.is_file():
        pytest.skip("needs the cut-out network: python -m ldm.registry pull u2netp")
    monkeypatch.setenv("BIFROST_MODELS", str(ROOT / "models"))
    return path


@pytest.fixture(scope="session")
def small_compositor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained compositor with the real classes, milliseconds per step."""
    import torch

    from cldm.create import create_compositor
    from cldm.model import save_compositor
    from tests.cldm.small import SMALL, SMALL_CONFIG

    folder = tmp_path_factory.mktemp("models") / "compositor"
    save_compositor(create_compositor(SMALL, seed=1), SMALL_CONFIG, folder, torch.float32)
    return folder


@pytest.fixture(scope="session")
def small_depth_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained depth network of the kind that the bundle holds."""
    from tiny.depth.training import build_network, save_network
    from tiny.settings import DepthNetwork

    folder = tmp_path_factory.mktemp("models") / "depth"
    config = DepthNetwork(size=32, width=8, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), window=4, fusion=8)
    save_network(build_network(config, seed=0), folder, config.size, {})
    return folder


@pytest.fixture
def case(tmp_path: Path, small_compositor: Path, small_depth_network: Path) -> Case:
    """A composite of synthetic images, as files in a folder of its own."""
    from tests.images import write_case

    return write_case(tmp_path, small_compositor, small_depth_network)
