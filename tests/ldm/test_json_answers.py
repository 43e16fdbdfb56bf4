"""`--json` and `--version` of every command: one object on standard output, everything else on the other."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import typer

from ldm import __version__
from ldm.settings.cli import command, new_app, run_app, single_app
from ldm.settings.config import setting
from tests.job_settings import Optim


def answers(work, argv, capsys, schema=Optim) -> tuple[int, dict, str]:
    """Exit code, the one object on standard output, standard error."""

    def build() -> typer.Typer:
        app = new_app("Works.")
        app.command("work")(command(schema, work))
        return app

    code = run_app(build, [*argv, "--json"])
    shown = capsys.readouterr()
    return code, json.loads(shown.out), shown.err


def test_json_is_one_object_and_messages_go_to_standard_error(capsys):
    def work(job: Optim) -> dict:
        typer.echo("a table")
        sys.stdout.write("a line\n")
        return {"mean": np.float32(0.5), "spread": float("nan"), "at": Path("a/b"), "all": np.arange(2)}

    code, printed, messages = answers(work, ["work"], capsys)
    assert (code, printed) == (0, {"mean": 0.5, "spread": None, "at": "a/b", "all": [0, 1]})
    assert messages == "a table\na line\n"


@dataclass(frozen=True)
class Written(Optim):
    out: Path = setting(Path("x/y.png"))


@pytest.mark.parametrize(
    ("report", "schema", "code", "printed"),
    [
        (None, Optim, 0, {"out": None}),
        (None, Written, 0, {"out": "x/y.png"}),
        ({"failed": {"a": "why"}}, Optim, 1, {"failed": {"a": "why"}}),
        ({"failed": {}}, Optim, 0, {"failed": {}}),
        (True, Optim, 0, {}),  # no exit code
        (False, Optim, 0, {}),
        (Path("a"), Optim, 0, {"out": "a"}),
        (7, Optim, 7, {}),
    ],
)
def test_every_command_has_an_object(capsys, report, schema, code, printed):
    assert answers(lambda job: report, ["work"], capsys, schema)[:2] == (code, printed)


def fail(error: BaseException):
    def work(job: Optim) -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "argv", "code", "message"),
    [
        (fail(ValueError("no\nroom")), ["work"], 2, "no room"),
        (fail(FileNotFoundError(2, "No such file", "a.png")), ["work"], 2, "a.png: No such file"),
        (fail(KeyboardInterrupt()), ["work"], 130, "interrupted"),
        (fail(ValueError()), ["work", "--rat", "1"], 2, "--rat"),
        (fail(ValueError()), ["wrok"], 2, "wrok"),
        (fail(ValueError()), ["work", "--rate", "-1"], 2, "--rate must be at least 0, got -1"),
    ],
)
def test_an_error_in_json_is_one_object(capsys, work, argv, code, message):
    given, printed, messages = answers(work, argv, capsys)
    assert (given, list(printed)) == (code, ["error"])
    assert message in printed["error"]
    assert printed["error"] in messages


def test_a_defect_in_json_is_said_and_raised(capsys):
    with pytest.raises(RuntimeError):
        run_app(single_app(command(Optim, fail(RuntimeError("defect")))), ["--json"])
    assert "traceback" in json.loads(capsys.readouterr().out)["error"]


def plain_verb(name: Annotated[str, typer.Argument()] = "") -> dict[str, str]:
    return {"name": name}


@pytest.mark.parametrize("build", [single_app(plain_verb), single_app(command(Written, lambda job: None))])
def test_every_kind_of_command_tells_its_version(build, capsys):
    assert run_app(build, ["--version"]) == 0
    assert capsys.readouterr().out == f"bifrost {__version__}\n"
    assert run_app(build, ["--version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": __version__}
    assert run_app(build, ["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--version" in shown
    assert "--json" in shown


def test_a_plain_verb_answers_in_json(capsys):
    assert run_app(single_app(plain_verb), ["dog", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "dog"}
