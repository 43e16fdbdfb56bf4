"""Command line: every field of a settings dataclass is an option; a mistake is one line and exit code 2."""

import contextlib
import os
import subprocess
import sys
import threading
from collections import UserDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer import _adapters

from ldm.settings import resources
from ldm.settings.cli import command, new_app, run_app, single_app
from ldm.settings.config import load_config, setting
from tests.conftest import ROOT
from tests.job_settings import Job, Optim, write


@pytest.fixture(autouse=True)
def no_image_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """So those that options name need not be there."""
    monkeypatch.setattr(resources, "INPUTS", ())


def run(argv: list[str], config: Path | None = None) -> tuple[int, list[Job]]:
    seen: list[Job] = []

    def edit(job: Job) -> None:
        """Edit one image."""
        seen.append(job)

    def build() -> typer.Typer:
        app = new_app("Images.")
        app.command("edit")(command(Job, edit, config))
        return app

    return run_app(build, argv), seen


def test_flags_cover_every_kind_of_field():
    flags = "--box 0,0,0.5,1 --size 32,48 --names a,b --word c --seeds 1,2 --weights depth=2 --optim.warm"
    code, (job,) = run(["edit", "--image", "a.png", *flags.split(), "--prompt", "null: [x"])
    assert code == 0
    assert job == Job(
        image=Path("a.png"), box=(0, 0, 0.5, 1), size=(32, 48), names=("a,b", "c"), seeds=[1, 2],
        weights={"detail": 1.0, "depth": 2.0}, optim=Optim(warm=True), prompt="null: [x",
    )  # fmt: skip


def test_flags_override_the_named_yaml_which_replaces_the_default_yaml(tmp_path):
    default = write(tmp_path, default="strength: 0.1\nprompt: default")
    other = write(tmp_path, other="strength: 0.2\nimage: other.png")
    assert run(["edit", "--image", "a"], default)[1][0].strength == 0.1
    (job,) = run(["edit", "--config", str(other), "--size", "9,9"], default)[1]
    assert (job.strength, job.prompt, job.size) == (0.2, "", (9, 9))
    assert run(["edit", "--config", str(other), "--strength", "0.9"])[1][0].strength == 0.9


def test_help_shows_type_range_choices_and_the_default_that_holds(tmp_path, capsys):
    assert run(["edit", "--help"], write(tmp_path, default="strength: 0.125"))[0] == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in [
        "Edit one image.",
        "--size INT,INT",
        "place|replace|id-transfer",
        "[required]",
        "in [0, 1]; default: 0.125",
        "--optim.warm / --optim.no-warm",
        "learning rate",
        "--word",
    ]:
        assert part in shown


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ([], "missing --image"),
        (["--image", "a", "--strenght", "1"], "--strength"),
        (["--image", "a", "--strength", "-0.5"], "--strength must be in [0, 1], got -0.5"),
        (["--image", "a", "--strength", "nan"], "--strength must be in [0, 1], got nan"),
        (["--image", "a", "--strength", "x"], "--strength must be float, got 'x'"),
        (["--image", "a", "--mode", "palce"], "unknown --mode 'palce'; did you mean 'place'?"),
        (["--image", "a", "--optim.rate", "-1"], "--optim.rate must be at least 0"),
        (["--image", "a", "--box", "0,1"], "--box must be float,float,float,float, got 0,1"),
        (["--image", "a", "--mode", "replace"], "mode replace needs a box"),
        (["--image", "a", "--config", "gone.yaml"], "gone.yaml"),
        (["--image"], "--image"),
        (["--image", "a", "extra"], "extra"),
    ],
)
def test_a_wrong_flag_is_one_line_and_code_2(capsys, flags, part):
    code, seen = run(["edit", *flags])
    error = capsys.readouterr().err
    assert (code, seen) == (2, [])
    assert part in error
    assert error.count("\n") == 1


def test_unknown_verb_suggests_the_nearest(capsys):
    assert run(["edt"])[0] == 2
    assert "edit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (ValueError("a\nb"), 2), (typer.Exit(7), 7), (typer.Abort(), 130)],
)
def test_exit_codes(error, code):
    def fail(job: Optim) -> None:
        raise error

    def build() -> typer.Typer:
        app = new_app("Fails.")
        app.command("fail")(command(Optim, fail))
        return app

    assert run_app(build, ["fail"]) == code


def test_a_defect_keeps_its_traceback():
    def build() -> typer.Typer:
        raise RuntimeError("defect")

    with pytest.raises(RuntimeError, match="defect"):
        run_app(build, ["x"])


def test_a_file_that_cannot_be_opened_is_a_user_error(tmp_path, capsys):
    def read(job: Optim) -> None:
        (tmp_path / "gone.png").read_bytes()

    def build() -> typer.Typer:
        app = new_app("Reads.")
        app.command("read")(command(Optim, read))
        return app

    assert run_app(build, ["read"]) == 2
    assert "gone.png: No such file or directory" in capsys.readouterr().err


@dataclass(frozen=True)
class Renamed:
    images: tuple[int, ...] = setting((), was=("pictures",), help="numbers")
    optim: Optim = setting(Optim())


def test_a_former_name_is_read_and_the_new_one_is_said(tmp_path, caplog):
    """As key of a file, as override, as flag; the help shows the new name only."""
    file = write(tmp_path, old="pictures: [1, 2]")
    assert load_config(Renamed, file).images == (1, 2)
    assert "old.yaml: pictures is now images" in caplog.text
    assert load_config(Renamed, None, ["pictures=3,4"]).images == (3, 4)
    seen: list[Renamed] = []
    assert run_app(single_app(command(Renamed, seen.append)), ["--pictures", "5,6"]) == 0
    assert seen[0].images == (5, 6)
    assert "--pictures is now --images" in caplog.text


def test_a_former_name_is_not_in_the_help(capsys):
    assert run_app(single_app(command(Renamed, lambda given: None)), ["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--images" in shown
    assert "--pictures" not in shown


@pytest.mark.parametrize(
    ("typed", "field", "value"),
    [
        ("--box 0 0.1 0.5 1", "box", (0, 0.1, 0.5, 1)),
        ("--box 0,0.1,0.5,1", "box", (0, 0.1, 0.5, 1)),
        ("--size 32 48 --seeds 3", "size", (32, 48)),
        ("--seeds 3 4 5 --prompt 7", "seeds", [3, 4, 5]),
        ("--optim.betas 0.5 1e-1", "optim", Optim(betas=(0.5, 0.1))),
        ("--names a b --word c d", "names", ("a", "b", "c", "d")),
        ("--word a,b --word c", "names", ("a,b", "c")),  # texts hold commas
    ],
)
def test_both_spellings_of_lists_are_read(typed, field, value):
    code, (job,) = run(["edit", "--image", "a.png", *typed.split()])
    assert code == 0
    assert getattr(job, field) == value


@dataclass(frozen=True)
class Named:
    first: str = setting(aliases=("FIRST",))
    masks: tuple[Path, ...] = setting(())
    shape: tuple[int, ...] = setting(())
    replace: bool = setting(False, aliases=("/--keep",))


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("a --masks b.png,c.png", Named("a", (Path("b.png"), Path("c.png")))),
        ("--masks b,c.png --masks d a", Named("a", (Path("b,c.png"), Path("d")))),  # the file is there
        ("--shape 1 2 a", Named("a", shape=(1, 2))),
        ("--shape 1,2 3", Named("3", shape=(1, 2))),
        ("a --replace", Named("a", replace=True)),
        ("a --keep", Named("a")),
    ],
)
def test_words_without_a_name_are_no_part_of_a_list(typed, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("b,c.png").touch()
    seen: list[Named] = []
    assert run_app(single_app(command(Named, seen.append)), typed.split()) == 0
    assert seen == [value]


@pytest.mark.parametrize("flags", [["--box", "0.3", "0.5"], ["--box", "0,0,1,1,1"], ["--box", "0.3"]])
def test_a_list_of_the_wrong_length_is_named(capsys, flags):
    assert run(["edit", "--image", "a", *flags])[0] == 2
    assert "--box must be float,float,float,float" in capsys.readouterr().err


@pytest.mark.slow
def test_under_accelerate_the_last_line_says_what_is_wrong():
    command = [
        "-m",
        "accelerate.commands.launch",
        "--quiet",
        "--cpu",
        "-m",
        "llava_bifrost.train",
        "none.yaml",
    ]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("error: none.yaml: ")
    assert "Traceback" not in done.stderr


def test_values_are_read_in_two_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """typer sets a variable of the environment while it reads one, and would delete it twice."""
    monkeypatch.delenv("PYDANTIC_DISABLE_PLUGINS", raising=False)
    both = threading.Barrier(2)

    def wait_for_the_other() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(1)

    class Late(UserDict):
        def get(self, name: str, default: Any = None) -> Any:
            value = os.environ.get(name, default)
            wait_for_the_other()
            return value

        def __setitem__(self, name: str, value: str) -> None:
            os.environ[name] = value
            wait_for_the_other()

    late = Late()
    late.data = os.environ  # type: ignore[assignment]
    monkeypatch.setattr(_adapters, "os", SimpleNamespace(environ=late))

    def work(count: int = 1) -> int:
        return 0

    with ThreadPoolExecutor() as threads:
        runs = [threads.submit(run_app, single_app(work), ["--count", "2"]) for _ in range(2)]
        assert [run.result() for run in runs] == [0, 0]
