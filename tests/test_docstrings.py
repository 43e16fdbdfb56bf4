"""Commands that the docstrings of modules give can be typed so."""

import ast
import re

import pytest

from tests import pages
from tests.conftest import ROOT

PACKAGES = (
    "benchmarks",
    "cldm",
    "compose",
    "datasets",
    "inpainting",
    "ldm",
    "llava_bifrost",
    "scripts",
    "tiny",
)
FORM = re.compile(r"\.\.\.|[\[|]|--allow ")  # shows a form, or needs a folder
REMARK = re.compile(r"\s{2,}.*$|\s+after --shard .*$")


def commands() -> list[tuple[str, str]]:
    """(module, command) of every line that is one."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    found = []
    for file in sorted((*files, *ROOT.glob("run_*.py"))):
        document = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        document = re.sub(r"\s*\\\n\s*", " ", document)  # goes on in the next line
        lines = [REMARK.sub("", line.strip()) for line in document.splitlines()]
        typed = [line for line in lines if re.match(r"(?:python (?:-m|run_)|accelerate launch)", line)]
        found += [(file.relative_to(ROOT).as_posix(), line) for line in typed if not FORM.search(line)]
    return found


@pytest.mark.parametrize(("module", "command"), commands())
def test_commands_of_docstrings_are_accepted(
    module: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    pages.rehearse(command, monkeypatch)


def test_there_are_such_commands() -> None:
    assert {"llava_bifrost/predict/__main__.py", "run_train_bifrost.py"} & {
        module for module, _ in commands()
    }
    assert len(commands()) > 40
