"""Ctrl-C and SIGTERM while a command still imports its libraries: one line, 130 or 143, no traceback."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ldm
import ldm.settings.cli as cli
from ldm.checkpoints import folder_written_whole
from ldm.files import named_failure, written_whole
from ldm.metrics.backbones import MetricNetworks
from ldm.settings.cli import command, run_app, single_app
from ldm.settings.config import setting
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
    "a destructor, which cannot raise": {
        "engine.py": "class Held:\n    def __del__(self): import library\ndef work(settings): Held()\n",
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


LEFT = "assets/regions/left.png"
COMMANDS = [
    f"run_inference.py image --background {LEFT} --object {LEFT} --box 0,0,1,1",
    f"-m llava_bifrost.predict image --image {LEFT} --instruction a",
    "-m cldm.evaluate --scenes 2",
    f"-m inpainting.paint --image {LEFT} --masks {LEFT} --prompts c",
    "run_train_bifrost.py configs/tiny/compositor.yaml",
]


@pytest.mark.parametrize(
    ("command", "number"),
    [(name, signal.SIGINT) for name in COMMANDS] + [(name, signal.SIGTERM) for name in COMMANDS[-1:]],
)
def test_real_commands_can_be_interrupted_while_torch_is_imported(tmp_path, command, number) -> None:
    (tmp_path / "torch.py").write_text(WAIT)
    assert interrupted(command.split(), tmp_path, number) == ENDS[number]


@dataclass(frozen=True)
class Settings:
    out: Path = setting(Path("out.png"))


def run(work: Any, *argv: str) -> int:
    return run_app(single_app(command(Settings, work)), list(argv))


@pytest.fixture
def terminating() -> None:
    for number in cli.DEFAULTS:
        signal.signal(number, cli.stop)


def as_a_library_does(number: int, error: Exception) -> None:
    """The signal comes where its exception is replaced, as in torch.tensor."""
    try:
        signal.raise_signal(number)
    except BaseException:
        raise error from None


CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("error", [ValueError("no shape"), TypeError("no shape"), OSError("no shape")])
def test_a_signal_that_becomes_an_error_ends_the_command(terminating, capsys, number, code, error):
    assert run(lambda settings: as_a_library_does(number, error)) == code
    assert "no shape" not in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), CODES)
def test_such_an_error_is_not_a_reason_to_go_on_without_a_network_or_an_item(terminating, number, code):
    went_on = []

    def work(settings: Settings) -> None:
        MetricNetworks().get(
            "clip", Path("clip"), lambda path: as_a_library_does(number, ValueError("no shape"))
        )
        went_on.append(1)

    assert run(work) == code
    cli.STOPPED.clear()
    signal.signal(number, cli.stop)
    with pytest.raises((KeyboardInterrupt, SystemExit)), named_failure("a.safetensors", ValueError):
        as_a_library_does(number, ValueError("no shape"))
    assert went_on == []


def test_without_a_signal_the_error_stands(terminating, capsys):
    def work(settings: Settings) -> None:
        with named_failure("a", TypeError):
            raise TypeError("no shape")

    assert run(work) == 2
    assert "a: no shape" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--json"]])
def test_sigterm_ends_with_143_and_leaves_no_temporary_file(tmp_path, capsys, terminating, argv) -> None:
    def work(settings: Settings) -> None:
        with written_whole(tmp_path / "a") as partial, folder_written_whole(tmp_path / "b") as folder:
            partial.write_bytes(b"half")
            (folder / "c").write_bytes(b"half")
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("went on")

    assert run(work, *argv) == 143
    shown = capsys.readouterr()
    assert shown.err == "terminated\n"
    assert shown.out == ('{"error": "terminated"}\n' if argv else "")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # once more ends at once


@pytest.mark.parametrize("code", [0, 3, None])
def test_other_exits_stay_as_they_are(code: int | None) -> None:
    def work(settings: Settings) -> None:
        raise SystemExit(code)

    with pytest.raises(SystemExit) as raised:
        run(work)
    assert raised.value.code == code


def interrupted_import(how: str) -> BaseException:
    """What comes out of an import that Ctrl-C ends; libraries make other errors of it."""
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            if how == "as it is":
                raise
            if how == "another error because of it":
                raise ImportError("numpy") from error
            raise ImportError("numpy")  # noqa: B904
    except (KeyboardInterrupt, ImportError) as error:
        return error


@pytest.mark.parametrize("how", ["as it is", "another error because of it", "another error after it"])
def test_ctrl_c_while_a_command_is_imported_is_one_line(capsys, how: str) -> None:
    error = interrupted_import(how)
    with pytest.raises(SystemExit) as raised:
        ldm.end_quietly(type(error), error, error.__traceback__)
    assert (raised.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_other_errors_of_an_import_keep_their_traceback(capsys) -> None:
    error = ImportError("no such library")
    ldm.end_quietly(type(error), error, None)
    assert capsys.readouterr().err == "ImportError: no such library\n"


@pytest.mark.parametrize(
    ("first", "code"),
    [("-m", 130), (str(ROOT / "run_inference.py"), 130), ("-c", None), (str(ROOT) + "_other/a.py", None)],
)
def test_only_commands_of_the_repository_end_quietly(first: str, code: int | None) -> None:
    program = f"import sys; sys.argv = [{first!r}]; import ldm; raise KeyboardInterrupt"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (run.returncode == 130) == (code == 130)
    assert (run.stderr == "interrupted\n") == (code == 130)
    assert ("Traceback" in run.stderr) == (code is None)


@pytest.mark.parametrize(
    "name", ["cldm", "compose", "inpainting", "llava_bifrost", "tiny", "run_dataset_debug"]
)
def test_no_foreign_library_is_imported_before_that_holds(name: str) -> None:
    program = f"import sys; sys.modules['ldm'] = None\ntry:\n    import {name}\nexcept ImportError: pass\n"
    program += "print(sorted({'numpy', 'typer', 'cv2', 'omegaconf', 'PIL', 'tqdm'} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr) == ("[]\n", "")


IN_PROCESS = """import runpy, sys
sys.argv = ["program.py"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    print("after")
"""
THREAD = "threading.Thread(target=lambda: (time.sleep(0.5), print('thread'))).start()"


@pytest.mark.parametrize(
    ("words", "thread", "ends"),
    [(["program.py"], "", ["handler"]), (["-m", "program"], "", ["handler"]),
     (["program.py"], THREAD, ["thread", "handler"]), (["-c", IN_PROCESS], "", ["after", "handler"])],
)  # fmt: skip
def test_a_command_that_has_ended_leaves_nothing_undone(
    tmp_path: Path, words: list[str], thread: str, ends: list[str]
) -> None:
    """It ends without freeing memory piece by piece, but handlers and threads have their turn, and a program
    that runs it in its own process goes on.
    """
    engine = f"""import atexit, tempfile, threading, time
def work(settings):
    global kept
    kept = tempfile.TemporaryDirectory(dir={str(tmp_path)!r})
    atexit.register(print, 'handler')
    {thread}
"""
    (tmp_path / "engine.py").write_text(engine)
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.stdout.split() == ends
    assert [path for path in tmp_path.iterdir() if path.name.startswith("tmp")] == []
