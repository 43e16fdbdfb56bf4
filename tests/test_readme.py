"""The documents are true: every command parses, every file, option, key and link exists, the code runs."""

import importlib
import json
import pkgutil
import re

import pytest
import typer

import compose.settings
from cldm.create import create_compositor
from cldm.model import save_compositor
from cldm.training.settings import RunConfig
from compose.schema import command_modules
from inpainting.models.image_to_text.settings import PromptTraining
from ldm.settings.cli import run_app
from ldm.settings.config import load_config
from ldm.settings.schema import flat_settings, section_of
from scripts.docs import make_command_docs
from tests import pages
from tests.cldm.small import SMALL, SMALL_CONFIG
from tests.conftest import ROOT

FIGURE_KB = 600
SETTINGS_OF = {"docs/prompts.md": PromptTraining}  # whose keys a page names; others those of the compositor
OURS = ("ldm", "datasets", "cldm", "llava_bifrost", "inpainting")
# Folders that running the code makes, and weights, which have tests of their own.
MADE = ("outputs", "runs", "models", "data", "assets/tiny", ".venv")
EVALUATIONS = (
    "tiny.inpainter.evaluate",
    "tiny.prompter.evaluate",
    "tiny.prompter.scenes",
    "scripts.rehearse",
)

COMMANDS = [(page, command) for page in pages.PAGES for command in pages.commands(page)]
CODE = [(page, code) for page in pages.PAGES for code in pages.blocks(page, "python")]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    save_compositor(create_compositor(SMALL, 0), SMALL_CONFIG, folder)
    return folder


def test_readme_has_exactly_the_two_set_up_commands_first():
    assert pages.blocks("README.md", "sh")[0] == "bash scripts/demo.sh\nbash scripts/test.sh\n"


def test_readme_fits_two_hundred_lines():
    assert pages.text_of("README.md").count("\n") <= 200


def test_pages_are_ascii():
    assert [page for page in pages.PAGES if not pages.text_of(page).isascii()] == []


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: str(value)[:60])
def test_command_exists_with_its_options_and_files(page, command, monkeypatch):
    if command.startswith((". .venv/bin/activate", "pre-commit ")):
        return
    monkeypatch.chdir(ROOT)
    for given in pages.rehearse(command, monkeypatch):
        for path in getattr(given, "input_files", {}).values():
            assert path.is_file(), f"{page}: {command}: {path}"


@pytest.mark.parametrize("command", pages.counterparts().values(), ids=lambda command: command[-60:])
def test_commands_of_the_papers_have_their_counterpart(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    if command.startswith("conda "):  # the file names the environment
        named = {"environment.yaml", *(ROOT / "environment.yaml").read_text().split()}
        assert command.split()[-1] in named
        return
    pages.rehearse(command, monkeypatch)


@pytest.mark.parametrize(
    ("published", "here"),
    [
        ("conda env create -f environment.yaml", "conda env create -f environment.yaml"),
        ("conda env create -f env.yaml", "conda env create -f environment.yaml"),
        ("conda activate i-dream-my-painting", "conda activate bifrost"),
        ("python create_dataset.py", "python -m llava_bifrost.build_dataset coco"),
        ("sh train.sh", "sh scripts/train_llava.sh"),
        ("python llava/eva/run_llava.py", "python -m llava_bifrost.predict image"),
        ("python llava/eval/run_llava.py", "python -m llava_bifrost.predict image"),
        ("python llava/eval/run_llava_test.py", "python -m llava_bifrost.evaluate"),
        ("sh scripts/train.sh", "sh scripts/train.sh"),
        ("sh scripts/inference.sh", "sh scripts/inference.sh"),
    ],
)
def test_lines_of_the_papers_stand_beside_their_counterpart(published, here):
    assert pages.counterparts()[published].startswith(here)


@pytest.mark.parametrize(("page", "code"), CODE, ids=lambda value: str(value)[:40])
def test_python_code_runs(page, code, small_model, tmp_path, monkeypatch):
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compose.settings, "TINY_MODEL", small_model)
    monkeypatch.setattr(compose.settings, "FULL_MODEL", tmp_path / "none")
    exec(compile(code, page, "exec"), {})  # the code of our own page


@pytest.mark.parametrize("page", [*pages.PAGES, "docs/commands.md"])
def test_links_lead_somewhere(page):
    for path, anchor in pages.links(page):
        assert path.exists(), f"{page}: {path}"
        assert not anchor or anchor in pages.anchors(path), f"{page}: no title for #{anchor} in {path}"


@pytest.mark.parametrize("page", pages.PAGES)
def test_named_files_exist(page):
    known = re.compile(r"(?:[\w.-]+/)+[\w.*-]*|\w+\.(?:py|sh|md|cff)")
    tops = {path.name for path in ROOT.iterdir()}
    for name in pages.INLINE.findall(pages.prose(page)):
        top = name.split("/")[0]
        placeholder = pages.PLACEHOLDER.search(name)
        if known.fullmatch(name) and top in tops and not placeholder and not name.startswith(MADE):
            assert list(ROOT.glob(name)), f"{page}: {name}"


@pytest.mark.parametrize("page", pages.PAGES)
def test_named_modules_and_names_exist(page):
    for name in pages.INLINE.findall(pages.prose(page)):
        if re.fullmatch(rf"(?:{'|'.join(OURS)})(?:\.\w+)+", name):
            assert pkgutil.resolve_name(name) is not None, f"{page}: {name}"


@pytest.mark.parametrize("page", pages.PAGES)
def test_named_options_and_keys_exist(page):
    options = set(re.findall(r"^\| `(--[\w-]+)", pages.text_of("docs/commands.md"), re.MULTILINE))
    keys = flat_settings(SETTINGS_OF.get(page, RunConfig))
    for code in pages.INLINE.findall(pages.prose(page)):
        if code.startswith("--"):
            assert code.split()[0] in options | {"--help", "--config", "--shard", "--json", "--version"}, (
                f"{page}: {code}"
            )
        for key in re.findall(
            r"(?:^|\s)((?:pair|train|trainer|data|network|sampling|val)\.\w+)(?=[=\s]|$)", code
        ):
            assert key in keys, f"{page}: {code}"


def test_every_compatibility_switch_is_accepted():
    found = re.findall(r"`(?:pair\.)?(\w+): ([\w.-]+)`", pages.text_of("docs/compositor.md"))
    assert len(found) >= 10
    for key, value in found:
        load_config(RunConfig, None, ["out=run", "pair.resample=legacy", f"pair.{key}={value}"])


def test_command_page_is_up_to_date(tmp_path):
    text = pages.text_of("docs/commands.md")
    page = tmp_path / "commands.md"
    head, tail = (text.index(mark) for mark in (f"\n{make_command_docs.FIRST}", make_command_docs.TAIL))
    page.write_text(f"{text[:head]}\n{make_command_docs.FIRST}old`\n{text[tail:]}")
    make_command_docs.write_command_page(page)
    assert page.read_text() == text, "python -m scripts.docs.make_command_docs"


def test_windows_has_a_way_for_every_script_and_its_steps_are_those_of_the_scripts(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = pages.text_of("docs/windows.md")
    scripts = {path.name for path in (ROOT / "scripts").glob("*.sh")} - {"setup.sh", "test.sh"}
    assert set(re.findall(r"^\| `scripts/(\w+\.sh)`", page, re.MULTILINE)) == scripts
    shells = " ".join(pages.text_of(f"scripts/{name}") for name in ("demo.sh", "test.sh", "setup.sh"))
    (block,) = pages.blocks("docs/windows.md", "powershell")
    steps = [line.removeprefix(".venv\\Scripts\\python ") for line in block.splitlines() if "Scripts" in line]
    assert len(steps) == 6
    for step in steps[1:]:
        assert " ".join(step.split()[:3]) in shells.replace('"', ""), step
    pinned = (ROOT / "requirements.txt").read_text().partition("\ntorch==")[2].split()[0]
    assert f"torch=={pinned} --index-url" in page
    for name in ("test_scripts.py", "test_setup.py"):
        assert f"--ignore=tests/{name}" in steps[-1]
        assert (ROOT / "tests" / name).is_file()


def test_the_readme_introduces_every_notebook_and_says_how_to_get_jupyter():
    text = pages.text_of("README.md")
    notebooks = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {name for name in notebooks if f"`notebooks/{name}`" in text} == notebooks
    assert "pip install jupyterlab" in text
    assert "jupyter lab notebooks" in text


def verbs():
    """(command line, command, how its app is built) of every verb of the page of commands."""
    for name in command_modules():
        module = importlib.import_module(name)
        program = typer.main.get_command(module.build_app())
        for verb, body in getattr(program, "commands", {"": program}).items():
            yield [verb] if verb else [], body, module.build_app


def test_every_command_answers_help_and_those_that_take_keys_list_them(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with_keys = 0
    for argv, body, build in verbs():
        assert run_app(build, [*argv, "--help"]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith("Usage:")
        takes = any("KEY" in str(option.metavar) or option.name == "overrides" for option in body.params)
        assert takes == hasattr(body, "keys"), argv
        if takes:
            with_keys += 1
            keys = re.findall(r"^  (\S+) (\S+)", shown.partition("\nKeys:\n")[2], re.MULTILINE)
            settings = {key: hint for key, (_, hint) in flat_settings(body.keys).items()}
            named = {key for key, hint in settings.items() if section_of(hint) is None}
            assert named <= {key for key, _ in keys}
    assert with_keys >= 13


def test_a_training_without_arguments_asks_for_its_settings_in_one_line(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    needed = 0
    for argv, body, build in verbs():
        for option in body.params:
            if option.name in ("config", "config_path") and option.required:
                needed += 1
                assert run_app(build, argv) == 2
                error = capsys.readouterr().err
                assert error.count("\n") == 1
                assert "YAML file of settings" in error
    assert needed >= 10


# What may start without an argument: quick reports, the server, and steps that check their inputs first.
BARE = """compose.contact_sheet compose.serve ldm.doctor ldm.registry_list ldm.registry_verify
    inpainting.data.downloader_fetch-annotations inpainting.data.ops_build
    inpainting.data.downloader_download-and-save-images-wikiart-v2
    inpainting.models.text_to_image.test_generate-repeated inpainting.models.text_to_image.test_compute
    tiny.bundle_compositor tiny.bundle_depth tiny.bundle_locator tiny.bundle_inpainter tiny.bundle_prompter
    tiny.bundle_shadow
    datasets.scenes_render datasets.scenes_sheet scripts.docs.draw_figure scripts.docs.draw_locator
    scripts.docs.draw_regions scripts.docs.make_command_docs scripts.docs.make_examples
    scripts.docs.make_teaser scripts.measure_code run_inference.py_schema"""


def test_no_long_work_starts_without_an_argument():
    page = pages.text_of("docs/commands.md").partition(make_command_docs.TAIL)[0]
    lines = re.findall(r"^## (.*)\n\n`python (.*?)`: ", page, re.MULTILINE)
    assert len(lines) >= 70
    bare = {title.replace(" ", "_") for title, line in lines if line.removeprefix("-m ") == title}
    evaluations = {name for name in bare if name.endswith((".evaluate", ".scenes", ".rehearse"))}
    assert bare - evaluations <= set(BARE.split())
    for module in ("cldm.evaluate.__main__", "llava_bifrost.evaluate.__main__", *EVALUATIONS):
        body = typer.main.get_command(importlib.import_module(module).build_app())
        assert body.no_args_is_help
    assert len(evaluations) == 2 + len(EVALUATIONS)


def test_an_evaluation_without_arguments_asks_for_one(capsys):
    build = importlib.import_module(EVALUATIONS[0]).build_app
    assert run_app(build, []) == 2
    assert capsys.readouterr().err.startswith("error: nothing was given, and this is long work: name")


def test_the_page_of_commands_has_a_link_for_every_heading_and_none_twice():
    page = pages.text_of("docs/commands.md")
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert len(headings) == len(set(headings)) >= 70
    linked = {anchor for _, anchor in pages.links("docs/commands.md")}
    assert {make_command_docs.anchor(heading) for heading in headings} <= linked
    assert page.count("\n") < 2200


def test_figures_are_small():
    figures = list((ROOT / "docs/figures").glob("*.png"))
    assert figures
    assert [path.name for path in figures if path.stat().st_size > FIGURE_KB * 1024] == []


@pytest.mark.parametrize("command", ["python run_inference.py image --bax 1", "python -m scripts.no_such"])
def test_rehearsal_notices_a_wrong_command(command, monkeypatch):
    with pytest.raises((AssertionError, ModuleNotFoundError)):
        pages.rehearse(command, monkeypatch)


def test_every_command_answers_in_json_and_tells_its_version(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for argv, _, build in verbs():
        assert run_app(build, [*argv, "--no-such-option", "--json"]) == 2
        assert list(json.loads(capsys.readouterr().out)) == ["error"]
        assert run_app(build, [*argv, "--version", "--json"]) == 0
        assert list(json.loads(capsys.readouterr().out)) == ["version"]
