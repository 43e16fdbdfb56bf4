"""Write docs/commands.md from the commands themselves: the `--help` of every verb, the settings of trainers.

    python -m scripts.docs.make_command_docs

A test compares the page with the commands. The parts before FIRST and from TAIL on are written by hand.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from compose.schema import command_modules, verbs_of
from ldm.files import write_atomic
from ldm.settings.cli import key_rows, run_module, single_app

PAGE = Path("docs/commands.md")
FIRST, TAIL = "* `", "## Commands of the two papers\n"
TAIL_LINK = "* [commands of the two papers](#commands-of-the-two-papers)\n"
OF_TRAINERS = ("CONFIG", "[KEY=VALUE]...", "[OVERRIDES]...")  # explained at the top
MOST_KEYS = 150  # a longer table is left to --help


def sections(module: str, listed: dict[type, str]) -> Iterator[tuple[str, str]]:
    """Title and text of every verb of a module. listed: settings on the page already -> where; grows."""
    for title, body in verbs_of(module):
        context, shown = typer.Context(body), [option for option in body.params if not option.hidden]
        records = (option.get_help_record(context) for option in shown)
        options = [(" ".join(called.split()), " ".join(text.split())) for called, text in records]
        needed = []  # options and arguments as they are typed: the first name and what follows it
        for called, text in options:
            if text.endswith("required]"):
                first, *_, last = called.replace("<", "").replace(">", "").replace(",", " ").split()
                needed.append(f"{first} {last.upper()}" if first.startswith("-") else first.upper())
        line = " ".join(["python", *(["-m"] if "." in module else []), title, *needed])
        lines = [f"## {title}", "", f"`{line}`: {' '.join((body.help or '').split())}", ""]
        schema = getattr(body, "keys", None)  # what the `key=value` arguments set
        lines += table("option", [row for row in options if row[0].split()[0] not in OF_TRAINERS])
        if schema in listed:
            lines += [f"Keys: those of [{listed[schema]}](#{anchor(listed[schema])}).", ""]
        elif schema:
            rows, listed[schema] = key_rows(schema), title
            lines += ["Keys: `--help` lists them.", ""] if len(rows) > MOST_KEYS else table("key", rows)
        yield title, "\n".join(lines)


def anchor(title: str) -> str:
    """What a link to a heading names after #."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def table(head: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two columns; nothing without rows."""
    escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
    lines = [f"| {head} | meaning |", "| --- | --- |", *(f"| `{name}` | {text} |" for name, text in escaped)]
    return [*lines, ""] if escaped else []


def write_command_page(out: Annotated[Path, typer.Option(help="page to write")] = PAGE) -> None:
    """Write the page of all commands."""
    text, parts, listed = out.read_text(encoding="utf-8"), dict[str, str](), dict[type, str]()
    for module in command_modules():
        parts |= sections(module, listed)
    packages: dict[str, list[str]] = {}  # a line for each, with a link for every verb
    for title in parts:
        package = title.split(".")[0] + "." if ".py" not in title else ""
        packages.setdefault(package, []).append(f"[{title.removeprefix(package)}](#{anchor(title)})")
    lines = [f"* `{name or 'run_*.py'}`: {', '.join(links)}" for name, links in packages.items()]
    head = text[: text.index(f"\n{FIRST}")]
    page = [head, *lines, TAIL_LINK, *parts.values(), text[text.index(TAIL) :]]
    write_atomic(out, "\n".join(page).encode())
    logging.getLogger(__name__).info("wrote %s", out)


build_app = single_app(write_command_page)

if __name__ == "__main__":
    run_module(build_app)
