"""The JSON Schema of every command, for programs that fill its settings."""

import importlib
import json
from collections.abc import Iterator
from dataclasses import MISSING
from typing import Annotated, Any

import typer

from ldm.files import ROOT, read_text, visible_files
from ldm.settings.schema import flat_settings, nearest, setting_schemas, type_schema

FOLDERS = ("", "compose", "cldm", "llava_bifrost", "inpainting", "tiny", "datasets", "ldm", "scripts")


def command_modules() -> Iterator[str]:
    """Modules whose `python -m`, or whose file, is a command, in the order of docs/commands.md."""
    for folder in FOLDERS:
        for path in visible_files(ROOT / folder, "**/*.py" if folder else "*.py"):
            if read_text(path).endswith("    run_module(build_app)\n"):
                yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


def verbs_of(module: str) -> Iterator[tuple[str, Any]]:
    """(what is typed after python or python -m, the command) of every verb of a module."""
    name = module.removesuffix(".__main__") if "." in module else f"{module}.py"
    program = typer.main.get_command(importlib.import_module(module).build_app())
    for verb, body in getattr(program, "commands", {"": program}).items():
        yield f"{name} {verb}".strip(), body


def command_schema(title: str, body: Any) -> dict[str, Any]:
    """Keys are the names of the settings: `--kebab-case` on the command line, `key=value` after a CONFIG."""
    settings = getattr(body, "keys", None) or getattr(body.callback, "schema", None)
    if settings is None:
        options = [option for option in body.params if option.name != "help" and not option.hidden]
        kinds = {option.name: type_schema(option.type_descriptor.annotation, {}) for option in options}
        fields = {option.name: {**kinds[option.name], "description": option.help or ""} for option in options}
        needed = [option.name for option in options if option.required]
    else:
        fields = setting_schemas(settings)
        flat = {key: field for key, (field, _) in flat_settings(settings).items() if key in fields}
        needed = [key for key, field in flat.items() if field.default is field.default_factory is MISSING]
    about = {"title": f"python {'' if '.py' in title else '-m '}{title}", "description": body.help or ""}
    rules = {"properties": fields, "required": needed, "additionalProperties": False}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **about, "type": "object", **rules}


def print_schema(
    command: Annotated[str, typer.Argument(help="one command, such as image or inpainting.paint")] = "",
) -> dict[str, Any]:
    """Print the JSON Schema of every command, or of one."""
    found = {title: body for module in command_modules() for title, body in verbs_of(module)}
    chosen = [title for title in found if command in ("", title, title.removeprefix("run_inference.py "))]
    if not chosen:
        raise ValueError(nearest(command, found, "command"))
    schemas = {title: command_schema(title, found[title]) for title in chosen}
    typer.echo(json.dumps(schemas, indent=1))
    return schemas
