"""Ctrl-C and SIGTERM while a command still imports its libraries: one line, 130 or 143, no traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROGRAM = """from dataclasses import dataclass
from ldm.settings.cli import command, run_module, single_app
from ldm.settings.config import setting
from ldm.settings.later import later

@dataclass(frozen=True)
class Settings:
    out: str = setting("a")

if __name__ == "__main__":
    run_module(single_app(command(Settings, later("engine:work"))))
"""
WAIT = 'import time\nprint("importing", flush=True)\ntime.sleep(60)\n'
ENGINES = {
    "the engine itself": {"engine.py": WAIT + "def work(settings): ...\n"},
    "a library of the engine": {"engine.py": "import library\ndef work(settings): ...\n", "library.py": WAIT},
    "a library that is optional": {
        "engine.py": "try:\n    import library\nexcept Exception:\n    pass\ndef work(settings): ...\n",
        "library.py": WAIT,
    },
    "a library that the work imports": {
        "engine.py": "def work(settings):\n    import library\n",
        "library.py": WAIT,
    },
}


ENDS = {signal.SIGINT: (130, "interrupted\n"), signal.SIGTERM: (143, "terminated\n")}


def interrupted(command: list[str], folder: Path, number: int = signal.SIGINT) -> tuple[int, str]:
    """Exit code and standard error of a command that gets a signal while it imports a module."""

    def hears_ctrl_c() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    paths = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=paths, text=True, preexec_fn=hears_ctrl_c,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == "importing\n", running.stderr and running.stderr.read()
        running.send_signal(number)
        _, shown = running.communicate(timeout=30)
    return running.returncode, shown


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, signal.SIGINT) for name in ENGINES] + [(name, signal.SIGTERM) for name in list(ENGINES)[1:3]],
)
def test_an_interrupt_during_imports_is_one_line(tmp_path: Path, name: str, number: signal.Signals) -> None:
    for file, text in {**ENGINES[name], "program.py": PROGRAM}.items():
        (tmp_path / file).write_text(text)
    assert interrupted([str(tmp_path / "program.py")], tmp_path, number) == ENDS[number]


def test_a_library_that_reports_at_its_end_is_quiet(tmp_path: Path) -> None:
    """torch does, where its own logging was not set up yet."""
    noisy = "import atexit, logging\nlog = logging.getLogger('torch._subclasses.fake_tensor')\n"
    noisy += "atexit.register(lambda: log.info('cache_misses: 0'))\n"
    (tmp_path / "engine.py").write_text(noisy + WAIT + "def work(settings): ...\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    assert interrupted([str(tmp_path / "program.py")], tmp_path) == (130, "interrupted\n")


COMMANDS = [
    "run_inference.py image --background a.png --object b.png --box 0,0,1,1",
    "-m llava_bifrost.predict image --image a.png --instruction a",
    "-m cldm.evaluate --scenes 2",
    "-m inpainting.paint --image a.png --masks b.png --prompts c",
    "run_train_bifrost.py configs/tiny/compositor.yaml",
]


@pytest.mark.parametrize(
    ("command", "number"),
    [(name, signal.SIGINT) for name in COMMANDS] + [(name, signal.SIGTERM) for name in COMMANDS[-1:]],
)
def test_real_commands_can_be_interrupted_while_torch_is_imported(tmp_path, command, number) -> None:
    (tmp_path / "torch.py").write_text(WAIT)
    assert interrupted(command.split(), tmp_path, number) == ENDS[number]
