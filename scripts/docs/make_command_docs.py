"""Write docs/commands.md from the commands themselves: one table of options or settings per command.

    python -m scripts.docs.make_command_docs

A setting is declared once, in its dataclass; this page is generated from it, and a test compares the two.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.models import OptionInfo

from ldm.files import write_atomic
from ldm.settings.cli import run_module, single_app
from ldm.settings.config import flag_name, to_plain
from ldm.settings.schema import flat_settings, members, range_name, section_of, type_name
from scripts.docs.command_rows import COMMANDS, Command
from scripts.docs.published_commands import published_section

logger = logging.getLogger(__name__)

PAGE = Path("docs/commands.md")
HEAD = """# Commands

<!-- written by `python -m scripts.docs.make_command_docs`; edit the help texts of the settings instead -->

Everything runs from the root of the repository with the Python of `.venv` (or any environment with
`requirements.txt`). `--help` after a command prints its part of this page. Wrong values are refused in one
line with exit code 2, and nothing is written. Lists are typed with commas: `--box 0.4,0.5,0.7,0.9`.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(command) for command in COMMANDS), published_section()])


def section(command: Command) -> str:
    """Title, one sentence, table."""
    if command.schema:
        rows = list(setting_rows(load(command.schema), command.keys))
        note = command.note
    else:
        function = load(command.function)
        rows, note = list(parameter_rows(function)), (inspect.getdoc(function) or "").split("\n")[0]
    columns = ("key" if command.keys else "option", "type", "default", "meaning")
    table = [columns, ("---",) * 4, *rows] if rows else []
    lines = [f"## {name_of(command.line)}", "", "```text", command.line, "```", "", note, ""]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table), ""])


def name_of(line: str) -> str:
    """The program and its verb: "python -m tiny.depth.train C" -> "tiny.depth.train"."""
    words = line.removeprefix("python ").removeprefix("-m ").split(" ")
    verb = words[1] if words[1:] else ""
    spoken = verb.islower() and verb[:1].isalpha() and verb.replace("-", "").isalnum()
    return " ".join(words[:2] if spoken else words[:1])


def load(named: str) -> Any:
    """The object that "module:name" names."""
    module, _, name = named.partition(":")
    return getattr(importlib.import_module(module), name)


def setting_rows(schema: type, keys: bool) -> Iterator[tuple[str, ...]]:
    """One row per setting, those of a section under its name."""
    for key, (field, hint) in flat_settings(schema).items():
        if section_of(hint) is None:
            name = key if keys else field.metadata.get("argument") or flag_name(key)
            yield f"`{name}`", kind_of(field, hint), default_of(field), meaning_of(field)


def kind_of(field: Field, hint: Any) -> str:
    """The type as it is typed, or the choices."""
    choices = field.metadata.get("choices")
    shown = ", ".join(f"`{choice}`" for choice in choices) if choices else type_name(hint)
    return "yes or no" if members(hint) == (bool,) else cell(shown)


def default_of(field: Field) -> str:
    """The default value, or that one is needed."""
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value is MISSING:
        return "required"
    plain = to_plain(value)
    if isinstance(plain, list):
        plain = ",".join(str(item) for item in plain)
    if isinstance(plain, bool):
        plain = str(plain).lower()
    return "" if plain is None or plain == "" else f"`{plain}`"


def meaning_of(field: Field) -> str:
    """The help text with the range."""
    rule = field.metadata
    ranged = rule.get("low") is not None or rule.get("high") is not None
    span = f" ({range_name(rule.get('low'), rule.get('high'))})" if ranged else ""
    return cell(rule.get("help", "") + span)


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def parameter_rows(function: Callable[..., None]) -> Iterator[tuple[str, ...]]:
    """One row per parameter of a command that is written as a function."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, declared = get_args(hints[name])[:2]
        option = isinstance(declared, OptionInfo)
        default = parameter.default
        shown = "required" if default is parameter.empty else "" if default is None else f"`{default}`"
        named = str(declared.default) if option else ""  # inside Annotated, typer.Option("--name") lands here
        spelled = named if named.startswith("--") else flag_name(name) if option else name.upper()
        yield f"`{spelled}`", cell(type_name(kind)), shown, cell(declared.help or "")


def make(out: Annotated[Path, typer.Option(help="page to write")] = PAGE) -> None:
    """Write the page of all commands."""
    write_atomic(out, page().encode())
    logger.info("wrote %s", out)


def build_app() -> typer.Typer:
    return single_app(make)


if __name__ == "__main__":
    run_module(build_app)
