"""What all commands have in common on the command line: `--json`, `--version`, and how lists are typed."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

NUMBER = re.compile(r"-?\d*\.?\d+(e-?\d+)?(px)?", re.IGNORECASE)


def common_options() -> list[Any]:
    """The options that all commands have; `run_app` itself acts on them."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command()
    def options(
        json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
        version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    ) -> None:
        """Nothing is done here."""

    common = [option for option in typer.main.get_command(app).params if option.name != "help"]
    for option in common:
        option.expose_value = False
    return common


def spread_lists(program: Any, argv: Sequence[str]) -> list[str]:
    """`--box 0.1 0.2 0.3 0.4` as `--box 0.1,0.2,0.3,0.4`, and `--masks a b` as `--masks a --masks b`.

    The second only where a verb has no arguments without a name, for which such words could be meant.
    """
    verb = next((word for word in argv if not word.startswith("-")), "")
    body = getattr(program, "commands", {}).get(verb, program)
    named = all(option.opts[0].startswith("--") for option in body.params)
    numbers = {id(option) for option in body.params if re.search(r"^[^=]*,", option.metavar or "")}
    words: list[str] = []
    current: Any = None  # the option whose values may follow
    for word in argv:
        if word.startswith("--"):
            current = next((option for option in body.params if word in option.opts), None)
        elif current is not None and current.multiple and named:
            if not words[-1].startswith("--"):
                words.append(current.opts[0])
        elif current is None or id(current) not in numbers or not NUMBER.fullmatch(word):
            current = None
        elif not words[-1].startswith("--"):
            words[-1] += f",{word}"
            continue
        words.append(word)
    return words
