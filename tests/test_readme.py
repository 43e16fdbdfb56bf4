"""The documents are true: every command parses, every file, option, key and link exists, the code runs."""

import pkgutil
import re

import pytest

import compose.settings
from cldm.create import create_compositor
from cldm.pretrained import save_compositor
from datasets.inputs import PairOptions
from inpainting.models.image_to_text.settings import PromptTraining
from ldm.settings.config import load_config
from ldm.settings.schema import flat_settings
from run_train_bifrost import RunConfig
from scripts.docs import make_command_docs
from tests import pages
from tests.cldm.small import SMALL, SMALL_CONFIG
from tests.conftest import ROOT

FIGURE_KB = 600
SETTINGS_OF = {"docs/prompts.md": PromptTraining}  # whose keys a page names; others those of the compositor
OURS = ("ldm", "datasets", "cldm", "llava_bifrost", "inpainting")
# Folders that running the code makes, and weights, which have tests of their own.
MADE = ("outputs", "runs", "models", "data", "assets/tiny", ".venv")

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


@pytest.mark.parametrize("command", pages.counterparts(), ids=lambda command: command[-60:])
def test_commands_of_the_papers_have_their_counterpart(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    pages.rehearse(command, monkeypatch)


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
            assert code.split()[0] in options | {"--help", "--config", "--shard"}, f"{page}: {code}"
        for key in re.findall(
            r"(?:^|\s)((?:pair|train|trainer|data|network|sampling|val)\.\w+)(?=[=\s]|$)", code
        ):
            assert key in keys, f"{page}: {code}"


def test_every_compatibility_switch_is_accepted():
    found = re.findall(r"`(?:pair\.)?(\w+): ([\w.-]+)`", pages.text_of("docs/compositor.md"))
    assert len(found) >= 10
    for key, value in found:
        load_config(PairOptions, None, [f"{key}={value}"])


def test_command_page_is_up_to_date(tmp_path):
    text = pages.text_of("docs/commands.md")
    page = tmp_path / "commands.md"
    page.write_text(text[text.index(make_command_docs.TAIL) :])
    make_command_docs.write_command_page(page)
    assert page.read_text() == text, "python -m scripts.docs.make_command_docs"


def test_figures_are_small():
    figures = list((ROOT / "docs/figures").glob("*.png"))
    assert figures
    assert [path.name for path in figures if path.stat().st_size > FIGURE_KB * 1024] == []


@pytest.mark.parametrize("command", ["python run_inference.py image --bax 1", "python -m scripts.no_such"])
def test_rehearsal_notices_a_wrong_command(command, monkeypatch):
    with pytest.raises((AssertionError, ModuleNotFoundError)):
        pages.rehearse(command, monkeypatch)
