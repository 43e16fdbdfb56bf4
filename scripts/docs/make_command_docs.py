"""Write docs/commands.md from the commands themselves: the `--help` of every verb, the settings of trainers.

    python -m scripts.docs.make_command_docs

A test compares the page with the commands. The part from TAIL on is written by hand and stays.
"""

import importlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm.files import write_atomic
from ldm.settings.cli import command, run_module, single_app

logger = logging.getLogger(__name__)

PAGE = Path("docs/commands.md")
HEAD = """# Commands

<!-- written by `python -m scripts.docs.make_command_docs`; edit the help texts of the settings instead -->

Everything runs from the root of the repository with the Python of `.venv` (or any environment with
`requirements.txt`). `--help` after a command prints its part of this page. Wrong values are refused in one
line with exit code 2, and nothing is written. Lists are typed with commas: `--box 0.4,0.5,0.7,0.9`. The
settings of a trainer are keys of its YAML file, and `key=value` after the file overrides them; on several
processes it is started by `accelerate launch -m` instead of `python -m`.
"""
TAIL = "## Commands of the two papers\n"
FOLDERS = ("", "compose", "cldm", "llava_bifrost", "inpainting", "tiny", "datasets", "ldm", "scripts")
# Trainers with verbs: program and verb -> the settings that `key=value` sets. Other trainers name theirs.
SETTINGS = {
    "inpainting.models.image_to_text.fine_tune_llavanext train": (
        "inpainting.models.image_to_text.settings:PromptTraining"
    ),
    "inpainting.models.text_to_image.train_text_to_image_lora main": (
        "inpainting.models.text_to_image.train_text_to_image_lora:TrainLoraConfig"
    ),
    "inpainting.models.text_to_image.test generate": (
        "inpainting.models.text_to_image.evaluation.generate:PaintingsConfig"
    ),
}


def sections(module: str) -> Iterator[str]:
    """Title, command line, description and table of every verb of a module."""
    name = module.removesuffix(".__main__") if "." in module else f"{module}.py"
    program = typer.main.get_command(importlib.import_module(module).build_app())
    verbs: dict[str, Any] = getattr(program, "commands", {"": program})
    for verb, body in verbs.items():
        title = f"{name} {verb}".strip()
        options = help_rows(body)
        needed = []  # options and arguments as they are typed: the first name and what follows it
        for called, text in options:
            if text.endswith("required]"):
                first, *_, last = called.replace("<", "").replace(">", "").replace(",", " ").split()
                needed.append(f"{first} {last.upper()}" if first.startswith("-") else first.upper())
        line = " ".join(["python", *(["-m"] if "." in module else []), title, *needed])
        lines = [f"## {title}", "", "```text", line, "```", "", " ".join((body.help or "").split()), ""]
        schema = getattr(body.callback, "settings", None)  # what the `key=value` arguments fill
        if title in SETTINGS:
            home, _, setting = SETTINGS[title].partition(":")
            schema = getattr(importlib.import_module(home), setting)
        lines += table("option", options) if title in SETTINGS or not schema else []
        if schema:  # the settings of a trainer, as typed in YAML
            keys = []
            for called, text in help_rows(typer.main.get_command(single_app(command(schema, print))()))[1:]:
                key = called.split()[0].strip(",").removeprefix("--").replace("-", "_")
                keys.append((f"{key} {'true|false' if ' / ' in called else called.split()[-1]}", text))
            lines += table("key", keys)
        yield "\n".join(lines)


def help_rows(body: Any) -> list[tuple[str, str]]:
    """Name and meaning of every option that the help of a command shows; former names are hidden."""
    context, shown = typer.Context(body), [option for option in body.params if not option.hidden]
    records = (option.get_help_record(context) for option in shown)
    return [(" ".join(called.split()), " ".join(text.split())) for called, text in records]


def table(head: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two columns; nothing without rows."""
    escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
    lines = [f"| {head} | meaning |", "| --- | --- |", *(f"| `{name}` | {text} |" for name, text in escaped)]
    return [*lines, ""] if escaped else []


def write_command_page(out: Annotated[Path, typer.Option(help="page to write")] = PAGE) -> None:
    """Write the page of all commands."""
    text, parts = out.read_text(encoding="utf-8"), [HEAD]
    for folder in FOLDERS:
        for path in sorted(Path(folder).rglob("*.py") if folder else Path().glob("*.py")):
            if path.read_text(encoding="utf-8").endswith("    run_module(build_app)\n"):
                parts += sections(".".join(path.with_suffix("").parts))
    write_atomic(out, "\n".join([*parts, text[text.index(TAIL) :]]).encode())
    logger.info("wrote %s", out)


build_app = single_app(write_command_page)

if __name__ == "__main__":
    run_module(build_app)
