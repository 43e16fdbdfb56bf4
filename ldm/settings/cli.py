"""Command-line verbs made of settings dataclasses: an option per field, YAML below flags, one-line errors.

app = new_app("Compose images.")
work = "compose.commands:run_image"  # imported when the verb runs (`later`)
app.command("image")(command(ImageSettings, work, default_config=Path("configs/inference.yaml")))
"""

import contextlib
import inspect
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin

import typer
from typer.core import TyperCommand

from ldm import __version__
from ldm.files import STOPPED, check_stopped, located
from ldm.locks import alone
from ldm.settings.arguments import common_options, spread_lists
from ldm.settings.config import Layer, flag_name, load_config, merge_layers, nested, to_plain, yaml_layers
from ldm.settings.later import later, quiet_libraries
from ldm.settings.resources import check_places, end_program, keep_freed_memory, resources_named, user_message
from ldm.settings.schema import flat_settings, from_text, members, range_name, section_of, type_name

T = TypeVar("T")
App = typer.Typer  # under this name commands need not import the library before this package

INTERRUPTED, TERMINATED = 130, 143  # exit codes after Ctrl-C and SIGTERM, as shells give them
DEFAULTS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
ENDS = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}


def new_app(help: str) -> typer.Typer:
    """An app whose verbs are always spelled out, even when it has only one."""
    app = typer.Typer(help=help, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    return app


def command(
    schema: type[T], work: Callable[[T], Any] | str, default_config: Path | None = None
) -> Callable[..., None]:
    """The function that a typer app registers as a verb: it fills `schema` and calls `work` with it, a
    function or the name of one for `later`.

    Every field is an option `--kebab-case` (a field of a section `--section.field`); `--config FILE` names a
    YAML file of defaults, by default `default_config` where that file exists, unless the schema has a field
    `config`. What `work` returns is the object that `--json` prints; without it that names `out`.
    """
    function = later(work) if isinstance(work, str) else work
    found = None if default_config is None or not located(default_config).is_file() else default_config
    below = [] if found is None else yaml_layers(found)
    names: dict[str, tuple[str, Any]] = {}
    text = "YAML file of defaults; flags override it" + (f" [default: {found.as_posix()}]" if found else "")
    config_option = typer.Option("--config", help=text, metavar="FILE", show_default=False)
    settings = flat_settings(schema)
    parameters = [] if "config" in settings else [_parameter("config", Annotated[Path | None, config_option])]
    for key, (field, hint) in settings.items():
        if section_of(hint) is None:
            former = [key.removesuffix(field.name) + old for old in field.metadata.get("was", ())]
            for name in (key, *former):
                parameters.append(_option(name, field, hint, below, hidden=name in former))
                names[parameters[-1].name] = (name, hint)

    def verb(**given: Any) -> Any:
        config = None if "config" in names else given.pop("config")
        layers = below if config is None else yaml_layers(config)
        flags = [Layer({}, flags=True)]
        for name, value in given.items():
            if value in (None, [], ()):  # not given; `none` as typed is a value
                continue
            key, hint = names[name]
            try:
                value = from_text(hint, value) if isinstance(value, str) else value
                if isinstance(value, list) and Path in get_args(members(hint)[0]):
                    # A file whose own name holds commas is one path.
                    parts = [[text] if Path(text).exists() else text.split(",") for text in value]
                    value = [name for part in parts for name in part]
            except ValueError as error:
                raise ValueError(f"{flag_name(key)}: {error}") from error
            flags.append(Layer(nested(key, value), flags=True))
        return _report_of(function, merge_layers(schema, [*layers, *flags]))

    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    verb.__doc__ = inspect.getdoc(function)
    verb.schema = schema  # type: ignore[attr-defined]
    return verb


def _report_of(function: Callable[[T], Any], settings: T) -> Any:
    """What a verb returns; where that is nothing, the place of its results as the settings name it."""
    with resources_named(settings):
        report = function(settings)
    return {"out": to_plain(getattr(settings, "out", None))} if report is None else report


def single_app(
    function: Callable[..., Any], kind: type[TyperCommand] | None = None, bare: bool = True
) -> Callable[[], typer.Typer]:
    """Builds an app of one unnamed command; `run_app` runs it when no argument is given, if it is `bare`."""

    def build() -> typer.Typer:
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        app.command(cls=kind, no_args_is_help=not bare)(function)
        return app

    return build


def takes_keys(schema: type) -> type[TyperCommand]:
    """The kind of a command that takes `key=value` of `schema`: its help ends with the keys."""

    class KeysCommand(TyperCommand):
        keys = schema

        def format_epilog(self, ctx: Any, formatter: Any) -> None:
            with formatter.section("Keys"):
                formatter.write_dl(key_rows(schema))

    return KeysCommand


def key_rows(schema: type) -> list[tuple[str, str]]:
    """`key TYPE` and meaning, with range and default, of all settings that `key=value` sets."""
    rows = []
    for key, (field, hint) in flat_settings(schema).items():
        if section_of(hint) is None:
            kind, text = _described(key, field, hint, [])
            rows.append((f"{key} {kind}", text))
    return rows


def trainer(schema: type[T], work: str) -> Callable[[], typer.Typer]:
    """An app for `CONFIG.yaml key=value ...`, as trainers take it; for `run_module`."""
    function = later(work)

    def verb(
        config: Annotated[Path, typer.Argument(help="YAML file of settings", metavar="CONFIG")],
        overrides: Annotated[
            list[str] | None, typer.Argument(help="dotted for sections", metavar="[KEY=VALUE]...")
        ] = None,
    ) -> Any:
        return _report_of(alone(function), load_config(schema, config, overrides or []))

    verb.__doc__ = inspect.getdoc(function)
    return single_app(verb, takes_keys(schema))


def run_module(build: Callable[[], typer.Typer]) -> NoReturn:
    """The `__main__` part of a command: run the app on the command line and exit with its code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for library in ("httpx", "torch"):  # torch prints statistics at its end where its import was interrupted
        logging.getLogger(library).setLevel(logging.WARNING)
    quiet_libraries()
    keep_freed_memory()
    for number, default in DEFAULTS.items():
        if signal.getsignal(number) == default:
            signal.signal(number, stop)
    end_program(run_app(build, sys.argv[1:]))


def stop(number: int, frame: Any) -> None:
    """The handler of Ctrl-C and SIGTERM: leave so that nothing half-written stays; once more ends at once."""
    signal.signal(number, DEFAULTS[number])
    sys.unraisablehook = lambda lost: None  # a destructor cannot raise it; the mark below is looked at
    STOPPED.append(number)
    check_stopped()


def run_app(build: Callable[[], typer.Typer], argv: Sequence[str]) -> int:
    """Build the app, run it on argv, return its exit code.

    What a user can fix (`user_message`) is one line on stderr and code 2; its traceback goes to the log at
    level DEBUG. Ctrl-C is code 130, SIGTERM code 143, a report whose `failed` holds something code 1. Another
    error raises. With `--json` standard output is one object, the verb's report or {"error": message}.
    """
    if "--json" not in argv:
        if "--version" in argv:
            sys.stdout.write(f"bifrost {__version__}\n")
        return 0 if "--version" in argv else _outcome(build, argv)[1]
    report: Any = {"error": "a defect; standard error has the traceback"}
    code, stdout = 1, sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            done = {"version": __version__}, 0
            report, code = done if "--version" in argv else _outcome(build, argv)
    finally:  # NaN and infinity have no JSON form; numpy and torch have lists
        text = json.dumps(report, default=lambda x: x.tolist() if hasattr(x, "tolist") else str(x))
        stdout.write(json.dumps(json.loads(text, parse_constant=lambda name: None), sort_keys=True) + "\n")
    return code


def _outcome(build: Callable[[], typer.Typer], argv: Sequence[str]) -> tuple[Mapping[str, Any], int]:
    """The report of the verb, or {"error": message}, and the exit code."""
    # typer 0.29 sets this, and deletes it again, while it reads a value: of two threads one would fail.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    try:
        app = build()
        nothing = ["--help"] if app.registered_callback else []  # with verbs, one must be chosen
        program = typer.main.get_command(app)
        for body in (program, *getattr(program, "commands", {}).values()):
            check_places(body)
            body.params += common_options()
        words = spread_lists(program, argv) or nothing
        result = program.main(args=words, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        result = INTERRUPTED
    except SystemExit as error:
        if error.code != TERMINATED:
            raise
        result = TERMINATED
    except Exception as error:
        if not STOPPED:
            if (message := user_message(error)) is None:
                raise
            logging.getLogger(__name__).debug("user error", exc_info=True)
            sys.stderr.write(f"error: {message}\n")
            return {"error": message}, 2
    if STOPPED:  # whatever a library has made of it
        result = 128 + STOPPED[0]
    if isinstance(result, int) and result in ENDS:  # typer turns Ctrl-C within a verb into its code
        sys.stderr.write(f"{ENDS[result]}\n")
        return {"error": ENDS[result]}, result
    if isinstance(result, Path):
        result = {"out": result}
    if isinstance(result, Mapping):
        return result, 1 if result.get("failed") else 0
    return {}, result if type(result) is int else 0  # of typer.Exit; a verb may return True


def _option(key: str, field: Field, hint: Any, layers: Sequence[Layer], hidden: bool) -> inspect.Parameter:
    """The option of one field. Its default is None = not given; checks are left to `merge_layers`."""
    metavar: str | None
    metavar, text = _described(key, field, hint, layers)
    flags = [flag_name(key), *(() if hidden else field.metadata.get("aliases", ()))]
    inner = members(hint)[0]
    # Texts and paths may hold commas, so an option with several of them is given several times.
    repeated = get_origin(inner) in (tuple, list) and get_args(inner)[0] in (str, Path)
    kind: Any = list[str] if repeated else str
    if members(hint) == (bool,):
        section, dot, last = key.rpartition(".")
        kind, metavar = bool, None
        off = [name for name in flags if name.startswith("/")]
        flags = [name for name in flags if name not in off]
        flags[0] += off[0] if off else f"/{flag_name(f'{section}{dot}no_{last}')}"
    option: Any = typer.Option(*flags, help=text, metavar=metavar, show_default=False, hidden=hidden)
    if not flags[-1].startswith("-"):
        option = typer.Argument(help=text, metavar=flags[-1], show_default=False)
    return _parameter(key.replace(".", "__"), Annotated[kind | None, option])


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _described(key: str, field: Field, hint: Any, layers: Sequence[Layer]) -> tuple[str, str]:
    """What is typed for a setting, and its meaning with its range and the value of layers or schema."""
    rule = field.metadata
    value: Any = field.default if field.default_factory is MISSING else field.default_factory()
    for layer in layers:
        node: Any = layer.values
        for name in key.split("."):
            node = node.get(name, MISSING) if isinstance(node, dict) else MISSING
        value = value if node is MISSING else node
    facts = [range_name(rule)]
    if value is MISSING:
        facts.append("required")
    elif value is not None:
        plain = to_plain(value)
        if isinstance(plain, dict):
            plain = [f"{name}={item}" for name, item in plain.items()]
        shown = ",".join(map(str, plain)) if isinstance(plain, list) else str(plain)
        facts.append(f"default: {shown.lower() if isinstance(plain, bool) else shown or 'empty'}")
    facts = [fact for fact in facts if fact]
    text = f"{rule.get('help', '')} [{'; '.join(facts)}]" if facts else rule.get("help", "")
    kind = "true|false" if members(hint) == (bool,) else type_name(hint).upper()
    return "|".join(rule["choices"]) if rule.get("choices") else kind, text
