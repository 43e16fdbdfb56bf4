"""Write docs/commands.md from the commands themselves: one table of options or settings per command.

    python -m scripts.make_command_docs

A setting is declared once, in its dataclass; this page is generated from it, and a test compares the two.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.models import OptionInfo

from ldm.config import flag_name, to_plain
from ldm.files import write_atomic
from ldm.options import run_app, single_app
from ldm.schema import flat_settings, members, range_name, section_of, type_name
from scripts.painting_commands import PAINTING_COMMANDS

logger = logging.getLogger(__name__)

PAGE = Path("docs/commands.md")
HEAD = """# Commands

<!-- written by `python -m scripts.make_command_docs`; edit the help texts of the settings instead -->

Everything runs from the root of the repository with the Python of `.venv` (or any environment with
`requirements.txt`). `--help` after a command prints its part of this page. Wrong values are refused in one
line with exit code 2, and nothing is written. Lists are typed with commas: `--box 0.4,0.5,0.7,0.9`.
"""


@dataclass(frozen=True)
class Command:
    """One command of the page. schema and function are "module:name", one of them is given."""

    line: str  # how it is typed
    schema: str = ""  # settings dataclass
    keys: bool = False  # settings are typed as key=value after a YAML file, not as --options
    function: str = ""  # the command itself, where it is written as a function
    note: str = ""


TRAINER = "Settings are keys of the YAML file; `key=value` after it overrides them."
FLAGS = "Defaults come from `{0}`; `--config FILE` reads another YAML file, flags override both."
COMMANDS = (
    Command(
        "python run_inference.py image --background FILE --object FILE --box x1,y1,x2,y2 --out FILE",
        "run_inference:ImageSettings",
        note="Put an object into a background at a box and a depth. "
        + FLAGS.format("configs/inference.yaml"),
    ),
    Command("python run_inference.py replay PICTURE", function="run_inference:replay"),
    Command(
        "python run_train_bifrost.py CONFIG.yaml [key=value ...]",
        "run_train_bifrost:RunConfig",
        keys=True,
        note="Train the compositor; the same command again continues an interrupted run. " + TRAINER,
    ),
    Command(
        "python -m cldm.first_stage CONFIG.yaml [key=value ...]",
        "cldm.first_stage:FirstStageConfig",
        keys=True,
        note="Train the small autoencoder and compare it with a linear map of the same size. " + TRAINER,
    ),
    Command(
        "python -m scripts.train_depth CONFIG.yaml [key=value ...]",
        "scripts.train_depth:TrainDepthConfig",
        keys=True,
        note="Train the small depth network on rendered scenes. " + TRAINER,
    ),
    Command(
        "python -m cldm.evaluate --model FOLDER --out FILE",
        "cldm.evaluate:EvaluateSettings",
        note="Measure a compositor on held-out scenes, through the path that inference takes.",
    ),
    Command(
        "python -m scripts.make_tiny_bundle compositor --run FOLDER",
        function="scripts.make_tiny_bundle:compositor",
    ),
    Command(
        "python -m scripts.make_tiny_bundle depth --run FOLDER", function="scripts.make_tiny_bundle:depth"
    ),
    Command(
        "python -m scripts.make_tiny_bundle locator --run FOLDER",
        function="scripts.make_tiny_bundle:locator",
    ),
    Command(
        "python -m scripts.make_tiny_bundle inpainter --run FOLDER",
        function="scripts.make_tiny_bundle:inpainter",
    ),
    Command(
        "python -m inpainting.small.train CONFIG.yaml [key=value ...]",
        "inpainting.small.train:TrainConfig",
        keys=True,
        note="Train the small inpainter stage by stage; run again to continue. " + TRAINER,
    ),
    Command(
        "python -m inpainting.small.evaluate --run FOLDER",
        "inpainting.small.evaluate:EvaluateConfig",
        note="Does each mask show what its own prompt names? Four models on held-out scenes.",
    ),
    Command(
        "python -m llava_bifrost.small.train CONFIG.yaml [key=value ...]",
        "llava_bifrost.small.train:LocatorTraining",
        keys=True,
        note="Train the small locator stage by stage; run again to continue. " + TRAINER,
    ),
    Command(
        "python -m llava_bifrost.train CONFIG.yaml [key=value ...]",
        "llava_bifrost.train:TrainConfig",
        keys=True,
        note="Train a locator from any model that sees; the same command again continues. " + TRAINER,
    ),
    Command(
        'python -m llava_bifrost.predict image --image FILE --instruction "Place the X behind the Y"',
        "llava_bifrost.predict:ImageSettings",
        note="Ask a locator for places in one picture.",
    ),
    Command(
        "python -m llava_bifrost.predict jsonl --jobs FILE",
        "llava_bifrost.predict:JobSettings",
        note="Ask a locator many questions; answers are appended, run again to continue.",
    ),
    Command(
        "python -m llava_bifrost.model convert --adapter FOLDER --base FOLDER --out FOLDER",
        "llava_bifrost.model:ConvertSettings",
        note="The released Bifrost MLLM, original LLaVA layout -> a locator folder.",
    ),
    Command(
        "python -m llava_bifrost.model merge --adapter FOLDER --base FOLDER --out FOLDER",
        "llava_bifrost.model:MergeSettings",
        note="An adapter that was trained here -> a locator folder.",
    ),
    Command(
        "python -m llava_bifrost.evaluate --model FOLDER --out FILE",
        "llava_bifrost.evaluate:EvaluateSettings",
        note="Does a locator's answer satisfy the sentence, in this picture? Beside controls.",
    ),
    Command(
        "python -m datasets.scenes render --out FOLDER --count N",
        "datasets.scenes.store:StoreSettings",
        note="Render scenes into shards; run again to continue.",
    ),
    Command(
        "python -m datasets.scenes sheet --out FILE",
        "datasets.scenes.sheet:SheetSettings",
        note="Write a labelled contact sheet of evaluation scenes.",
    ),
    Command(
        "python -m llava_bifrost.build_dataset coco --images FOLDER --annotations FILE --out FOLDER",
        "llava_bifrost.build_coco:CocoBuild",
        note="Training data of the locator from photographs: one object of each is removed. Run again to "
        "continue; `configs/llava_bifrost/build_coco.yaml` is the full recipe, `build_published.yaml` holds "
        "the published rules.",
    ),
    Command(
        "python -m llava_bifrost.build_dataset scenes --scenes FOLDER --out FOLDER",
        "llava_bifrost.build_scenes:ScenesBuild",
        note="Training data of the locator from rendered scenes, exact. Run again to continue.",
    ),
    Command(
        "python -m llava_bifrost.build_dataset merge --out FOLDER",
        "llava_bifrost.build_dataset:MergeSettings",
        note="Put the shards of several machines together.",
    ),
    *(
        Command(f"python -m inpainting.data.{line}", f"inpainting.data.{schema}", note=note)
        for line, schema, note in PAINTING_COMMANDS
    ),
    Command("python run_dataset_debug.py --source NAME --out FILE", function="run_dataset_debug:debug"),
    Command(
        "python -m ldm.precompute_depth IMAGE_TREE OUT_TREE",
        function="ldm.precompute_depth:command",
    ),
    Command("python -m datasets.uvo_process VIDEO_JSON OUT_JSON", function="datasets.uvo_process:process"),
    Command(
        "python -m scripts.composite_sheet [PICTURES] --out FILE", function="scripts.composite_sheet:make"
    ),
    *(
        Command(
            f"python -m cldm.convert {verb} --source FILE --out FOLDER",
            "cldm.convert:CompositorSettings",
            note=note,
        )
        for verb, note in (
            ("anydoor", "AnyDoor weights -> a compositor folder that works at once."),
            ("bifrost", "Released Bifrost weights -> a compositor folder."),
            ("sd21", "Stable Diffusion 2.1 base -> the folder that training starts from."),
        )
    ),
    Command(
        "python -m cldm.convert dinov2 --source FILE --out FOLDER",
        "cldm.convert:ConvertSettings",
        note="DINOv2 ViT-g/14, original file -> a transformers folder.",
    ),
    Command(
        "python -m cldm.convert dpt --source FILE --out FOLDER",
        "cldm.convert:ConvertSettings",
        note="DPT-Large, original file -> a transformers folder.",
    ),
    Command(
        "python -m cldm.convert export --source FOLDER --out FILE",
        "cldm.export:ExportSettings",
        note="A folder -> the original single-file layout.",
    ),
    Command("python -m ldm.registry list", function="ldm.registry:list_models"),
    *(
        Command(f"python -m ldm.registry {verb} NAME{rest}", function=f"ldm.registry:{verb}")
        for verb, rest in (("show", ""), ("where", ""), ("pull", ""), ("register", " FILE"), ("verify", ""))
    ),
    Command("python -m ldm.doctor", function="ldm.doctor:report"),
    Command("python -m scripts.make_teaser", function="scripts.make_teaser:make"),
    Command("python -m scripts.make_examples", function="scripts.make_examples:make"),
    Command("python -m scripts.draw_figure", function="scripts.draw_figure:make"),
    Command("python -m scripts.make_command_docs", function="scripts.make_command_docs:make"),
)


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(command) for command in COMMANDS)])


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
    """The program and its verb: "python -m cldm.first_stage C" -> "cldm.first_stage"."""
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
            name = key if keys else flag_name(key)
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
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(run_app(build_app, sys.argv[1:]))
