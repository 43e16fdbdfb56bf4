"""The documents as data: code blocks, commands, links, and a stand-in for running a command."""

import contextlib
import functools
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inpainting import config_path
from ldm.settings import cli, config
from tests.conftest import ROOT

PAGES = [
    *("README.md", "CONTRIBUTING.md", "assets/tiny/README.md"),
    *("docs/compositor.md", "docs/scenes.md", "docs/released_weights.md", "docs/datasets.md"),
    *("docs/inpainting.md", "docs/paintings.md", "docs/prompts.md", "docs/locator.md"),
    *("docs/windows.md", "docs/reliability.md", "docs/serve.md", "docs/hub.md"),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PLACEHOLDER = re.compile(r"\b[A-Z]{4,}\b|\.\.\.|/path/to")
ASSIGNMENT = re.compile(r"^\w+=\S*$")
# Scripts whose first argument may be a YAML file: script -> the module that it starts, and its default.
DEFAULTS = {
    "scripts/train.sh": ("run_train_bifrost", "configs/tiny/compositor.yaml"),
    "scripts/train_llava.sh": ("llava_bifrost.train", "configs/llava_bifrost/train.yaml"),
}


class Rehearsed(Exception):
    """Raised where the work of a command would begin."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [text for found, text in BLOCK.findall(text_of(page)) if found == language]


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return BLOCK.sub("", text_of(page))


def commands(page: str) -> list[str]:
    """Every command line of the sh blocks, and every command without placeholders inside a sentence."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    found = [line for line in lines if line.strip() and not line.startswith("#")]
    spoken = [
        code for code in INLINE.findall(prose(page)) if words_of(code)[:1] in (["sh"], ["bash"], ["python"])
    ]
    return found + [code for code in spoken if not PLACEHOLDER.search(" ".join(words_of(code)))]


def words_of(command: str) -> list[str]:
    """The words of a command without leading VAR=value."""
    words = shlex.split(command, comments=True) if command.count("'") % 2 == 0 else command.split()
    while words and ASSIGNMENT.match(words[0]):
        words = words[1:]
    return words


def counterparts() -> dict[str, str]:
    """Command that the two papers publish -> what stands here for it."""
    table = text_of("docs/commands.md").partition("## Commands of the two papers")[2]
    rows = re.findall(r"^\| `(.*?)` \| (?:`(.*?)`|the same) \|", table, re.MULTILINE)
    return {published: here or published for published, here in rows}


def links(page: str) -> Iterator[tuple[Path, str]]:
    """(file, anchor) of every link into this repository."""
    for target in LINK.findall(prose(page)):
        if not re.match(r"https?://", target):
            path, _, anchor = target.partition("#")
            yield ((ROOT / page).parent / path if path else ROOT / page), anchor


def anchors(page: Path) -> set[str]:
    """What a link may name after #, by GitHub's rule."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def rehearse(command: str, monkeypatch: Any) -> list[Any]:
    """Do everything that a command does before its work; returns what the work would have been given."""
    words = words_of(command)
    if words[0] in ("sh", "bash"):
        assert (ROOT / words[1]).is_file(), command
        return rehearse_script(words[1], words[2:], monkeypatch)
    if words[:2] == ["accelerate", "launch"]:
        words = ["python", *(word for word in words[2:] if word != "--quiet")]
    assert words[0] == "python", command
    program, arguments = (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
    assert words[1] == "-m" or "/" not in program, f"{command}: run as a module, python -m"
    module = program.removesuffix(".py")
    package = (ROOT / module.replace(".", "/")).is_dir()
    return called(f"{module}.__main__" if package else module, arguments, monkeypatch)


def rehearse_script(script: str, arguments: list[str], monkeypatch: Any) -> list[Any]:
    """What a shell script passes on."""
    if script in DEFAULTS:
        module, default = DEFAULTS[script]
        given = arguments if arguments[:1] and arguments[0].endswith(".yaml") else [default, *arguments]
        return called(module, given, monkeypatch)
    if script in ("scripts/demo.sh", "scripts/inference.sh"):
        return called("run_inference", ["image", "--config", "configs/demo.yaml", *arguments], monkeypatch)
    return []


def called(module: str, arguments: list[str], monkeypatch: Any) -> list[Any]:
    """Run the command line of a module with its work replaced; returns the arguments of the work."""
    program, given = importlib.import_module(module), []

    def stop_after(function: Any, call: bool = True) -> Any:
        @functools.wraps(function)
        def record(*settings: Any, **options: Any) -> None:
            given.append(function(*settings, **options) if call else options)
            raise Rehearsed

        return record

    places = (
        (cli, "merge_layers"),
        (cli, "load_config"),
        (config_path, "load_config"),
        (program, "load_config"),
    )
    for place, name in places:
        if hasattr(place, name):
            monkeypatch.setattr(place, name, stop_after(getattr(config, name)))
    app = program.build_app()
    for verb in app.registered_commands:
        if verb.callback.__module__ != cli.__name__ and "overrides" not in verb.callback.__annotations__:
            verb.callback = stop_after(verb.callback, call=False)
    with contextlib.suppress(Rehearsed):
        assert cli.run_app(lambda: app, arguments) == 0, f"{module} {' '.join(arguments)}"
    assert given or not arguments, f"{module} {' '.join(arguments)}: no work was reached"
    return given
